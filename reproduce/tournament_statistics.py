"""How the tournament compares two methods: run by run, seed by seed, at equal steps and at equal pass@1.

Two runs are compared at equal pass@1 where both, seed by seed, first reach the highest pass@1 that both reach at some
evaluation (the pair's own level, not one level for all runs as in `steer report`); values between evaluations are
interpolated, problem by problem. A seed in which one of the two never rose above the base model is left out and
counted. Each difference carries two 95% intervals: Student t over the training seeds, at these problems, and one over
seeds and problems, which are crossed (`interval_over_seeds_and_problems`). A problem's share of a difference at equal
pass@1 is its jackknife pseudo-value: the runs are matched anew without it, so that it holds the noise of the matching.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from steer_core import pass_at_k
from steer_core.compare.comparison import Comparison
from steer_core.stats.intervals import (
    Interval,
    at_first_crossing,
    interval_over_seeds,
    interval_over_seeds_and_problems,
    paired_p_value,
)


def measures(comparison: Comparison) -> dict[str, str]:
    """What arms are compared in beside pass@1: entropy, and pass@k for each larger k."""
    return {"entropy": "policy_entropy", **{f"pass@{k}": f"pass@{k}" for k in comparison.ks if k > 1}}


def runs_of(comparison: Comparison, arm: str) -> dict[int, pd.DataFrame]:
    """By seed, the evaluations of an arm's finished runs in the order of training, the base model first."""
    done, curves = comparison.final(), comparison.curves()
    return {
        int(seed): curves[(curves.arm == arm) & (curves.seed == seed)].sort_values("step")
        for seed in sorted(done[done.arm == arm].seed)
    }


def by_problem(run: pd.DataFrame, k: int) -> np.ndarray:
    """pass@k of every evaluation (rows) at every problem (columns)."""
    return np.stack([pass_at_k(row.correct, row.samples, k) for row in run.itertuples(index=False)])


def shared_level(a: pd.DataFrame, b: pd.DataFrame) -> float | None:
    """The highest pass@1 that two runs both reach; None where it is no higher than where they began."""
    level = min(a["pass@1"].max(), b["pass@1"].max())
    return level if level > max(a["pass@1"].iloc[0], b["pass@1"].iloc[0]) else None


def at_shared_pass1(comparison: Comparison, arm: str, against: str) -> list[dict[str, Any]]:
    """Arm minus another at each seed's shared level, one entry a seed that has one: `matched`, and the seed."""
    mine, theirs = runs_of(comparison, arm), runs_of(comparison, against)
    gaps = []
    for seed in sorted(mine.keys() & theirs.keys()):
        gap = matched((mine[seed], theirs[seed]), measures(comparison))
        if gap is not None:
            gaps.append({"seed": seed, **gap})
    return gaps


def matched(pair: tuple[pd.DataFrame, pd.DataFrame], columns: dict[str, str]) -> dict[str, Any] | None:
    """One run minus another where each first reaches their shared level; None where there is none.

    columns: name of a measure to its column; pass@k is told by problem. By measure, the problems' shares of the
    difference, see `pseudo_values`: their mean is the difference.
    """
    level = shared_level(*pair)
    if level is None:
        return None
    gap: dict[str, Any] = {"level": level}
    without = without_each(len(pair[0].correct.iloc[0]))
    pass1 = [by_problem(run, 1) @ without for run in pair]  # (evaluations, problem left out)
    levels = np.minimum(*(values.max(0) for values in pass1))
    levels[levels <= np.maximum(*(values[0] for values in pass1))] = np.nan
    for name, column in columns.items():
        whole = [float(at_first_crossing(run["pass@1"], run[column], level)) for run in pair]
        anew = []
        for run, x in zip(pair, pass1, strict=True):
            flat = np.broadcast_to(run[column].to_numpy()[:, None], x.shape)
            y = by_problem(run, int(name[5:])) @ without if name.startswith("pass@") else flat
            anew.append(at_levels(x, y, levels))
        gap[name] = pseudo_values(whole[0] - whole[1], anew[0] - anew[1])
    return gap


def without_each(problems: int) -> np.ndarray:
    """Weights (problems, problems) of the means that leave out one problem each."""
    return (1 - np.eye(problems)) / (problems - 1)


def pseudo_values(whole: float, without_Q: np.ndarray) -> np.ndarray:
    """Each problem's share of a statistic of all Q of them, whose mean is the statistic (jackknife; Tukey 1958).

    without_Q: the statistic without each problem; NaN, where it does not exist, counts as no change.
    """
    moved_Q = np.where(np.isnan(without_Q), whole, without_Q)
    return whole - (len(moved_Q) - 1) * (moved_Q - moved_Q.mean())


def at_levels(x_ED: np.ndarray, y_ED: np.ndarray, level_D: np.ndarray) -> np.ndarray:
    """`at_first_crossing` for many draws at once: y where x first reaches each draw's level, NaN for a NaN level."""
    known = np.nan_to_num(level_D, nan=-np.inf)
    first, draws = (x_ED >= known).argmax(0), np.arange(x_ED.shape[1])
    before = np.maximum(first - 1, 0)
    low, high = x_ED[before, draws], x_ED[first, draws]
    share = np.where(high > low, (level_D - low) / np.where(high > low, high - low, 1.0), 1.0)
    value = y_ED[before, draws] + share * (y_ED[first, draws] - y_ED[before, draws])
    return np.where(np.isnan(level_D), np.nan, value)


def at_equal_steps(comparison: Comparison, arm: str, against: str) -> list[dict[str, Any]]:
    """Arm minus another at the last evaluation, one entry a seed: entropy, and pass@k by problem, pass@1 among them."""
    mine, theirs = runs_of(comparison, arm), runs_of(comparison, against)
    gaps = []
    for seed in sorted(mine.keys() & theirs.keys()):
        ends = [run.tail(1) for run in (mine[seed], theirs[seed])]
        gap = {"seed": seed, "entropy": float(ends[0].policy_entropy.iloc[0] - ends[1].policy_entropy.iloc[0])}
        gap |= {f"pass@{k}": by_problem(ends[0], k)[0] - by_problem(ends[1], k)[0] for k in comparison.ks}
        gap["area"] = area(mine[seed]) - area(theirs[seed])
        gaps.append(gap)
    return gaps


def area(run: pd.DataFrame) -> float:
    """Mean pass@1 over training."""
    return float(np.trapezoid(run["pass@1"], run.step) / (run.step.iloc[-1] - run.step.iloc[0]))


def differences(gaps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By measure: the mean difference, its intervals, its p value, and which side of 0 all its intervals lie on."""
    table = {}
    for name in [key for key in (gaps[0] if gaps else ()) if key not in ("seed", "level")]:
        values = [np.asarray(gap[name]) for gap in gaps]
        both = interval_over_seeds_and_problems(np.stack(values)) if values[0].ndim else None
        table[name] = judged([float(value.mean()) for value in values], both)
    return table


def judged(by_seed: list[float], both: Interval | None) -> dict[str, Any]:
    """A difference of each seed, and what they decide together. both: over seeds and problems, where that is known."""
    over_seeds = interval_over_seeds(by_seed)
    row = {"mean": over_seeds.mean, "over_seeds": bounds(over_seeds), "by_seed": by_seed}
    if both is not None:
        row["over_seeds_and_problems"] = bounds(both)
    verdicts = {interval.verdict for interval in (over_seeds, both) if interval is not None}
    row["verdict"] = verdicts.pop() if len(verdicts) == 1 else "undecided"
    return row | {"p": paired_p_value(by_seed)}


def bounds(interval: Interval) -> list[float] | None:
    """[low, high], or None where there is none."""
    return [interval.low, interval.high] if np.isfinite(interval.low) else None


def is_decided(found: dict[str, Any], primary: bool) -> bool:
    """Whether a difference is decided: in the primary measure, by its intervals, with Holm's p below 0.05."""
    p = found.get("p_holm")
    return primary and found["verdict"] != "undecided" and p is not None and p < 0.05
