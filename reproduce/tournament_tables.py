"""What the tournament found, as JSON and tables: levels, differences, and what is decided.

The measure named primary, pass@<largest k> at equal pass@1, is called decided where its intervals exclude 0 and
Holm's p (t, over the arms of the stage) is below 0.05; all else is exploratory. How two methods are compared:
`tournament_statistics.py`. Every evaluation's counts by problem are kept, so that any interval can be made again.
Stages of before 2026-11-29 lack them and have the interval over seeds alone (`by_seeds_alone`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tournament_figures import save_figures
from tournament_statistics import (
    area,
    at_equal_steps,
    at_shared_pass1,
    by_problem,
    differences,
    is_decided,
    runs_of,
)

from steer_core import SteerError
from steer_core.common.files import write_atomically
from steer_core.compare.comparison import Comparison, load_comparison
from steer_core.stats.intervals import Interval, digits_of, holm, interval_over_seeds, interval_over_seeds_and_problems

NOTES = [
    "Levels: pass@k with an interval over seeds and problems, entropy and area with Student t over seeds; 95%.",
    "Area: mean pass@1 over training, trapezoid over the evaluations, the base model's included.",
    "Step: length of the optimiser's steps in all parameters, gradient: its norm before clipping, both over the first "
    "arm's; update time: of an update, probe apart, over the first arm's (the machine did other work meanwhile).",
    "Differences are paired by seed; in brackets Student t over seeds. (*): that interval excludes 0, and so does the "
    "one over seeds and problems where counts by problem were kept. Bold, decided: the primary measure, (*), and p "
    "(Holm, over the arms of the stage) below 0.05. All else is exploratory and not corrected for its number.",
    "The rule was changed after results were seen, twice. While the runs were in progress, an interval over seeds and "
    "problems had to exclude 0 too. On 2026-11-29 that interval, which was too wide, went: it drew seeds and problems "
    "independently (intervals.md). With it nothing was decided.",
    "Equal pass@1: at the highest level that both runs of a seed reach; seeds in which one never rose above the base "
    "model are left out.",
]


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
        row[f"pass@{k}"] = asdict(interval_over_seeds_and_problems(values))
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
    """Every number of a stage, of the runs that have finished, as results.json keeps them."""
    plan, primary = comparison.plan, f"pass@{comparison.largest_k}"
    finished = set(comparison.final().arm)
    arms = [arm for arm in plan.arms if arm in finished]
    rows: dict[str, Any] = {arm: {"label": comparison.label(arm), **levels(comparison, arm)} for arm in arms}
    references = [plan.baseline, *plan.controls]
    for reference in references:
        others = [arm for arm in arms if arm != reference] if reference in arms else []
        tables: dict[str, dict] = {"equal_steps": {}, "equal_pass@1": {}}
        for arm in others:
            shared = at_shared_pass1(comparison, arm, reference)
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
    results = {
        "title": plan.note,
        "baseline": plan.baseline,
        "controls": plan.controls,
        "primary": primary,
        "runs": len(comparison.final()),
        "planned": planned,
        "base": {name: asdict(value) for name, value in comparison.base_levels().items()},
        "arms": rows,
        "environment": comparison.environment,
        "evaluations": comparison.counts(),
    }
    return _clean(results)


def by_seeds_alone(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage whose counts by problem were not kept, judged by the intervals over seeds; any other as it is.

    What such a stage says over seeds and problems was drawn independently, which is too wide: it goes, but in the
    levels of pass@k, which have no other interval.
    """
    if "evaluations" in stage:
        return stage
    for told in (told for row in stage["arms"].values() for told in row.get("against", {}).values()):
        for found in (found for how in ("equal_steps", "equal_pass@1") for found in told[how].values()):
            found.pop("over_seeds_and_problems", None)
            known = found["over_seeds"]
            found["verdict"] = Interval(found["mean"], *known).verdict if known else "undecided"
    return stage


def decided(stage: dict[str, Any], reference: str) -> tuple[list[str], list[str]]:
    """At equal pass@1 against a reference, in words: (what is decided in the primary measure, exploratory findings).

    Decided: the intervals exclude 0 and Holm's p is below 0.05. Exploratory: the intervals exclude 0, uncorrected.
    """
    firm, exploratory = [], []
    for row in stage["arms"].values():
        table = row.get("against", {}).get(reference, {}).get("equal_pass@1", {})
        for name, found in table.items():
            if found["verdict"] == "undecided":
                continue
            p = found.get("p_holm")
            text = f"{row['label']}: {name} {found['verdict']} ({difference_text(found)}"
            text += f", p (Holm) {p:.3f})" if p is not None else ")"
            (firm if is_decided(found, name == stage["primary"]) else exploratory).append(text)
    return firm, exploratory


def difference_text(found: dict[str, Any]) -> str:
    """`+0.012 [-0.003, +0.027]`, the interval over seeds, with the digits that tell a bound from 0."""
    if not found["over_seeds"]:
        return f"{found['mean']:+.3f}"
    low, high = found["over_seeds"]
    digits = digits_of(low, high)
    return f"{found['mean']:+.3f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def level_text(interval: dict[str, float]) -> str:
    """`0.212 [0.180, 0.240]`."""
    span = f" [{interval['low']:.3f}, {interval['high']:.3f}]" if interval["low"] is not None else ""
    return f"{interval['mean']:.3f}{span}"


def stage_markdown(stage: dict[str, Any]) -> str:
    """The tables of a stage and what they decide."""
    ks = [name for name in next(iter(stage["arms"].values())) if name.startswith("pass@")]
    about = stage["environment"]
    made = f"`{about['command']}`, {about['date'][:10]}, {about['cores']} cores of an {about['processor']}"
    lines = [f"## {stage['title']}", "", f"{stage['runs']} of {stage['planned']} runs have finished ({made}).", ""]
    if "evaluations" not in stage:
        lines += [
            "Counts by problem were not kept. Differences are judged over seeds alone, at these 100 problems; the "
            "intervals of pass@k below come from independent draws and are too wide.",
            "",
        ]
    lines += [f"| method | seeds | entropy | {' | '.join(ks)} | area | mean weight | gradient | step | update time |"]
    lines += ["| --- " * (8 + len(ks)) + "|"]
    if stage["base"]:
        cells = " | ".join(level_text(stage["base"][k]) for k in ks)
        lines.append(f"| base model |  | {stage['base']['entropy']['mean']:.3f} | {cells} |  |  |  |  |  |")
    unit = stage["arms"].get(stage["baseline"], {})
    for row in stage["arms"].values():
        cells = " | ".join(level_text(row[k]) for k in ks)
        weight = "" if row["lambda/mean"] in (None, 1.0) else f"{row['lambda/mean']:.3f}"
        ratios = " | ".join(
            f"{row[name] / unit[name]:.2f}" if unit and row[name] is not None and unit[name] else ""
            for name in ("grad_norm/mean", "probe/update_norm", "update_seconds")
        )
        lines.append(
            f"| {row['label']} | {len(row['seeds'])} | {level_text(row['entropy'])} | {cells} | "
            f"{level_text(row['area'])} | {weight} | {ratios} |"
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
            marks = [
                f"{'**' * is_decided(found[n], n == stage['primary'])}{difference_text(found[n])}"
                f"{'**' * is_decided(found[n], n == stage['primary'])}{' (*)' * (found[n]['verdict'] != 'undecided')}"
                for n in names
            ]
            p = found[stage["primary"]].get("p_holm")
            lines.append(
                f"| {row['label']} | {told['seeds_at_equal_pass@1']} | {told['level']:.3f} | {' | '.join(marks)} | "
                f"{'' if p is None else format(p, '.3f')} |"
            )
        firm, exploratory = decided(stage, reference)
        lines += ["", f"Decided against {label}: {'; '.join(firm) or 'nothing'}.", ""]
        lines += [f"Exploratory, not corrected for their number: {'; '.join(exploratory) or 'nothing'}."]
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


def read_results(out: Path) -> dict[str, Any]:
    """results.json of an earlier tournament; empty where there is none."""
    path = out / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_results(
    plan: Any, folder: Path, out: Path, command: str, console: Console, earlier: dict[str, Any] | None = None
) -> None:
    """results.json, tournament.md and the figures, of what has run so far.

    earlier: the results of another run of the tournament, whose other stages stay in the file; see `by_seeds_alone`.
    """
    comparisons = {
        name: load_comparison(folder / name) for name in plan.stages if (folder / name / "plan.yaml").exists()
    }
    comparisons = {name: one for name, one in comparisons.items() if len(one.evaluations) and len(one.final())}
    if not (comparisons or earlier):
        raise SteerError(f"--out: {folder} holds no finished run of a stage yet; run the tournament without --report")
    earlier = earlier or {}
    if (folder / "chosen.json").is_file():
        tuning = json.loads((folder / "chosen.json").read_text(encoding="utf-8"))
    else:
        tuning = {"methods": earlier["chosen"], "grpo": earlier["grpo_in_tuning"]}
    comparisons = {
        name: replace(one, environment=one.environment | {"command": command}) for name, one in comparisons.items()
    }
    known = {name: by_seeds_alone(stage) for name, stage in earlier.get("stages", {}).items()}
    known |= {name: stage_results(one) for name, one in comparisons.items()}
    stages = {name: known[name] for name in plan.stages if name in known}
    labels = {name: method.label for name, method in plan.methods.items()}
    parts = ["# The tournament", *[f"- {note}" for note in NOTES], choices_markdown(tuning, labels)]
    text = "\n\n".join([*parts, *map(stage_markdown, stages.values())]) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = {"notes": NOTES, "chosen": tuning["methods"], "grpo_in_tuning": tuning["grpo"], "stages": stages}
        write_atomically(out / "results.json", json.dumps(found, indent=1) + "\n")
        write_atomically(out / "tournament.md", text)
        save_figures(comparisons, stages, out)
    except OSError as error:
        raise SteerError(f"--results: {out} cannot be written ({error.strerror}); name another folder") from error
    for name, stage in stages.items():
        for reference in [stage["baseline"], *stage["controls"]]:
            if reference in stage["arms"]:
                firm, _ = decided(stage, reference)
                label = stage["arms"][reference]["label"]
                console.print(f"{name}: decided at equal pass@1 against {label}: {'; '.join(firm) or 'nothing'}")
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
