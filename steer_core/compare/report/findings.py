"""What a comparison found, in sentences and small tables that are made from its numbers."""

from __future__ import annotations

import math

from steer_core.compare.comparison import Comparison
from steer_core.compare.report import wording as say

FEWEST_SEEDS = 3
"""Fewer seeds than this get a banner."""


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
