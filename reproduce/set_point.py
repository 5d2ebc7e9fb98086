"""Who holds a chosen entropy curve? Every method that has a target, on three curves, beside GRPO.

    python reproduce/set_point.py             # runs what is not finished, then reports
    python reproduce/set_point.py --quick     # a slice in 2 minutes in runs/set-point-quick: shows the machinery
    python reproduce/set_point.py --report    # only the tables and the figure, from the rows that are kept

The plan is set_point.yaml. Distance: the root mean square of (entropy / target - 1) over the rollouts after the first
ten, entropy as the policy sampled. Cost: seconds of an update over GRPO's, medians. Raw rows:
reproduce/results/set_point.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pipeline.rows import curve, keep_rows, read_rows
from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console
from when_rows import rows_path

from steer_core import STRICT
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import cores
from steer_core.common.errors import INTERRUPTED
from steer_core.common.files import json_text, write_atomically
from steer_core.common.plot_style import ARM_COLOURS, MUTED, label, panels, styled
from steer_core.common.schedules import scheduled, value_at
from steer_core.common.settings import build, read_yaml
from steer_core.common.tables import markdown_table
from steer_core.compare.plan import Arm, Plan
from steer_core.compare.runner import run_comparison, start_comparison

ROOT = Path(__file__).parent.parent
PLAN = Path(__file__).with_suffix(".yaml")
SETTING, STAGE, GRPO = "set", "point", "grpo"


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Curve:
    """What entropy is to follow: a title, and a target as `intervention.target` takes it."""

    title: str
    target: str


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Held:
    """A method that has a target, with its gains."""

    label: str
    overrides: list[str]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class SetPoint:
    """The plan; see set_point.yaml."""

    seeds: list[int] = Field(min_length=1)
    skipped: int = Field(ge=0)
    within: float = Field(gt=0)
    common: dict[str, Any]
    curves: dict[str, Curve] = Field(min_length=1)
    methods: dict[str, Held] = Field(min_length=1)


def plan_of(chosen: SetPoint) -> Plan:
    """Every method on every curve, and GRPO."""
    arms = {GRPO: Arm(label="GRPO")}
    for name, method in chosen.methods.items():
        for key, line in chosen.curves.items():
            own = [f"intervention.name={name}", *method.overrides, f"intervention.target={line.target}"]
            arms[f"{name}.{key}"] = Arm(label=f"{method.label}, {line.title}", overrides=own)
    return Plan(arms=arms, baseline=GRPO, seeds=chosen.seeds, common=chosen.common, note="Who holds a curve?")


def quick(chosen: SetPoint) -> SetPoint:
    """Two methods, one curve, six small rollouts."""
    common = {name: dict(values) for name, values in chosen.common.items()}
    common["train"] |= {"rollouts": 6}
    common["rollout"] |= {"prompts": 16}
    common["evaluation"] |= {"every": 6, "problems": 8}
    methods, curves = (dict(list(part.items())[:2]) for part in (chosen.methods, chosen.curves))
    return dataclasses.replace(chosen, common=common, methods=methods, curves=curves, skipped=2)


def distance(entropies: list[float], target: str, skipped: int) -> float:
    """Root mean square of (entropy / target - 1) over the rollouts after the first `skipped`, which count from 1."""
    line = scheduled(target)
    gaps = [entropy / value_at(line, n) - 1 for n, entropy in enumerate(entropies, 1) if n > skipped]
    return float(np.sqrt(np.mean(np.square(gaps))))


def numbers(chosen: SetPoint, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By method and curve: distances by seed, the cost of an update, pass@1 and entropy at the end; GRPO's for each."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    plain = [np.median(row["metrics"]["time/update_seconds"]) for row in by_arm.get(GRPO, [])]
    table = []
    for name, method in {GRPO: Held(label="GRPO", overrides=[]), **chosen.methods}.items():
        for key, line in chosen.curves.items():
            own = by_arm.get(name if name == GRPO else f"{name}.{key}", [])
            if not own:
                continue
            seconds = [np.median(row["metrics"]["time/update_seconds"]) for row in own]
            table.append(
                {
                    "method": method.label,
                    "curve": key,
                    "distances": [distance(r["metrics"]["entropy/policy"], line.target, chosen.skipped) for r in own],
                    "update_over_grpo": float(np.median(seconds) / np.median(plain)) if plain else None,
                    "pass@1": float(np.mean([curve(row, 1)[-1] for row in own])),
                    "pass@32": float(np.mean([curve(row, 32)[-1] for row in own])),
                    "entropy": float(np.mean([row["metrics"]["entropy/policy"][-1] for row in own])),
                }
            )
    return table


@styled
def figure_of(chosen: SetPoint, rows: list[dict[str, Any]]) -> Figure:
    """A panel a curve: entropy of every method over rollouts, the target dashed, a band of what counts as held."""
    figure, axes = panels(1, len(chosen.curves), height=2.7, width=7.6, sharey=True)
    for axis, (key, line) in zip(axes.flat, chosen.curves.items(), strict=True):
        for colour, name in zip(ARM_COLOURS, [GRPO, *chosen.methods], strict=False):
            arm = name if name == GRPO else f"{name}.{key}"
            named = "GRPO" if name == GRPO else chosen.methods[name].label
            for i, row in enumerate(row for row in rows if row["arm"] == arm):
                entropies = row["metrics"]["entropy/policy"]
                axis.plot(range(1, len(entropies) + 1), entropies, color=colour, lw=0.9, label=f"{'_' * i}{named}")
        steps = np.arange(1, chosen.common["train"]["rollouts"] + 1)
        target = np.array([value_at(scheduled(line.target), int(n)) for n in steps])
        axis.plot(steps, target, color=MUTED, lw=1, ls="--", label="target, within 5%")
        axis.fill_between(
            steps, target * (1 - chosen.within), target * (1 + chosen.within), color=MUTED, alpha=0.2, lw=0
        )
        label(axis, line.title, "rollout", "entropy (nats / token)" if axis is axes.flat[0] else "")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def write_report(chosen: SetPoint, out: Path) -> None:
    """set_point.md, its figure and numbers.json, from the rows that are kept."""
    about, kept = read_rows(rows_path(out, SETTING, STAGE))
    rows = [row for row in kept if row["finished"]]
    if not rows:
        return
    table, environment = numbers(chosen, rows), about["environment"]
    write_atomically(out / "numbers.json", json_text(table) + "\n")
    figure_of(chosen, rows).savefig(out / "set_point.png", dpi=150)
    head = ["method", "curve", "distance", "held", "update over GRPO's", "entropy", "pass@1", "pass@32"]
    lines = [
        [
            row["method"],
            chosen.curves[row["curve"]].title,
            ", ".join(f"{x:.1%}" for x in row["distances"]),
            "yes" if max(row["distances"]) <= chosen.within else "no",
            f"{row['update_over_grpo']:.2f}" if row["update_over_grpo"] else "",
            *(f"{row[name]:.3f}" for name in ("entropy", "pass@1", "pass@32")),
        ]
        for row in table
    ]
    where = f"{environment['processor']}, {environment['date'][:10]}"
    planned = len(about["plan"]["arms"]) * len(chosen.seeds)
    text = [
        "# Who holds a chosen entropy curve?",
        f"`python reproduce/set_point.py`; {where}; {len(rows)} of {planned} runs.",
        f"Distance: root mean square of (entropy / target - 1) after the first {chosen.skipped} rollouts, one number a "
        f"seed. Held: at most {chosen.within:.0%}. Entropy: of the last rollout; pass@k: held out, at the end.",
        markdown_table(head, lines),
        "![entropy of every method on every curve](set_point.png)",
    ]
    write_atomically(out / "set_point.md", "\n\n".join(text) + "\n")


def main() -> int:
    """Run what is not finished yet, then report; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two methods, six small rollouts; decides nothing")
    parser.add_argument("--report", action="store_true", help="train nothing; report what is kept")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/set-point, or -quick)")
    parser.add_argument("--results", type=Path, help="folder of the results (default: reproduce/results/set_point)")
    parser.add_argument(
        "--jobs", type=at_least(1), default=cores(), help="runs at a time (default: the cores, %(default)s)"
    )
    args = parser.parse_args()
    folder = args.out or ROOT / "runs" / ("set-point-quick" if args.quick else "set-point")
    out = args.results or (folder / "results" if args.quick else ROOT / "reproduce" / "results" / "set_point")
    chosen = build(SetPoint, read_yaml(PLAN))
    chosen = quick(chosen) if args.quick else chosen
    if not args.report:
        plan = plan_of(chosen)
        start_comparison(plan, folder, resume=True)
        try:
            finished = run_comparison(plan, folder, args.jobs, Console())
        finally:
            keep_rows(folder, rows_path(out, SETTING, STAGE))
        if not finished:
            print("stopped; the same command goes on", file=sys.stderr)
            return INTERRUPTED
    write_report(chosen, out)
    return 0


if __name__ == "__main__":
    end(main)
