"""What the tournament found: levels, differences at equal steps and at equal pass@1, and what is decided.

Two runs are compared at equal pass@1 where both, seed by seed, first reach the highest pass@1 that both reach at some
evaluation; values between evaluations are interpolated, problem by problem. A seed in which one of the two never rose
above the base model is left out and counted. Each difference carries two 95% intervals: Student t over the training
seeds, and a bootstrap over seeds and problems together (pass@k only). It is called decided where every interval it has
excludes 0. For the measure named in PRIMARY, p values (t) are corrected by Holm over the arms of the stage.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from tournament_figures import save_figures

from steer_core.comparison import Comparison, load_comparison
from steer_core.errors import SteerError
from steer_core.evaluation import pass_at_k
from steer_core.run import write_atomically
from steer_core.statistics import (
    Interval,
    at_first_crossing,
    bootstrap_over_seeds_and_problems,
    holm,
    interval_over_seeds,
    paired_p_value,
)

NOTES = [
    "Levels: pass@k with a bootstrap over seeds and problems, entropy and area with Student t over seeds; 95%.",
    "Area: mean pass@1 over training, trapezoid over the evaluations, the base model's included.",
    "Differences are paired by seed. Decided: the t interval over seeds excludes 0 and, for pass@k, so does the "
    "bootstrap over seeds and problems.",
    "Equal pass@1: at the highest level that both runs of a seed reach; seeds in which one never rose above the base "
    "model are left out.",
]


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


def at_equal_pass1(comparison: Comparison, arm: str, against: str) -> list[dict[str, Any]]:
    """Arm minus another at their shared level, one entry a seed that has one: entropy, and pass@k by problem."""
    mine, theirs = runs_of(comparison, arm), runs_of(comparison, against)
    gaps = []
    for seed in sorted(mine.keys() & theirs.keys()):
        level = shared_level(mine[seed], theirs[seed])
        if level is None:
            continue
        gap: dict[str, Any] = {"seed": seed, "level": level}
        for name, column in measures(comparison).items():
            values = [
                at_first_crossing(
                    run["pass@1"], by_problem(run, int(name[5:])) if name != "entropy" else run[column], level
                )
                for run in (mine[seed], theirs[seed])
            ]
            gap[name] = values[0] - values[1]
        gaps.append(gap)
    return gaps


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
    """By measure: the mean difference, its intervals, its p value and whether it is decided."""
    table = {}
    for name in [key for key in (gaps[0] if gaps else ()) if key not in ("seed", "level")]:
        values = [np.asarray(gap[name]) for gap in gaps]
        means = [float(value.mean()) for value in values]
        over_seeds, found = interval_over_seeds(means), [interval_over_seeds(means)]
        row = {"mean": over_seeds.mean, "over_seeds": bounds(over_seeds), "by_seed": means}
        if values[0].ndim:
            both = bootstrap_over_seeds_and_problems(values)
            row["over_seeds_and_problems"] = bounds(both)
            found.append(both)
        verdicts = {interval.verdict for interval in found}
        row["verdict"] = verdicts.pop() if len(verdicts) == 1 else "undecided"
        table[name] = row | {"p": paired_p_value(means)}
    return table


def bounds(interval: Interval) -> list[float] | None:
    """[low, high], or None where there is none."""
    return [interval.low, interval.high] if np.isfinite(interval.low) else None


def corrected(tables: dict[str, dict[str, Any]], primary: str) -> None:
    """Adds Holm's p of the primary measure, over all arms, to each arm's table."""
    for arm, p in holm({arm: row[primary]["p"] for arm, row in tables.items() if primary in row}).items():
        tables[arm][primary]["p_holm"] = p


def levels(comparison: Comparison, arm: str) -> dict[str, Any]:
    """What an arm reached at its last evaluation, its whole way there by seed, and what its updates cost."""
    runs = runs_of(comparison, arm)
    ends = [run.tail(1) for run in runs.values()]
    row = {"seeds": list(runs), "entropy": asdict(interval_over_seeds([e.policy_entropy.iloc[0] for e in ends]))}
    for k in comparison.ks:
        values = np.stack([by_problem(end, k)[0] for end in ends])
        row[f"pass@{k}"] = asdict(bootstrap_over_seeds_and_problems(values))
    row["area"] = asdict(interval_over_seeds([area(run) for run in runs.values()]))
    logged = comparison.metrics[(comparison.metrics.arm == arm) & comparison.metrics.seed.isin(list(runs))]
    for name in ("lambda/mean", "lambda/share_within_1pct_of_1", "grad_norm/mean", "probe/update_norm"):
        row[name] = float(logged[name].mean()) if name in logged else None
    columns = {"step": "step", "entropy": "policy_entropy", **{f"pass@{k}": f"pass@{k}" for k in comparison.ks}}
    row["curves"] = {
        seed: {name: run[column].tolist() for name, column in columns.items()} for seed, run in runs.items()
    }
    row["update_seconds"] = float((logged["time/update_seconds"] - logged.get("time/probe_seconds", 0)).median())
    return row


def stage_results(comparison: Comparison) -> dict[str, Any]:
    """Every number of a stage, of the runs that have finished."""
    plan, primary = comparison.plan, f"pass@{comparison.largest_k}"
    finished = set(comparison.final().arm)
    arms = [arm for arm in plan.arms if arm in finished]
    rows: dict[str, Any] = {arm: {"label": comparison.label(arm), **levels(comparison, arm)} for arm in arms}
    references = [plan.baseline, *plan.controls]
    for reference in references:
        others = [arm for arm in arms if arm != reference] if reference in arms else []
        tables: dict[str, dict] = {"equal_steps": {}, "equal_pass@1": {}}
        for arm in others:
            shared = at_equal_pass1(comparison, arm, reference)
            tables["equal_steps"][arm] = differences(at_equal_steps(comparison, arm, reference))
            tables["equal_pass@1"][arm] = differences(shared)
            rows[arm].setdefault("against", {})[reference] = {
                "seeds_at_equal_pass@1": len(shared),
                "level": float(np.mean([gap["level"] for gap in shared])) if shared else None,
                "equal_steps": tables["equal_steps"][arm],
                "equal_pass@1": tables["equal_pass@1"][arm],
            }
        for table in tables.values():
            corrected(table, primary)
    planned = len(plan.arms) * len(plan.seeds)
    return {
        "title": plan.note,
        "baseline": plan.baseline,
        "controls": plan.controls,
        "primary": primary,
        "runs": len(comparison.final()),
        "planned": planned,
        "base": {name: asdict(value) for name, value in comparison.base_levels().items()},
        "arms": rows,
        "environment": comparison.environment,
    }


def decided(stage: dict[str, Any], reference: str) -> list[str]:
    """At equal pass@1, the differences from a reference that are decided, in words; the primary's Holm p beside it."""
    said = []
    for row in stage["arms"].values():
        table = row.get("against", {}).get(reference, {}).get("equal_pass@1", {})
        for name, found in table.items():
            if found["verdict"] != "undecided":
                holm_p = f", p (Holm) {found['p_holm']:.3f}" if "p_holm" in found else ""
                said.append(f"{row['label']}: {name} {found['verdict']} ({difference_text(found)}{holm_p})")
    return said


def difference_text(found: dict[str, Any]) -> str:
    """`+0.012 [-0.003, +0.027]`, the interval over seeds."""
    span = f" [{found['over_seeds'][0]:+.3f}, {found['over_seeds'][1]:+.3f}]" if found["over_seeds"] else ""
    return f"{found['mean']:+.3f}{span}"


def level_text(interval: dict[str, float]) -> str:
    """`0.212 [0.180, 0.240]`."""
    span = f" [{interval['low']:.3f}, {interval['high']:.3f}]" if np.isfinite(interval["low"]) else ""
    return f"{interval['mean']:.3f}{span}"


def stage_markdown(stage: dict[str, Any]) -> str:
    """The tables of a stage and what they decide."""
    ks = [name for name in next(iter(stage["arms"].values())) if name.startswith("pass@")]
    lines = [f"## {stage['title']}", "", f"{stage['runs']} of {stage['planned']} runs have finished.", ""]
    lines += [f"| method | seeds | entropy | {' | '.join(ks)} | area | mean weight | update time |"]
    lines += ["| --- " * (6 + len(ks)) + "|"]
    if stage["base"]:
        cells = " | ".join(level_text(stage["base"][k]) for k in ks)
        lines.append(f"| base model |  | {stage['base']['entropy']['mean']:.3f} | {cells} |  |  |  |")
    unit = stage["arms"].get(stage["baseline"], {}).get("update_seconds")
    for row in stage["arms"].values():
        cells = " | ".join(level_text(row[k]) for k in ks)
        weight = "" if row["lambda/mean"] in (None, 1.0) else f"{row['lambda/mean']:.3f}"
        cost = f"{row['update_seconds'] / unit:.2f}" if unit else ""
        lines.append(
            f"| {row['label']} | {len(row['seeds'])} | {level_text(row['entropy'])} | {cells} | "
            f"{level_text(row['area'])} | {weight} | {cost} |"
        )
    for reference in [stage["baseline"], *stage["controls"]]:
        if reference not in stage["arms"]:
            continue
        label = stage["arms"][reference]["label"]
        names = ["entropy", *[k for k in ks if k != "pass@1"]]
        lines += ["", f"At equal pass@1, minus {label}:", ""]
        lines += [f"| method | seeds | level | {' | '.join(names)} | p (Holm) of {stage['primary']} |"]
        lines += ["| --- " * (4 + len(names)) + "|"]
        for row in stage["arms"].values():
            told = row.get("against", {}).get(reference)
            if told is None:
                continue
            if not told["equal_pass@1"]:
                lines.append(f"| {row['label']} | 0 | never above the base model |{' |' * (1 + len(names))}")
                continue
            found = told["equal_pass@1"]
            marks = [f"**{difference_text(found[n])}**" if found[n]["verdict"] != "undecided" else
                     difference_text(found[n]) for n in names]  # fmt: skip
            p = found[stage["primary"]].get("p_holm", float("nan"))
            lines.append(
                f"| {row['label']} | {told['seeds_at_equal_pass@1']} | {told['level']:.3f} | {' | '.join(marks)} | "
                f"{p:.3f} |"
            )
        said = decided(stage, reference)
        lines += ["", f"Decided against {label}: {'; '.join(said) or 'nothing'}."]
    return "\n".join(lines)


def choices_markdown(tuning: dict[str, Any], labels: dict[str, str]) -> str:
    """What every method chose, and from what."""
    lines = ["## What each method chose in tuning", "", "| method | strength | learning rate x | trials |"]
    lines += ["| --- | --- | --- | --- |"]
    plain = {"grpo": {"strength": None, "learning_rate": 1, "tried": tuning["grpo"]}}
    for name, choice in (plain | tuning["methods"]).items():
        tried = ", ".join(
            f"{'' if t['strength'] is None else format(t['strength'], 'g') + ' '}x{t['learning_rate']:g}: "
            + (f"{t['at_level']:.3f}" if t["at_level"] is not None else f"(pass@1 {t['highest_pass@1']:.3f})")
            for t in choice["tried"]
        )
        strength = "" if choice["strength"] is None else f"{choice['strength']:g}"
        lines.append(
            f"| {labels.get(name, 'GRPO (runs at each)')} | {strength} | {choice['learning_rate']:g} | {tried} |"
        )
    return "\n".join(lines)


def write_results(plan: Any, folder: Path, out: Path, command: str, console: Console) -> None:
    """results.json, tournament.md and the figures, of what has run so far."""

    comparisons = {
        name: load_comparison(folder / name) for name in plan.stages if (folder / name / "plan.yaml").exists()
    }
    comparisons = {name: one for name, one in comparisons.items() if len(one.evaluations) and len(one.final())}
    if not comparisons:
        raise SteerError(f"--out: {folder} holds no finished run of a stage yet; run the tournament without --report")
    tuning = json.loads((folder / "chosen.json").read_text(encoding="utf-8"))
    comparisons = {
        name: replace(one, environment=one.environment | {"command": command}) for name, one in comparisons.items()
    }
    stages = {name: stage_results(comparison) for name, comparison in comparisons.items()}
    labels = {name: method.label for name, method in plan.methods.items()}
    first = next(iter(stages.values()))["environment"]
    about = f"`{command}`, {first['date'][:10]}, {first['cores']} cores of an {first['processor']}."
    parts = ["# The tournament", about, *[f"- {note}" for note in NOTES], choices_markdown(tuning, labels)]
    text = "\n\n".join([*parts, *map(stage_markdown, stages.values())]) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = {
            "command": command,
            "notes": NOTES,
            "chosen": tuning["methods"],
            "grpo_in_tuning": tuning["grpo"],
            "stages": stages,
        }
        write_atomically(out / "results.json", json.dumps(_clean(found), indent=1) + "\n")
        write_atomically(out / "tournament.md", text)
        save_figures(comparisons, stages, out)
    except OSError as error:
        raise SteerError(f"--results: {out} cannot be written ({error.strerror}); name another folder") from error
    for name, stage in stages.items():
        said = decided(stage, stage["baseline"])
        console.print(f"{name}: decided at equal pass@1 against the baseline: {'; '.join(said) or 'nothing'}")
    console.print(f"wrote {out / 'tournament.md'}, results.json and the figures", highlight=False, soft_wrap=True)


def _clean(value: Any) -> Any:
    """JSON-ready: six decimals, null for what does not exist."""
    if isinstance(value, dict):
        return {key: _clean(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part) for part in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if np.isfinite(value) else None
    return value
