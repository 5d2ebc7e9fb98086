"""The pages of the experiment on when entropy matters: tables and figures, all from the raw rows that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.rows import read_rows
from rich.console import Console
from when_figures import Arms, contrasts_of, curves, forest, paths, profiles
from when_plan import REFERENCE, STAGES, Experiment
from when_rows import plateau_pass1, rows_path
from when_statistics import PRIMARY, levels, with_holm

from steer_core.common.files import json_text, write_atomically
from steer_core.common.tables import markdown_table
from steer_core.stats.intervals import digits_of

COMMAND = "python reproduce/when.py"


def write_report(experiment: Experiment, out: Path, console: Console) -> None:
    """A page a setting that has rows, with its figures, and numbers.json with every number of the pages."""
    numbers = {}
    for setting in experiment.settings:
        parts = [part for stage in STAGES if (part := _stage(experiment, setting, stage, out, numbers))]
        if parts:
            title = experiment.settings[setting].title
            head = f"# {title}\n\nMade by `{COMMAND} --report` from the rows of `{COMMAND} {setting}`."
            write_atomically(out / f"{setting}.md", "\n\n".join([head, *parts]) + "\n")
            console.print(f"report: {out / setting}.md", highlight=False, soft_wrap=True)
    write_atomically(out / "numbers.json", json_text(numbers) + "\n")


def _stage(experiment: Experiment, setting: str, stage: str, out: Path, numbers: dict[str, Any]) -> str | None:
    """A stage's part of its setting's page; None where no run of it came to its end."""
    about, rows = read_rows(rows_path(out, setting, stage))
    arms: Arms = {
        arm: [r for r in rows if r["arm"] == arm and r["finished"]] for arm in about.get("plan", {}).get("arms", ())
    }
    arms = {arm: found for arm, found in arms.items() if found}
    if not arms:
        return None
    labels, base = {arm: about["plan"]["arms"][arm]["label"] for arm in arms}, about["base"]
    found = {arm: levels(own, base, experiment.settings[setting].discovery) for arm, own in arms.items()}
    lines = [f"## {stage.capitalize()}", _told(about, rows, stage)]
    figures = {}
    if stage != "screening":
        figures |= {"curves": curves(arms, labels, base), "paths": paths(arms, labels, base)}
    lines.append(_level_table(found, labels, plateau_pass1([row for own in arms.values() for row in own]), base))
    numbers.setdefault(setting, {})[stage] = {"levels": found}
    if stage == "test" and REFERENCE in arms and len(arms) > 1:
        contrasts = with_holm(contrasts_of(arms, REFERENCE, base))
        numbers[setting][stage]["contrasts"] = contrasts
        lines.append(_contrast_table(contrasts, labels, labels[REFERENCE]))
        figures |= {"contrasts": forest(contrasts, labels, "the reference"), "profile": profiles(arms, labels)}
    for name, figure in figures.items():
        figure.savefig(out / f"{setting}-{stage}-{name}.png", dpi=150)
        lines.append(f"![{name} of {setting}, {stage}]({setting}-{stage}-{name}.png)")
    return "\n\n".join(lines)


def _told(about: dict[str, Any], rows: list[dict[str, Any]], stage: str) -> str:
    """How much of a stage has run, on what, and when."""
    plan, environment = about["plan"], about["environment"]
    planned, done = len(plan["arms"]) * len(plan["seeds"]), sum(row["finished"] for row in rows)
    where = f"{environment.get('processor', 'unknown processor')}, {str(environment.get('date', ''))[:10]}"
    return f"{done} of {planned} runs ({len(plan['arms'])} arms x {len(plan['seeds'])} seeds); {where}."


def _level_table(
    found: dict[str, Any], labels: dict[str, str], plateau: dict[str, float], base: dict[str, Any] | None
) -> str:
    head = ["arm", "seeds", "entropy", "pass@1", "pass@32", "area under pass@1", "pass@1, last three evaluations"]
    discovery = any("discovered" in row for row in found.values())
    lines = []
    for arm, row in found.items():
        cells = [_interval(row[name]) for name in ("entropy", "pass@1", "pass@32", "area")]
        more = [", ".join("never" if x == float("inf") else f"{x:.0f}" for x in row["discovered"])] if discovery else []
        lines.append([labels[arm], str(len(row["seeds"])), *cells, f"{plateau[arm]:.3f}", *more])
    return markdown_table([*head, *(["discovered at rollout"] if discovery else [])], lines)


def _contrast_table(contrasts: dict[str, dict[str, Any]], labels: dict[str, str], reference: str) -> str:
    head = ["arm", "measure", f"minus {reference}", "p", "p (Holm)", "verdict", "could be found with power 0.8"]
    lines = []
    for arm, found in contrasts.items():
        for name, row in found.get("measures", {}).items():
            bounds = row.get("over_seeds_and_problems") or row["over_seeds"] or [float("nan")] * 2
            verdict = "exploratory" if name != PRIMARY else "decided" if row["decided"] else "undecided"
            p_holm = f"{row['p_holm']:.3f}" if name == PRIMARY else ""
            value = _interval({"mean": row["mean"], "low": bounds[0], "high": bounds[1]}, sign="+")
            lines.append([labels[arm], name, value, f"{row['p']:.3f}", p_holm, verdict, f"{row['detectable']:.3f}"])
        if found:
            chance = _interval(found["probability_of_improvement"])
            lines.append([labels[arm], "probability of improvement", chance, "", "", "exploratory", ""])
    return markdown_table(head, lines)


def _interval(found: dict[str, Any], sign: str = "") -> str:
    mean, low, high = found["mean"], found["low"], found["high"]
    if low is None or low != low:
        return f"{mean:{sign}.3f}"
    digits = digits_of(low, high)
    return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
