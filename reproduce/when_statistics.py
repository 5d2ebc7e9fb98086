"""What the experiment on when entropy matters measures of an arm, and of an arm beside the reference."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tournament_statistics import area, judged, matched

from steer_core.stats.improvement import probability_of_improvement
from steer_core.stats.intervals import holm, interval_over_seeds, interval_over_seeds_and_problems
from steer_core.stats.pass_at_k import pass_at_k

KS = (1, 32)
PRIMARY = "pass@1"
POWER = 0.8
Rows = list[dict[str, Any]]


def frame(row: dict[str, Any], base: dict[str, Any] | None) -> pd.DataFrame:
    """A run's evaluations in their order, the base model's first: step, entropy, counts by problem, pass@k."""
    first = [] if base is None else [{"step": 0, "entropy": base["policy_entropy"], **base}]
    table = pd.DataFrame([*first, *row["evaluations"]])[["step", "samples", "entropy", "correct"]]
    for k in KS:
        table[f"pass@{k}"] = [pass_at_k(c, n, k).mean() for c, n in zip(table.correct, table.samples, strict=True)]
    return table


def ends(rows: Rows, k: int) -> np.ndarray:
    """pass@k (seeds, problems) at the end: of the final evaluation where each run has one, else of the last."""
    finals = all(row["final"] for row in rows)
    last = [row["final"] if finals else row["evaluations"][-1] for row in rows]
    return np.stack([pass_at_k(e["correct"], e["samples"], k) for e in last])


def last_entropy(row: dict[str, Any]) -> float:
    """Entropy at the end, nats a token."""
    return float(row["final"]["policy_entropy"] if row["final"] else row["evaluations"][-1]["entropy"])


def discovered(row: dict[str, Any], level: float, base: dict[str, Any] | None) -> float:
    """The rollout at which pass@1 first passes a level, between evaluations by a straight line; infinity for never."""
    table = frame(row, base)
    above = np.flatnonzero(table["pass@1"] > level)
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(table.step[0])
    (x0, x1), (y0, y1) = table.step[i - 1 : i + 1], table["pass@1"][i - 1 : i + 1]
    return float(x0 + (level - y0) / (y1 - y0) * (x1 - x0))


def levels(rows: Rows, base: dict[str, Any] | None, discovery: float | None = None) -> dict[str, Any]:
    """What an arm reached, with 95% intervals: over seeds and problems for pass@k, over seeds for the rest."""
    found = {f"pass@{k}": asdict(interval_over_seeds_and_problems(ends(rows, k))) for k in KS}
    found["entropy"] = asdict(interval_over_seeds([last_entropy(row) for row in rows]))
    found["area"] = asdict(interval_over_seeds([area(frame(row, base)) for row in rows]))
    if discovery is not None:
        found["discovered"] = [discovered(row, discovery, base) for row in rows]
    return found | {"seeds": [row["seed"] for row in rows]}


def contrast(mine: Rows, theirs: Rows, base: dict[str, Any] | None) -> dict[str, Any]:
    """An arm minus another on the seeds that both have: every measure, judged, and what could have been found.

    `pass@32 at equal pass@1` is taken, seed by seed, where both first reach the highest pass@1 that both reach.
    """
    pairs = [(a, b) for a in mine for b in theirs if a["seed"] == b["seed"]]
    if not pairs:
        return {}
    own, other = ([pair[side] for pair in pairs] for side in (0, 1))
    table = {}
    for k in KS:
        gaps = ends(own, k) - ends(other, k)
        table[f"pass@{k}"] = judged(gaps.mean(1).tolist(), interval_over_seeds_and_problems(gaps))
    frames = [(frame(a, base), frame(b, base)) for a, b in pairs]
    equal = [found for pair in frames if (found := matched(pair, {"pass@32": "pass@32", "entropy": "entropy"}))]
    for name in ("pass@32", "entropy") if equal else ():
        gaps = np.stack([found[name] for found in equal])
        both = interval_over_seeds_and_problems(gaps) if name == "pass@32" else None
        table[f"{name} at equal pass@1"] = judged(gaps.mean(1).tolist(), both) | {"seeds": len(equal)}
    table["area"] = judged([area(a) - area(b) for a, b in frames], None)
    table["entropy"] = judged([last_entropy(a) - last_entropy(b) for a, b in pairs], None)
    for found in table.values():
        found["detectable"] = detectable(found["by_seed"])
    improvement = asdict(probability_of_improvement(ends(own, 1), ends(other, 1)))
    return {"seeds": [a["seed"] for a, _ in pairs], "measures": table, "probability_of_improvement": improvement}


def detectable(differences_S: list[float]) -> float:
    """The true difference that so many seeds find with probability 0.8, at 5% two-sided; NaN for fewer than two.

    From their own spread: (t at 0.975 + t at 0.8) times the standard error, n - 1 degrees of freedom.
    """
    count = len(differences_S)
    if count < 2:
        return float("nan")
    error = np.std(differences_S, ddof=1) / np.sqrt(count)
    return float((stats.t.ppf(0.975, count - 1) + stats.t.ppf(POWER, count - 1)) * error)


def with_holm(contrasts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The contrasts of a setting, their primary measure's p corrected for their number (Holm), and whether decided."""
    known = {arm: found for arm, found in contrasts.items() if found}
    for arm, p in holm({arm: found["measures"][PRIMARY]["p"] for arm, found in known.items()}).items():
        primary = known[arm]["measures"][PRIMARY]
        primary["p_holm"] = p
        primary["decided"] = bool(primary["verdict"] != "undecided" and p < 0.05)
    return contrasts
