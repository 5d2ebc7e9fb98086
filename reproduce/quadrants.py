"""Weakens and strengthens one quadrant's loss at a time: does entropy move as the theory says?

    python reproduce/quadrants.py           # trains in runs/quadrants, then reports
    python reproduce/quadrants.py --report  # trains nothing: table and figure from results.json
    python reproduce/quadrants.py --quick   # 2 seeds x 6 rollouts in runs/quadrants-quick: shows the machinery

GRPO, and GRPO with the loss of one of the four quadrants times 0.5 or times 2: 9 arms x 3 seeds x 32 rollouts
(steer_core/plans/quadrants.yaml), and results.json, entropy.png and a table from them. 50 minutes on 2 CPU cores
that had other work beside it. Interrupted at any moment, the same command goes on where it was.

Under the paper's form (arXiv 2510.10150, section 4) likely tokens (ln p > -H) with A > 0 and unlikely ones with A < 0
lower entropy, and the other two quadrants raise it: weakening a quadrant should take its effect away, strengthening
it add to it. A factor moves more than its quadrant. AdamW divides by the size of recent gradients, so a factor on all
tokens would do next to nothing and one on some of them shifts the balance between parts (strengthening one is much
like weakening the rest) and the size of the step a little; and steps whose gradient norm exceeds
optimizer.max_grad_norm are scaled down, which takes back a part of a strengthening: results.json counts them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from steer_core import SteerError
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import cores
from steer_core.common.errors import INTERRUPTED
from steer_core.common.files import read_json, write_atomically
from steer_core.common.plot_style import STYLE, label
from steer_core.compare.comparison import Comparison, load_comparison
from steer_core.compare.plan import Plan, load_plan
from steer_core.compare.report.figures import QUADRANT_NAMES
from steer_core.compare.runner import run_comparison, start_comparison
from steer_core.formulas.entropy_change import QUADRANTS
from steer_core.stats.intervals import Interval, interval_over_seeds

ROOT = Path(__file__).parent.parent
PLAN = ROOT / "steer_core" / "plans" / "quadrants.yaml"
QUICK = ("train.rollouts=6", "evaluation.every=6", "evaluation.problems=50")

TOKENS_MOVE = dict(zip(QUADRANTS, (-1, 1, 1, -1), strict=True))
"""Which way a quadrant's own tokens move entropy under the paper's form: -sign(A) sign(ln p + H)."""
KINDS = {0.5: ("weakened (x 0.5)", "#0072b2"), 1.0: ("GRPO", "#1f2a36"), 2.0: ("strengthened (x 2)", "#d55e00")}
NOTES = [
    "Intervals cover the training seeds: Student t over 3 seeds, paired by seed for differences, 95%, not corrected "
    "for their number (8 arms x 3 measures of entropy).",
    "A factor also changes the step: AdamW divides by the size of recent gradients, so strengthening a quadrant is "
    "much like weakening the other three, and steps above optimizer.max_grad_norm are scaled down.",
]


def intervention(plan: Plan, arm: str) -> tuple[str | None, float]:
    """(quadrant, factor) of an arm; (None, 1.0) of an arm that leaves all four alone.

    Raises SteerError where an arm changes several: nothing could be said of one quadrant then.
    """
    method = plan.config(arm, plan.seeds[0]).intervention
    factors = {name: getattr(method, name, 1.0) for name in QUADRANTS}
    changed = [(name, factor) for name, factor in factors.items() if factor != 1]
    if len(changed) > 1:
        raise SteerError(f"arms.{arm}: changes {', '.join(name for name, _ in changed)}; change one quadrant an arm")
    return changed[0] if changed else (None, 1.0)


def predicted_sign(quadrant: str, factor: float) -> int:
    """What the factor should do to entropy: 1 raise it, -1 lower it."""
    return TOKENS_MOVE[quadrant] * (1 if factor > 1 else -1)


def verdict(difference: Interval, predicted: int) -> str:
    """A difference in entropy beside the sign that was predicted; undecided where its interval holds 0."""
    found = {"higher": 1, "lower": -1, "undecided": 0}[difference.verdict]
    return "undecided" if not found else "as the theory says" if found == predicted else "against it"


def results(comparison: Comparison) -> dict[str, Any]:
    """Everything that is reported, JSON-ready, of a comparison that came to its end. Entropies in nats a token.

    An arm's `difference` is its own value minus the baseline's at the same seed: `average` and `final`
    are the entropy over all rollouts and at the last one, `held_out` that on the held-out problems.
    """
    plan, metrics = comparison.plan, comparison.metrics
    entropy, reward = curves(metrics, "entropy/policy"), curves(metrics, "reward/mean")
    held_out = comparison.differences() if len(comparison.evaluations) else {}
    arms = {}
    for arm in plan.arms:
        quadrant, factor = intervention(plan, arm)
        arms[arm] = {
            "quadrant": quadrant,
            "factor": factor,
            "entropy_by_seed": entropy[arm].T.round(6).to_numpy().tolist(),
            "entropy": [_bounds(interval_over_seeds(row)) for row in entropy[arm].to_numpy()],
            "reward_last_5": _bounds(interval_over_seeds(reward[arm].tail(5).mean())),
            **gradient_norms(metrics[metrics.arm == arm], plan.config(arm, plan.seeds[0]).optimizer.max_grad_norm),
        }
        if quadrant is None:
            continue
        gap = entropy[arm] - entropy[plan.baseline]
        found = {"average": interval_over_seeds(gap.mean()), "final": interval_over_seeds(gap.iloc[-1])}
        found |= {"held_out": held_out[arm]["entropy"]} if arm in held_out else {}
        predicted = predicted_sign(quadrant, factor)
        paired = {"reward_last_5": interval_over_seeds((reward[arm] - reward[plan.baseline]).tail(5).mean())}
        paired |= {k: v for k, v in held_out.get(arm, {}).items() if k.startswith("pass@")}
        arms[arm] |= {
            "predicted": predicted,
            "difference": {name: _bounds(value) for name, value in (found | paired).items()},
            "difference_by_rollout": [_bounds(interval_over_seeds(row)) for row in gap.to_numpy()],
            "verdict": {name: verdict(value, predicted) for name, value in found.items()},
        }
    return {
        "rollouts": len(entropy),
        "seeds": list(plan.seeds),
        "baseline": plan.baseline,
        "notes": NOTES,
        "baseline_quadrants": baseline_quadrants(metrics[metrics.arm == plan.baseline]),
        "arms": arms,
        "counts": comparison.counts(),
    }


def curves(metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    """A metric with a row a rollout and columns (arm, seed)."""
    return metrics.pivot(index="step", columns=["arm", "seed"], values=column).sort_index()


def baseline_quadrants(metrics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By quadrant: its share of the response tokens and the change of mean entropy a rollout that the form predicts.

    Means over the baseline's rollouts and seeds; empty where they were not logged.
    """
    columns = {"share": "quadrant/{}", "predicted_change": "entropy_change/paper/{}"}
    logged = all(pattern.format(name) in metrics for pattern in columns.values() for name in QUADRANTS)
    return {
        name: {key: float(metrics[pattern.format(name)].mean()) for key, pattern in columns.items()}
        for name in (QUADRANTS if logged else ())
    }


def gradient_norms(metrics: pd.DataFrame, limit: float) -> dict[str, float]:
    """Mean gradient norm before clipping, and the share of rollouts with a step above the limit."""
    if "grad_norm/max" not in metrics:
        return {}
    return {
        "grad_norm": float(metrics["grad_norm/mean"].mean()),
        "rollouts_with_a_clipped_step": float((metrics["grad_norm/max"] > limit).mean()),
    }


def _bounds(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON: six decimals, None for a bound that is not known."""
    return {name: round(x, 6) if np.isfinite(x) else None for name, x in asdict(interval).items()}


def figure(found: dict[str, Any]) -> Figure:
    """A column a quadrant: above, entropy by rollout; below, its difference from the baseline.

    Thick lines are means over seeds. Bands: the seeds' range above, the 95% interval over seeds below.
    """
    steps = range(1, found["rollouts"] + 1)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(7.6, 4.3), layout="constrained")
        axes = drawn.subplots(2, len(QUADRANTS), sharex=True, sharey="row")
        for column, quadrant in enumerate(QUADRANTS):
            top, bottom = axes[:, column]
            for arm in found["arms"].values():
                if arm["quadrant"] not in (None, quadrant):
                    continue
                name, colour = KINDS[arm["factor"]]
                by_seed = np.array(arm["entropy_by_seed"])
                top.fill_between(steps, by_seed.min(0), by_seed.max(0), color=colour, alpha=0.15, lw=0)
                top.plot(steps, by_seed.mean(0), color=colour, lw=1.5, label=name)
                if arm["quadrant"]:
                    low, mean, high = _lines(arm["difference_by_rollout"])
                    bottom.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
                    bottom.plot(steps, mean, color=colour, lw=1.5)
            bottom.axhline(0, color=KINDS[1.0][1], lw=0.8)
            effect = "raise" if TOKENS_MOVE[quadrant] > 0 else "lower"
            label(top, f"{QUADRANT_NAMES[quadrant]}\n(its tokens {effect} H)", "", "")
            label(bottom, "", "rollout", "")
        axes[0, 0].set_ylabel("policy entropy (nats / token)")
        axes[1, 0].set_ylabel("difference from GRPO")
        handles, names = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, names, loc="outside lower center", ncols=3)
        drawn.align_ylabels(axes[:, 0])
    return drawn


def _lines(rows: list[dict[str, float | None]]) -> np.ndarray:
    """(low, mean, high) by rollout; NaN where there is no bound."""
    return np.array([[row[name] for row in rows] for name in ("low", "mean", "high")], dtype=float)


def table(found: dict[str, Any]) -> Table:
    """The differences from the baseline with their verdicts, a row an arm."""
    drawn = Table(title=f"Entropy minus GRPO's (nats / token), {len(found['seeds'])} seeds, 95% over seeds")
    for name in ("quadrant", "loss", "theory", "mean over rollouts", "verdict", "last rollout", "verdict", "reward"):
        drawn.add_column(name)
    for arm in found["arms"].values():
        if arm["quadrant"] is None:
            continue
        gap, said = arm["difference"], arm["verdict"]
        drawn.add_row(
            QUADRANT_NAMES[arm["quadrant"]],
            f"x {arm['factor']:g}",
            "higher" if arm["predicted"] > 0 else "lower",
            _text(gap["average"]),
            said["average"],
            _text(gap["final"]),
            said["final"],
            _text(gap["reward_last_5"]),
        )
    return drawn


def _text(bounds: dict[str, float | None]) -> str:
    if bounds["low"] is None:
        return f"{bounds['mean']:+.4f}"
    return f"{bounds['mean']:+.4f} [{bounds['low']:+.4f}, {bounds['high']:+.4f}]"


def report(folder: Path, out: Path, command: str) -> dict[str, Any]:
    """Write results.json and entropy.png of a finished comparison to `out`; what results.json holds."""
    comparison = load_comparison(folder)
    found = {"command": command, "environment": comparison.environment | {"command": command}} | results(comparison)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "results.json", json.dumps(found, indent=1) + "\n")
        figure(found).savefig(out / "entropy.png", dpi=200)
    except OSError as error:
        raise SteerError(f"--results: {out} cannot be written ({error.strerror}); name another folder") from error
    return found


def main() -> int:
    """Train what is not trained yet, then report; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder of the runs (default: runs/quadrants; with --quick: runs/quadrants-quick)"
    )
    parser.add_argument(
        "--results", type=Path, help="folder of the results (default: reproduce/results/quadrants; with --quick: OUT)"
    )
    parser.add_argument("--quick", action="store_true", help="2 seeds x 6 rollouts in place of 3 x 32; decides nothing")
    parser.add_argument("--report", action="store_true", help="train nothing; table and figure from results.json")
    parser.add_argument(
        "--jobs", type=at_least(1), default=cores(), help="runs at a time (default: the cores, %(default)s)"
    )
    args = parser.parse_args()
    folder = args.out or Path("runs/quadrants-quick" if args.quick else "runs/quadrants")
    out = args.results or (folder if args.quick else ROOT / "reproduce" / "results" / "quadrants")
    console = Console()
    if args.report:
        found = read_json(out / "results.json", "results", "run without --report")
        figure(found).savefig(out / "entropy.png", dpi=200)
        console.print(table(found))
        return 0
    plan = load_plan(PLAN, QUICK, seeds=[0, 1]) if args.quick else load_plan(PLAN)
    start_comparison(plan, folder, resume=True)
    if not run_comparison(plan, folder, args.jobs, console):
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    found = report(folder, out, f"python reproduce/quadrants.py{' --quick' * args.quick}")
    console.print(table(found))
    console.print(f"wrote {out / 'results.json'} and {out / 'entropy.png'}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    end(main)
