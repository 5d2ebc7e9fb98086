"""The report of a comparison: report.html (self-contained), summary.json, figures/, and a table for the terminal."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from steer_core.common.errors import SteerError
from steer_core.common.files import write_atomically
from steer_core.common.settings import to_dict
from steer_core.compare.comparison import Comparison
from steer_core.compare.plan import Plan
from steer_core.compare.report import wording as say
from steer_core.compare.report.captions import CAPTIONS
from steer_core.compare.report.figures import look, save_figures
from steer_core.compare.report.probes import absence, quality
from steer_core.config.config import Config
from steer_core.interventions import catalogue
from steer_core.stats.intervals import Interval

FEWEST_SEEDS = 3
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "number": say.number,
    "bounds": say.bounds,
    "verdict": say.verdict,
    "count": say.count,
}


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write figures/, summary.json and report.html into `folder`; the path of report.html.

    Works on partial comparisons. The html holds everything it shows: no script, font or link of
    another place. Both files are written aside and renamed. Raises SteerError where no figure can
    be drawn yet or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = save_figures(comparison, folder / "figures")
        write_atomically(folder / "summary.json", json.dumps(summary(comparison), indent=2, allow_nan=False) + "\n")
        page = render(comparison, {name: path.with_suffix(".svg").read_bytes() for name, path in figures.items()})
        write_atomically(folder / "report.html", page)
    except OSError as error:
        raise SteerError(f"report {folder}: cannot be written ({error.strerror}); name another folder") from error
    return folder / "report.html"


def render(comparison: Comparison, figures: dict[str, bytes]) -> str:
    """report.html as text. figures: SVG by name."""
    plan = comparison.plan
    primary = primary_measure(comparison)
    return _TEMPLATES.get_template("report.html.j2").render(
        comparison=comparison,
        plan=plan,
        baseline=comparison.label(plan.baseline),
        colours={arm: look(comparison, arm)[0] for arm in plan.arms},
        columns=["entropy", *(f"pass@{k}" for k in comparison.ks)],
        primary=primary,
        seeds=finished_seeds(comparison),
        happened=what_happened(comparison),
        by_arm=arm_by_arm(comparison),
        slower=against_controls(comparison),
        banners=banners(comparison),
        levels=comparison.levels(),
        base=comparison.base_levels(),
        differences=comparison.differences(),
        equal=comparison.differences_at_equal_pass1(),
        controls={
            control: (comparison.differences(control), comparison.differences_at_equal_pass1(control))
            for control in plan.controls
            if control in set(comparison.final().arm)
        },
        level=comparison.common_level(),
        reached=reached(comparison),
        intervals=interval_count(comparison),
        figures=[
            {
                "name": name,
                "uri": "data:image/svg+xml;base64," + base64.b64encode(image).decode(),
                "title": CAPTIONS[name].title,
                "shows": CAPTIONS[name].shows(comparison),
                "numbers": CAPTIONS[name].numbers(comparison),
            }
            for name, image in figures.items()
        ],
        no_estimates=absence(comparison),
        config=plan.config(plan.baseline, plan.seeds[0]),
        changed=changed_settings(to_dict(Config()), _settings(plan, plan.baseline)),
        overrides={arm: changed_settings(_settings(plan, plan.baseline), _settings(plan, arm)) for arm in plan.arms},
        environment=comparison.environment,
        catalogue=catalogue(),
    )


def summary(comparison: Comparison) -> dict[str, Any]:
    """Every table of the report as JSON-ready numbers; a bound that does not exist is null."""
    plan = comparison.plan
    hidden = ["correct", "samples"]
    return _clean(
        {
            "complete": comparison.complete,
            "baseline": plan.baseline,
            "labels": {arm: comparison.label(arm) for arm in plan.arms},
            "seeds": plan.seeds,
            "finished_seeds": finished_seeds(comparison),
            "interval": "95%; levels of pass@k: bootstrap over problems; all else: Student t over seeds",
            "base": comparison.base_levels(),
            "levels": comparison.levels(),
            "changes_from_base": comparison.changes_from_base(),
            "differences_at_equal_steps": comparison.differences(),
            "common_pass1_level": comparison.common_level(),
            "at_equal_pass1": comparison.at_equal_pass1().to_dict("records"),
            "differences_at_equal_pass1": comparison.differences_at_equal_pass1(),
            "against_controls": {
                control: {
                    "at_equal_steps": comparison.differences(control),
                    "at_equal_pass1": comparison.differences_at_equal_pass1(control),
                }
                for control in plan.controls
            },
            "estimates": quality(comparison),
            "evaluations": comparison.curves().drop(columns=hidden, errors="ignore").to_dict("records"),
            "environment": comparison.environment,
            "notes": comparison.notes,
            "plan": to_dict(plan),
        }
    )


def summary_table(comparison: Comparison) -> Table:
    """The levels at the last step, and pass@<largest k> at equal pass@1 against the baseline, for the terminal."""
    levels, equal = comparison.levels(), comparison.differences_at_equal_pass1()
    seeds, primary = finished_seeds(comparison), primary_measure(comparison)
    columns = ["entropy", "reward", *(f"pass@{k}" for k in comparison.ks)]
    baseline = comparison.label(comparison.plan.baseline)
    last = f"equal pass@1 ({say.number(comparison.common_level())}): {primary} minus {baseline}"
    table = Table(title=Text("At the last rollout, mean [95% interval]"), title_justify="left", pad_edge=False)
    for name in ("method", "seeds", *columns, last):
        table.add_column(Text(name), justify="left" if name in ("method", last) else "right")
    for arm in comparison.plan.arms:
        row = levels.get(arm, {})
        cells = [_stacked(row[name]) if name in row else say.MISSING for name in columns]
        told = equal.get(arm, {}).get(primary)
        if arm == comparison.plan.baseline:
            outcome = "baseline"
        else:
            outcome = f"{say.verdict(told)}\n{say.difference(told)}" if told else say.MISSING
        table.add_row(Text(comparison.label(arm)), str(len(seeds[arm])), *map(Text, cells), Text(outcome))
    return table


def primary_measure(comparison: Comparison) -> str:
    """What the report judges an arm on, at equal pass@1: pass@<largest k>; entropy where the plan has pass@1 alone."""
    return f"pass@{comparison.largest_k}" if comparison.largest_k > 1 else "entropy"


def finished_seeds(comparison: Comparison) -> dict[str, list[int]]:
    """The seeds with an evaluation at the last step, by arm."""
    final = comparison.final()
    return {arm: sorted(int(seed) for seed in final[final.arm == arm].seed) for arm in comparison.plan.arms}


def what_happened(comparison: Comparison) -> list[str]:
    """The summary in plain language, sentence by sentence, made from the numbers."""
    plan, levels, base = comparison.plan, comparison.levels(), comparison.base_levels()
    baseline, primary = comparison.label(plan.baseline), primary_measure(comparison)
    if plan.baseline not in levels:
        return [
            f"{baseline} has not finished a seed yet, so nothing is compared; the figures show what has been logged."
        ]
    steps = plan.config(plan.baseline, plan.seeds[0]).train.rollouts
    level, sentences = levels[plan.baseline], []
    if base:
        parts = [say.movement("held-out policy entropy", base["entropy"].mean, level["entropy"], "nats a token")]
        parts += [
            f"{name} {say.moved(change)} from {say.number(base[name].mean)} to {say.number(level[name].mean)} "
            f"({say.difference(change)})"
            for name, change in comparison.changes_from_base()[plan.baseline].items()
        ]
        sentences.append(f"Over {say.count(steps, 'rollout')} of {baseline}, {say.listed(parts)}.")
    else:
        sentences.append(
            f"After {say.count(steps, 'rollout')} of {baseline}, held-out policy entropy is "
            f"{say.level(level['entropy'])} nats a token; the base model was not evaluated."
        )
    for where, table in (
        ("At equal steps", comparison.differences()),
        ("At equal pass@1", comparison.differences_at_equal_pass1()),
    ):
        decided = [
            f"{name} {interval.verdict} under {comparison.label(arm)} ({say.difference(interval)})"
            for arm, row in table.items()
            for name, interval in row.items()
            if interval.verdict != "undecided"
        ]
        total = sum(math.isfinite(interval.low) for row in table.values() for interval in row.values())
        if table and not total:
            sentences.append(f"{where}, one seed gives no interval, so no difference from {baseline} is decided.")
        elif total:
            sentences.append(f"{where}, {_decided(decided, total, baseline)}")
    if plan.controls:
        sentences.append(_more_than_slow(comparison, primary))
    return sentences


def _decided(decided: list[str], total: int, baseline: str) -> str:
    if not decided:
        return f"these seeds decide none of the {say.count(total, 'difference')} from {baseline}."
    chance = say.number(0.05 * total, digits=1)
    return (
        f"these seeds decide {len(decided)} of the {say.count(total, 'difference')} from {baseline} "
        f"(chance alone would give about {chance}): {'; '.join(decided)}."
    )


def _more_than_slow(comparison: Comparison, primary: str) -> str:
    verdicts: dict[str, list[str]] = {"higher": [], "lower": [], "undecided": []}
    for control in comparison.plan.controls:
        for arm, row in comparison.differences_at_equal_pass1(control).items():
            if arm != comparison.plan.baseline and arm not in comparison.plan.controls and primary in row:
                verdicts[row[primary].verdict].append(f"{comparison.label(arm)} against {comparison.label(control)}")
    if not any(verdicts.values()):
        return (
            "Whether any effect is more than learning more slowly is not tested yet: no control has a seed in common."
        )
    judged = f"judged on {primary} at equal pass@1"
    parts = []
    if verdicts["higher"]:
        parts.append(f"yes for {say.listed(verdicts['higher'])}")
    if verdicts["lower"]:
        parts.append(f"no, learning more slowly did better, for {say.listed(verdicts['lower'])}")
    if verdicts["undecided"]:
        parts.append(f"undecided for {say.listed(verdicts['undecided'])}")
    return f"Is the effect more than learning more slowly? {judged[0].upper()}{judged[1:]}: {'; '.join(parts)}."


def arm_by_arm(comparison: Comparison) -> dict[str, list[str]]:
    """What each arm did against the baseline, at equal steps and at equal pass@1, in sentences."""
    steps, equal = comparison.differences(), comparison.differences_at_equal_pass1()
    told: dict[str, list[str]] = {}
    for arm in comparison.plan.arms:
        if arm in steps:
            told[arm] = [f"At equal steps, {say.findings(steps[arm])}."]
            if arm in equal:
                level = say.number(comparison.common_level())
                told[arm].append(f"At equal pass@1 ({level}), {say.findings(equal[arm])}.")
    return told


def against_controls(comparison: Comparison) -> list[str]:
    """For every arm that is neither baseline nor control: is it more than learning more slowly?"""
    plan, primary = comparison.plan, primary_measure(comparison)
    tested = [arm for arm in plan.arms if arm != plan.baseline and arm not in plan.controls]
    return [
        say.slower_learning(
            comparison.label(arm),
            comparison.label(control),
            primary,
            comparison.differences_at_equal_pass1(control).get(arm, {}),
        )
        for control in plan.controls
        for arm in tested
    ]


def banners(comparison: Comparison) -> list[str]:
    """What a reader must know first: a partial comparison, too few seeds."""
    plan, seeds, told = comparison.plan, finished_seeds(comparison), []
    planned, done = len(plan.arms) * len(plan.seeds), sum(map(len, seeds.values()))
    if not comparison.complete:
        left = [f"{comparison.label(arm)} {len(seeds[arm])}" for arm in plan.arms]
        told.append(
            f"Partial: {done} of {planned} runs have come to their last evaluation "
            f"(of {say.count(len(plan.seeds), 'seed')}: {', '.join(left)}). "
            "Tables hold finished runs only; everything here may change."
        )
    fewest = min((len(done_seeds) for done_seeds in seeds.values() if done_seeds), default=0)
    if fewest == 1 or len(plan.seeds) == 1:
        told.append("One seed: no interval over seeds can be given, so no difference between methods is decided.")
    elif 0 < fewest < FEWEST_SEEDS or len(plan.seeds) < FEWEST_SEEDS:
        told.append(
            f"Fewer than {FEWEST_SEEDS} seeds: an interval over 2 seeds reaches 12.7 standard errors to each side, "
            "and one that still excludes 0 rests on two values."
        )
    return told


def reached(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Where each arm first reached the common pass@1: means of step, entropy and pass@k; lowest and highest step."""
    frame, told = comparison.at_equal_pass1(), {}
    for arm, rows in frame.groupby("arm"):
        means = rows.drop(columns=["arm", "seed"]).mean().to_dict()
        told[arm] = means | {"lowest": rows.step.min(), "highest": rows.step.max()}
    return told


def interval_count(comparison: Comparison) -> int:
    """How many differences from the baseline the report gives an interval for."""
    tables = (comparison.differences(), comparison.differences_at_equal_pass1())
    return sum(math.isfinite(i.low) for table in tables for row in table.values() for i in row.values())


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """`section.key=value` for every setting of `after` that differs from `before`; the seed is left out."""
    return [
        f"{section}.{key}={json.dumps(value)}"
        for section, part in after.items()
        for key, value in part.items()
        if before[section].get(key) != value and (section, key) != ("train", "seed")
    ]


def _settings(plan: Plan, arm: str) -> dict[str, Any]:
    return to_dict(plan.config(arm, plan.seeds[0]))


def _stacked(interval: Interval) -> str:
    return f"{say.number(interval.mean)}\n{say.bounds(interval)}"


def _clean(value: Any) -> Any:
    """JSON-ready data: intervals as objects, NaN as null, numpy numbers as Python's."""
    if dataclasses.is_dataclass(value):
        return _clean(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _clean(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
