"""The report of one run, or of runs that differ in the seed alone: nothing is compared, so it says what happened."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table

from steer_core.common.tables import rich_table
from steer_core.compare.comparison import Comparison
from steer_core.compare.report import wording as say
from steer_core.compare.report.figures import quadrant_form
from steer_core.compare.report.probes import ESTIMATES, quality
from steer_core.stats.intervals import Interval, bootstrap_over_problems, interval_over_seeds
from steer_core.stats.pass_at_k import pass_at_k

FIGURES = ("collapse", "training", "heldout", "quadrants", "estimates", "weights")
"""The figures of one run."""
LOGGED = {
    "entropy while sampling": "entropy/policy",
    "mean reward": "reward/mean",
    "response length": "response/length",
    "share cut off": "response/truncated",
}
"""What a table of changes holds of the rollouts, and the metric that it is taken from."""


@dataclass(frozen=True)
class Change:
    """A quantity at the start and at the end, mean over seeds; change: end minus start.

    Its interval is over problems for pass@k, else over seeds, so that one seed has none. start is NaN, and so is the
    change, where there is one reading.
    """

    start: float
    end: float
    change: Interval


def is_one_run(comparison: Comparison) -> bool:
    """Whether there is one method, and so nothing to compare."""
    return len(comparison.plan.arms) == 1


def changes(comparison: Comparison) -> dict[str, Change]:
    """Of the rollouts, from the first to the mean of the last five; of the evaluations, from the first to the last.

    Where the base model was evaluated, that is the first evaluation.
    """
    metrics, found = comparison.metrics, {}
    if len(metrics):
        start, end = metrics[metrics.step == metrics.step.min()], metrics[metrics.step > metrics.step.max() - 5]
        for name, column in LOGGED.items():
            if column in metrics:
                ends = [rows.groupby("seed")[column].mean() for rows in (start, end)]
                found[name] = _over_seeds(*ends)
    first, last = evaluations(comparison)
    if len(last):
        found["held-out entropy"] = _over_seeds(*(rows.set_index("seed").policy_entropy for rows in (first, last)))
    for k in comparison.ks if len(last) else ():
        found[f"pass@{k}"] = _over_problems(first, last, k)
    return found


def evaluations(comparison: Comparison) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(first, last) evaluations, a row a seed, of the seeds that came to the last; no first where it is the last."""
    frame = comparison.evaluations
    last = frame[frame.step == frame.step.max()].sort_values("seed")
    first = frame[(frame.step == frame.step.min()) & frame.seed.isin(last.seed)].sort_values("seed")
    return first[first.step < last.step.max()], last


def _over_seeds(start: pd.Series, end: pd.Series) -> Change:
    """Paired by seed; both are indexed by it."""
    if start.empty:
        return Change(math.nan, float(end.mean()), Interval(math.nan, math.nan, math.nan))
    return Change(float(start.mean()), float(end.mean()), interval_over_seeds((end - start).dropna()))


def _over_problems(first: pd.DataFrame, last: pd.DataFrame, k: int) -> Change:
    start_SQ, end_SQ = (
        np.array([pass_at_k(row.correct, row.samples, k) for row in rows.itertuples(index=False)])
        for rows in (first, last)
    )
    if not len(start_SQ):
        return Change(math.nan, float(end_SQ.mean()), Interval(math.nan, math.nan, math.nan))
    return Change(float(start_SQ.mean()), float(end_SQ.mean()), bootstrap_over_problems(end_SQ - start_SQ))


def what_happened(comparison: Comparison) -> list[str]:
    """What happened, sentence by sentence, made from the numbers."""
    found, metrics = changes(comparison), comparison.metrics
    if metrics.empty:
        return ["No rollout has been logged yet."]
    seeds = comparison.metrics.seed.nunique()
    who = comparison.label(comparison.plan.baseline) + (f" (mean of {say.count(seeds, 'seed')})" if seeds > 1 else "")
    units = {"entropy while sampling": " nats a token", "mean reward": ""}
    moves = [f"{name} went {_way(found[name])}{unit}" for name, unit in units.items() if name in found]
    rollouts = say.count(int(metrics.step.max()), "rollout")
    trained = f"In {rollouts} of {who}, {say.listed(moves)} (first rollout, mean of the last five)."
    return [trained, _evaluated(comparison, found), *_weights(metrics), *_clip(metrics), *_probe(comparison)]


def _way(change: Change) -> str:
    return f"from {say.number(change.start)} to {say.number(change.end)}"


def _evaluated(comparison: Comparison, found: dict[str, Change]) -> str:
    """The evaluations in a sentence."""
    first, last = evaluations(comparison)
    if last.empty:
        return "It has not been evaluated on held-out problems."
    problems, after = say.count(len(last.correct.iloc[0]), "held-out problem"), f"rollout {last.step.iloc[0]}"
    scores = {name: change for name, change in found.items() if name.startswith("pass@")}
    entropy = found["held-out entropy"]
    if first.empty:
        levels = [f"{name} is {say.number(change.end)}" for name, change in scores.items()]
        levels.append(f"policy entropy is {say.number(entropy.end)} nats a token")
        return f"On {problems}, after {after}, {say.listed(levels)}; there is one evaluation, so no change to tell."
    since = f"rollout {first.step.iloc[0]}" if first.step.iloc[0] else "the base model"
    moves = [
        f"{name} {say.moved(change.change)} {_way(change)} ({say.difference(change.change)})"
        for name, change in scores.items()
    ]
    moves.append(f"policy entropy went {_way(entropy)} nats a token")
    return f"On {problems}, from {since} to {after}, {say.listed(moves)}."


def _weights(metrics: pd.DataFrame) -> list[str]:
    if not {"lambda/mean", "lambda/q0", "lambda/share_within_1pct_of_1"} <= set(metrics):
        return []
    mean, share = metrics["lambda/mean"].mean(), metrics["lambda/share_within_1pct_of_1"].mean()
    if share == 1:
        return ["Every token's weight λ was within 1% of 1."]
    smallest = metrics["lambda/q0"].min()
    return [
        f"The weights λ had mean {say.number(mean)}; {share:.0%} of tokens were within 1% of 1, and the smallest "
        f"weight was {say.number(smallest)}."
    ]


def _clip(metrics: pd.DataFrame) -> list[str]:
    if not {"clip/high", "clip/low"} <= set(metrics):
        return []
    high, low = metrics["clip/high"].mean(), metrics["clip/low"].mean()
    if not high + low:
        return ["The clip stopped no token."]
    return [f"The clip stopped {high:.2%} of tokens above its range and {low:.2%} below."]


def _probe(comparison: Comparison) -> list[str]:
    """How well first order, and the form that the method weights with, told the entropy changes of watched steps."""
    told = quality(comparison)
    if not told:
        return []
    names = dict.fromkeys(("first_order", quadrant_form(comparison, comparison.plan.baseline)))
    scores = [
        f"{ESTIMATES[name]} with Pearson {say.number(row['pearson'].mean)} and {row['sign'].mean:.0%} of signs right"
        for name, row in told["by_estimate"].items()
        if name in names and {"pearson", "sign"} <= set(row)
    ]
    if not scores:
        return []
    steps = say.count(told["watched_steps"], "watched step")
    return [f"In {steps}, {say.listed(scores)} told the change of entropy at each token."]


def banners(comparison: Comparison) -> list[str]:
    """What a reader must know first: that the run is not at its end."""
    plan, metrics = comparison.plan, comparison.metrics
    if comparison.complete:
        return []
    came = [int(metrics[metrics.seed == seed].step.max()) if (metrics.seed == seed).any() else 0 for seed in plan.seeds]
    rollouts = plan.config(plan.baseline, plan.seeds[0]).train.rollouts
    whose = f" of seeds {say.listed(list(map(str, plan.seeds)))}" if len(came) > 1 else ""
    return [f"Partial: {say.listed(list(map(str, came)))} of {rollouts} rollouts{whose}; everything here may change."]


def change_table(comparison: Comparison) -> Table:
    """The changes for the terminal."""
    rows = [
        [name, say.number(change.start), say.number(change.end), say.difference(change.change)]
        for name, change in changes(comparison).items()
    ]
    title = f"{comparison.label(comparison.plan.baseline)}: from the first rollout or evaluation to the last"
    return rich_table(title, ["", "first", "last", "change [95% interval]"], rows)
