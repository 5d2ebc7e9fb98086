"""The report of a comparison or of one run: report.html, summary.json, figures/, and a table for the terminal."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from steer_core.common.errors import SteerError
from steer_core.common.files import json_ready, json_text, refusal, write_atomically
from steer_core.common.settings import to_dict
from steer_core.compare.comparison import Comparison
from steer_core.compare.plan import Plan
from steer_core.compare.report import findings, glance, one_run
from steer_core.compare.report import wording as say
from steer_core.compare.report.captions import CAPTIONS
from steer_core.compare.report.figures import FIGURES, look, save_figures
from steer_core.compare.report.one_run import is_one_run
from steer_core.compare.report.probes import absence, quality
from steer_core.compare.report.templates import templates
from steer_core.config.config import Config
from steer_core.interventions import catalogue
from steer_core.stats.intervals import Interval

_TEMPLATES = templates()


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write figures/, summary.json and report.html into `folder`; the path of report.html.

    Works on partial comparisons. The html holds everything it shows: no script, font or link of
    another place. Both files are written aside and renamed. Raises SteerError where no figure can
    be drawn yet or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = one_run.FIGURES if is_one_run(comparison) else FIGURES
        figures = save_figures(comparison, folder / "figures", names)
        write_atomically(folder / "summary.json", json_text(summary(comparison)))
        page = render(comparison, {name: path.with_suffix(".svg").read_bytes() for name, path in figures.items()})
        write_atomically(folder / "report.html", page)
    except OSError as error:
        raise SteerError(f"report {folder}: cannot be written ({refusal(error)}); name another --out") from error
    return folder / "report.html"


def render(comparison: Comparison, figures: dict[str, bytes]) -> str:
    """report.html as text: of several methods a comparison, of one what happened in its run. figures: SVG by name."""
    plan, one = comparison.plan, is_one_run(comparison)
    return _TEMPLATES.get_template("run.html.j2" if one else "comparison.html.j2").render(
        comparison=comparison,
        plan=plan,
        **(_run_parts(comparison) if one else _comparison_parts(comparison)),
        result=glance.result(comparison),
        definitions=glance.DEFINITIONS,
        verdicts=glance.verdicts(comparison),
        marks=glance.MARKS,
        figures=[
            {
                "name": name,
                "first": name == next((first for first in glance.FIGURES if first in figures), None),
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
        environment=comparison.environment,
    )


def _comparison_parts(comparison: Comparison) -> dict[str, Any]:
    """What comparison.html.j2 shows beside what every report does."""
    plan = comparison.plan
    return {
        "baseline": comparison.label(plan.baseline),
        "colours": {arm: look(comparison, arm)[0] for arm in plan.arms},
        "columns": ["entropy", *(f"pass@{k}" for k in comparison.ks)],
        "primary": findings.primary_measure(comparison),
        "seeds": findings.finished_seeds(comparison),
        "happened": findings.what_happened(comparison),
        "by_arm": findings.arm_by_arm(comparison),
        "slower": findings.against_controls(comparison),
        "banners": findings.banners(comparison),
        "levels": comparison.levels(),
        "base": comparison.base_levels(),
        "differences": comparison.differences(),
        "equal": comparison.differences_at_equal_pass1(),
        "controls": {
            control: (comparison.differences(control), comparison.differences_at_equal_pass1(control))
            for control in plan.controls
            if control in set(comparison.final().arm)
        },
        "level": comparison.common_level(),
        "reached": findings.reached(comparison),
        "intervals": findings.interval_count(comparison),
        "overrides": {arm: changed_settings(_settings(plan, plan.baseline), _settings(plan, arm)) for arm in plan.arms},
        "catalogue": catalogue(),
    }


def _run_parts(comparison: Comparison) -> dict[str, Any]:
    """What run.html.j2 shows beside what every report does."""
    return {
        "label": comparison.label(comparison.plan.baseline),
        "banners": one_run.banners(comparison),
        "happened": one_run.what_happened(comparison),
        "changes": one_run.changes(comparison),
    }


def summary(comparison: Comparison) -> dict[str, Any]:
    """Every table of the report as JSON-ready numbers; a bound that does not exist is null."""
    plan, one = comparison.plan, is_one_run(comparison)
    return json_ready(
        {
            "complete": comparison.complete,
            "baseline": plan.baseline,
            "labels": {arm: comparison.label(arm) for arm in plan.arms},
            "seeds": plan.seeds,
            "finished_seeds": findings.finished_seeds(comparison),
            "interval": "95%; levels of pass@k: bootstrap over problems; all else: Student t over seeds",
            "base": comparison.base_levels(),
            "levels": comparison.levels(),
            **({"changes": one_run.changes(comparison)} if one else _differences(comparison)),
            "estimates": quality(comparison),
            "weights": comparison.weights(),
            "evaluations": comparison.curves().drop(columns=["correct", "samples"], errors="ignore").to_dict("records"),
            "counts": comparison.counts(),
            "environment": comparison.environment,
            "notes": comparison.notes,
            "plan": to_dict(plan),
        }
    )


def _differences(comparison: Comparison) -> dict[str, Any]:
    return {
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
            for control in comparison.plan.controls
        },
    }


def summary_table(comparison: Comparison) -> Table:
    """For the terminal. Of one run: `one_run.change_table`.

    Else the levels at the last step, and pass@<largest k> at equal pass@1 against the baseline.
    """
    if is_one_run(comparison):
        return one_run.change_table(comparison)
    levels, equal = comparison.levels(), comparison.differences_at_equal_pass1()
    seeds, primary = findings.finished_seeds(comparison), findings.primary_measure(comparison)
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
