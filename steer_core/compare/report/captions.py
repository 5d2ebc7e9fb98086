"""Captions of the figures: what each shows, and one sentence of the numbers that it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steer_core.common.plot_style import bin_width
from steer_core.compare.comparison import Comparison
from steer_core.compare.report import wording as say
from steer_core.compare.report.figures import QUADRANT_NAMES, lambda_quantiles, quadrant_form
from steer_core.compare.report.probes import ESTIMATES, NEAR, absence, better_than_a_coin, quality, watched_arms
from steer_core.formulas.entropy_change import QUADRANTS


@dataclass(frozen=True)
class Caption:
    """title: the figure's heading. shows, numbers: sentences made from a comparison."""

    title: str
    shows: Callable[[Comparison], str]
    numbers: Callable[[Comparison], str]


def training_numbers(comparison: Comparison) -> str:
    """Entropy and reward in the first rollout and over the last five, mean over seeds."""
    parts = []
    for arm, rows in _by_arm(comparison, comparison.metrics):
        first, last = rows[rows.step == rows.step.min()], rows[rows.step > rows.step.max() - 5]
        parts.append(
            f"{comparison.label(arm)}: entropy {_arrow(first, last, 'entropy/policy')}, "
            f"reward {_arrow(first, last, 'reward/mean')}"
        )
    return f"From the first rollout to the mean of the last five: {'; '.join(parts)}."


def collapse_numbers(comparison: Comparison) -> str:
    """Held-out entropy, pass@1 and pass@<largest k> at the first and the last evaluation, mean over seeds."""
    columns = {"entropy": "policy_entropy"} | {f"pass@{k}": f"pass@{k}" for k in sorted({1, comparison.largest_k})}
    parts = []
    for arm, rows in _by_arm(comparison, comparison.curves()):
        first, last = rows[rows.step == rows.step.min()], rows[rows.step == rows.step.max()]
        moves = [f"{name} {_arrow(first, last, column)}" for name, column in columns.items()]
        parts.append(f"{comparison.label(arm)}: {', '.join(moves)}")
    return f"From the first evaluation to the last: {'; '.join(parts)}."


def heldout_numbers(comparison: Comparison) -> str:
    """Each pass@k at the first and the last evaluation, mean over seeds."""
    parts = []
    for arm, rows in _by_arm(comparison, comparison.curves()):
        first, last = rows[rows.step == rows.step.min()], rows[rows.step == rows.step.max()]
        moves = [f"pass@{k} {_arrow(first, last, f'pass@{k}')}" for k in comparison.ks]
        parts.append(f"{comparison.label(arm)}: {', '.join(moves)}")
    return f"From the first evaluation to the last: {'; '.join(parts)}."


def trade_numbers(comparison: Comparison) -> str:
    """The rank correlation of pass@1 and pass@<largest k>, and what each arm has at the common level."""
    curves, largest, level = comparison.curves(), comparison.largest_k, comparison.common_level()
    trained = curves[curves.step > 0]
    told = []
    if (
        largest > 1
        and len(trained) > 2
        and trained["pass@1"].nunique() > 1
        and trained[f"pass@{largest}"].nunique() > 1
    ):
        rank = trained["pass@1"].corr(trained[f"pass@{largest}"], method="spearman")
        told.append(
            f"over all {len(trained)} evaluations of trained policies their rank correlation is "
            f"{say.number(rank, True, 2)}"
        )
    if np.isfinite(level):
        rows = comparison.at_equal_pass1().groupby("arm", sort=False).mean(numeric_only=True)
        name = f"pass@{largest}" if largest > 1 else "entropy"
        parts = [f"{say.number(rows.loc[arm, name])} ({comparison.label(arm)})" for arm in rows.index]
        told.append(f"at the common pass@1 of {say.number(level)}, {name} is {say.listed(parts)}")
    text = "; ".join(told) or "no run has finished yet"
    return f"{text[0].upper()}{text[1:]}."


def quadrants_numbers(comparison: Comparison) -> str:
    """The sum over rollouts of the four quadrants, their largest one, and the measured change beside it."""
    parts = []
    for arm, rows in _by_arm(comparison, comparison.metrics):
        names = {name: f"entropy_change/{quadrant_form(comparison, arm)}/{name}" for name in QUADRANTS}
        if not set(names.values()) <= set(rows):
            continue
        sums = {name: rows.groupby("seed")[column].sum().mean() for name, column in names.items()}
        largest = max(sums, key=lambda name: abs(sums[name]))
        first, last = rows[rows.step == rows.step.min()], rows[rows.step == rows.step.max()]
        measured = last["entropy/policy"].mean() - first["entropy/policy"].mean()
        parts.append(
            f"{comparison.label(arm)}: {_power(sum(sums.values()))} nats in sum, most in {QUADRANT_NAMES[largest]} "
            f"({_power(sums[largest])}), beside a measured change of {say.number(measured, True)} nats a token"
        )
    return f"Predicted over all rollouts: {'; '.join(parts)}."


def estimates_shows(comparison: Comparison) -> str:
    """What the probe did, and how to read its three panels."""
    some, arms = watched_arms(comparison), comparison.plan.arms
    of = "" if len(some) == len(arms) else f" of {say.listed([comparison.label(arm) for arm in some])}"
    near = NEAR * bin_width(comparison.metrics)
    each = _points(comparison) or " Each point is one watched step."
    return (
        f"At every rollout{of} one optimiser step is watched on a few of its own sequences: each token's entropy is "
        "read before and after, and compared with what each estimate says of that token. First order is the derivative "
        "of entropy along the step really taken, through all parameters; the other estimates leave out what tokens do "
        f"to each other through them. Lines: mean over all runs and the rollouts at most {near} away; bands: the "
        f"middle half of those readings. Dashed: no agreement, a coin, equality.{each}"
    )


def estimates_numbers(comparison: Comparison) -> str:
    """Pearson and sign share by estimate, which of them beat a coin, mean changes, and what the probe cost."""
    told = quality(comparison)
    table = told["by_estimate"]
    scores = [interval for row in table.values() for name, interval in row.items() if name != "change"]
    bounded = any(np.isfinite(interval.low) for interval in scores)
    value = say.level if bounded else lambda interval: say.number(interval.mean)
    parts = []
    for name, row in table.items():
        pair = [value(row["pearson"]) if "pearson" in row else say.MISSING]
        pair.append(f"{value(row['sign'])} of signs" if "sign" in row else f"signs {say.MISSING}")
        parts.append(f"{ESTIMATES[name]} {' and '.join(pair)}")
    over = "rollouts and seeds" if bounded else "rollouts (one seed: no interval)"
    text = [f"Pearson and right signs, mean over {over}: {'; '.join(parts)}."]
    if bounded:
        verdicts = better_than_a_coin(table)
        told_of = {"higher": "more often than a coin", "lower": "less often than a coin", "undecided": "undecided"}
        outcome = [f"{words}: {say.listed(verdicts[key])}" for key, words in told_of.items() if verdicts[key]]
        if outcome:
            text.append(f"Right over these seeds, {'; '.join(outcome)}.")
    changes = [f"{_power(told['measured_change'].mean)} measured"]
    changes += [f"{_power(row['change'].mean)} by {ESTIMATES[name]}" for name, row in table.items() if "change" in row]
    text.append(f"Mean change of a step, nats a token: {', '.join(changes)}.")
    if np.isfinite(told["share_of_training_time"]):
        cost = f"{say.number(told['probe_seconds'], digits=2)} seconds a rollout"
        share = f"{told['share_of_training_time']:.1%} of sampling, scoring and updates"
        text.append(f"The probe took {cost}, {share}.")
    return " ".join(text)


def weights_numbers(comparison: Comparison) -> str:
    """Mean weight, share within 1% of 1 and smallest weight of every weighted arm."""
    parts = []
    for arm, rows in _by_arm(comparison, comparison.metrics):
        quantiles = lambda_quantiles(comparison, arm)
        if quantiles.min() < 1:
            share = rows["lambda/share_within_1pct_of_1"].mean()
            parts.append(
                f"{comparison.label(arm)}: mean weight {say.number(rows['lambda/mean'].mean())}, {share:.0%} of tokens "
                f"within 1% of 1, one in ten at or below {say.number(quantiles.get(0.1, float('nan')))}"
            )
    return f"{'; '.join(parts)}."


def _how_good(comparison: Comparison) -> str:
    """Where the report says how far a predicted change can be believed."""
    why = absence(comparison)
    return (
        f"How often it is right is not known here: {why}."
        if why
        else 'How often it is right is said below, under "How good the estimates were".'
    )


def _points(comparison: Comparison) -> str:
    """How many rollouts a point stands for, where it is more than one."""
    width = bin_width(comparison.metrics)
    return f" Each point is the mean of {width} rollouts." if width > 1 else ""


_LINES = "Thin lines are seeds, thick lines their mean."
CAPTIONS = {
    "collapse": Caption(
        "Entropy collapse",
        lambda c: (
            "Entropy of the policy, pass@1 and pass@k for the largest k, on held-out problems over training"
            f"{'; dotted: the base model, which is step 0' if c.base else ''}. Collapse is entropy and pass@k falling "
            f"while pass@1 rises. {_LINES}"
        ),
        collapse_numbers,
    ),
    "training": Caption(
        "Training",
        lambda c: (
            f"Shannon entropy of the policy that sampled, and mean reward, at every rollout. {_LINES}{_points(c)}"
        ),
        training_numbers,
    ),
    "heldout": Caption(
        "Held-out accuracy",
        lambda c: (
            f"pass@k on held-out problems over training{'; step 0 is the base model' if c.base else ''}. {_LINES}"
        ),
        heldout_numbers,
    ),
    "trade": Caption(
        "What pass@1 is bought with",
        lambda c: (
            "Every evaluation of every run is a point, joined in the order of training; large points are last "
            "evaluations. Dashed: the pass@1 that every finished run reached. Arms whose points share a curve differ "
            "in how fast they move along it, not in what they trade."
        ),
        trade_numbers,
    ),
    "quadrants": Caption(
        "Which tokens are predicted to move entropy",
        lambda c: (
            "Predicted change of the mean entropy at each rollout by sign of the advantage and by whether the token "
            "is likely (ln p above minus the entropy). The single-state form counts a token's effect at its own state "
            "only and for plain gradient steps, so its scale is no forecast of the measured change: it says which "
            f"tokens the form names, not what entropy will do. {_how_good(c)}{_points(c)}"
        ),
        quadrants_numbers,
    ),
    "estimates": Caption("How good the estimates were", estimates_shows, estimates_numbers),
    "weights": Caption(
        "How much STEER damps",
        lambda c: (
            "Share of response tokens whose weight λ is at or below each value, through the logged quantiles averaged "
            "over seeds and rollouts. A curve that hugs 1 means that few tokens are damped."
        ),
        weights_numbers,
    ),
}


def _by_arm(comparison, frame):
    return [(arm, frame[frame.arm == arm]) for arm in comparison.plan.arms if (frame.arm == arm).any()]


def _arrow(first, last, column: str) -> str:
    return f"{say.number(first[column].mean())} → {say.number(last[column].mean())}"


def _power(value: float) -> str:
    """A small number as mantissa and power of ten, in text."""
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.replace('-', say.MINUS)}\N{MULTIPLICATION SIGN}10{raised}"
