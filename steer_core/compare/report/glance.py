"""The first screen of a report: the result in one sentence, and three questions with their answers.

An answer is `yes`, `no` or `open`, by the number that stands beside it: of differences and of changes of pass@k by
their interval. `open` is said where the interval holds 0 or is not there; it does not mean that nothing differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from steer_core.compare.comparison import Comparison
from steer_core.compare.report import one_run
from steer_core.compare.report import wording as say
from steer_core.compare.report.findings import primary_measure
from steer_core.stats.intervals import NO_WIDTH, Interval

DEFINITIONS = {
    "Entropy": "how open the next token is, in nats: 0 where the policy has one choice left. A policy's entropy is "
    "the mean over its response tokens.",
    "pass@k": "the share of held-out problems that at least one of k sampled answers solves. pass@1 is how often it is "
    "right; pass@k with a large k is how much it can reach at all. Collapse: entropy and pass@k fall, pass@1 rises.",
}
"""What the first screen's words mean."""
FIGURES = ("collapse", "training")
"""The figure of the first screen: entropy beside pass@k, or beside the reward where nothing was evaluated."""
MARKS = {"yes": "yes", "no": "no", "open": "undecided"}
"""An answer, and the word beside its coloured mark."""


@dataclass(frozen=True)
class Verdict:
    """question, answer: plain words. mark: a key of MARKS. number: what decides, with its interval."""

    question: str
    answer: str
    mark: str
    number: str


def result(comparison: Comparison) -> str:
    """What the runs found, in one sentence."""
    if one_run.is_one_run(comparison):
        return _result_of_one(comparison)
    baseline = comparison.plan.baseline
    if baseline not in comparison.levels():
        return f"Nothing is compared yet: {comparison.label(baseline)} has not finished a seed."
    return f"{'; '.join([_moves(comparison), *_against(comparison)])}."


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Three questions, fewer where the runs cannot pose them."""
    if one_run.is_one_run(comparison):
        return _verdicts_of_one(comparison)
    asked = [_collapse(comparison), _better(comparison, comparison.plan.baseline)]
    controls = [control for control in comparison.plan.controls if control in set(comparison.final().arm)]
    asked += [_better(comparison, control) for control in controls[:1]] or [_keeps_entropy(comparison)]
    return [verdict for verdict in asked if verdict is not None]


def tested(comparison: Comparison) -> list[str]:
    """The arms that are neither baseline nor control."""
    plan = comparison.plan
    return [arm for arm in plan.arms if arm != plan.baseline and arm not in plan.controls]


def mark_of(interval: Interval, yes: str = "higher") -> str:
    """`yes` where the interval's verdict is that word, `no` where it is the other one, else `open`."""
    return "open" if interval.verdict == "undecided" else "yes" if interval.verdict == yes else "no"


def _changes(comparison: Comparison) -> dict[str, tuple[float, Interval]]:
    """Of the baseline: (level of the base model, change from it) of entropy, pass@1 and the primary measure."""
    base, baseline = comparison.base_levels(), comparison.plan.baseline
    if not base or baseline not in comparison.levels():
        return {}
    start, level = base["entropy"].mean, comparison.levels()[baseline]["entropy"]
    found = {"entropy": (start, Interval(level.mean - start, level.low - start, level.high - start))}
    for name, change in comparison.changes_from_base()[baseline].items():
        if name in ("pass@1", primary_measure(comparison)):
            found[name] = (base[name].mean, change)
    return found


def _collapsed(changes: dict[str, tuple[float, Interval]], primary: str) -> str:
    """Whether entropy and pass@<largest k> fell. Of entropy the mean counts: one seed has no interval."""
    entropy, last = changes["entropy"][1], changes[primary][1]
    mark = mark_of(last, "lower")
    return "no" if mark == "yes" and entropy.mean >= 0 else mark


def _moves(comparison: Comparison) -> str:
    """How the baseline moved from the base model."""
    plan, baseline = comparison.plan, comparison.label(comparison.plan.baseline)
    rollouts = say.count(plan.config(plan.baseline, plan.seeds[0]).train.rollouts, "rollout")
    changes = _changes(comparison)
    if not changes:
        entropy = say.number(comparison.levels()[plan.baseline]["entropy"].mean)
        return f"After {rollouts} of {baseline} entropy is {entropy} nats a token (the base model was not evaluated)"
    told = [
        f"{name} went from {say.number(start)} to {say.number(start + change.mean)}"
        for name, (start, change) in changes.items()
    ]
    collapsed = _collapsed(changes, primary_measure(comparison)) == "yes"
    lead = f"{baseline} collapses: in {rollouts}" if collapsed else f"In {rollouts} of {baseline}"
    return f"{lead}{'' if collapsed else ','} {say.listed(told)}"


def _against(comparison: Comparison) -> list[str]:
    """Which methods are better or worse than the baseline at equal pass@1, and which are undecided."""
    primary, baseline = primary_measure(comparison), comparison.label(comparison.plan.baseline)
    table, said = comparison.differences_at_equal_pass1(), []
    found = {arm: table[arm][primary] for arm in tested(comparison) if primary in table.get(arm, {})}
    for verdict, more in (("higher", "more"), ("lower", "less")):
        arms = [comparison.label(arm) for arm, interval in found.items() if interval.verdict == verdict]
        if arms:
            said.append(f"at equal pass@1 {say.listed(arms)} {_has(arms)} {more} {primary} than {baseline}")
    left = [comparison.label(arm) for arm, interval in found.items() if interval.verdict == "undecided"]
    if left:
        who, has = (say.listed(left), _has(left)) if len(left) < 3 else (f"any of {len(left)} methods", "has")
        said.append(f"whether {who} {has} more {primary} than {baseline} at equal pass@1 is undecided")
    return said


def _has(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _collapse(comparison: Comparison) -> Verdict | None:
    baseline, primary = comparison.label(comparison.plan.baseline), primary_measure(comparison)
    changes = _changes(comparison)
    question = f"Does {baseline} collapse?"
    if not changes:
        why = "Not known: needs the base model's evaluation and a finished run."
        return Verdict(question, why, "open", say.MISSING)
    mark, change = _collapsed(changes, primary), changes[primary][1]
    entropy = "entropy fell" if changes["entropy"][1].mean < 0 else "entropy did not fall"
    words = {
        "yes": f"{entropy}, and so did {primary}",
        "no": f"{entropy}, and {primary} {say.moved(change)}",
        "open": f"{entropy}; whether {primary} fell is open",
    }
    told = words[mark] if primary != "entropy" else entropy
    number = f"{primary}, end minus start: {say.difference(change)}"
    return Verdict(question, f"{told[0].upper()}{told[1:]}.", mark, number)


def _better(comparison: Comparison, against: str) -> Verdict | None:
    """Whether a method does better than the baseline, or than a control, at equal pass@1."""
    arms, primary = tested(comparison), primary_measure(comparison)
    table = comparison.differences_at_equal_pass1(against)
    found = {arm: table[arm][primary] for arm in arms if primary in table.get(arm, {})}
    slower = against != comparison.plan.baseline
    one = comparison.label(arms[0]) if len(arms) == 1 else "any method"
    other = comparison.label(against)
    question = f"Is {one} more than learning more slowly?" if slower else f"Is {one} better than {other}?"
    if not arms:
        return None
    if not found:
        return Verdict(question, "Not known: no finished seed in common.", "open", say.MISSING)
    higher = [arm for arm, interval in found.items() if interval.verdict == "higher"]
    lower = [arm for arm, interval in found.items() if interval.verdict == "lower"]
    mark = "yes" if higher else "no" if len(lower) == len(found) else "open"
    best = max(higher or found, key=lambda arm: found[arm].mean if math.isfinite(found[arm].mean) else -math.inf)
    who = [comparison.label(arm) for arm in higher]
    words = {
        "yes": f"At equal pass@1, {say.listed(who)} {_has(who)} more {primary}.",
        "no": f"At equal pass@1, {'it' if len(arms) == 1 else 'each'} has less {primary}.",
        "open": _open(found[best]),
    }
    number = f"{primary}, {comparison.label(best)} minus {other}: {say.difference(found[best])}"
    return Verdict(question, words[mark], mark, number)


def _open(interval: Interval) -> str:
    """Why nothing is decided."""
    if interval.high - interval.low <= NO_WIDTH:
        return "Every seed says the same: there is no spread to judge by."
    if math.isfinite(interval.low):
        return "These runs do not tell: the interval holds 0."
    return "One seed cannot tell: there is no interval."


def _keeps_entropy(comparison: Comparison) -> Verdict | None:
    """Where there is no control: whether the first method ends with more entropy than the baseline."""
    arms, table = tested(comparison), comparison.differences()
    if not arms or "entropy" not in table.get(arms[0], {}):
        return None
    interval, who = table[arms[0]]["entropy"], comparison.label(arms[0])
    mark = mark_of(interval)
    words = {"yes": "Yes, at equal steps.", "no": "No, it ends with less.", "open": _open(interval)}
    name = f"entropy, {who} minus {comparison.label(comparison.plan.baseline)}"
    return Verdict(f"Does {who} keep more entropy?", words[mark], mark, f"{name}: {say.difference(interval)}")


def _of_one(comparison: Comparison) -> dict[str, one_run.Change]:
    """Of one run: entropy (held-out where it was evaluated twice, else while sampling), pass@1, pass@<largest k>."""
    changes = one_run.changes(comparison)
    held_out = changes.get("held-out entropy")
    entropy = held_out if held_out and math.isfinite(held_out.start) else changes.get("entropy while sampling")
    found = {"entropy": entropy} if entropy else {}
    for k in sorted({1, comparison.largest_k}):
        change = changes.get(f"pass@{k}")
        if change and math.isfinite(change.start):
            found[f"pass@{k}"] = change
    return found


def _result_of_one(comparison: Comparison) -> str:
    found, who = _of_one(comparison), comparison.label(comparison.plan.baseline)
    if comparison.metrics.empty or not found:
        return "Nothing has been logged yet."
    rollouts = say.count(int(comparison.metrics.step.max()), "rollout")
    told = [f"{name} went from {say.number(c.start)} to {say.number(c.end)}" for name, c in found.items()]
    last = f"pass@{comparison.largest_k}"
    collapsed = comparison.largest_k > 1 and last in found and found[last].change.verdict == "lower"
    collapsed = collapsed and "entropy" in found and found["entropy"].change.mean < 0
    lead = f"{who} collapses: in {rollouts}" if collapsed else f"In {rollouts} of {who},"
    return f"{lead} {say.listed(told)}."


def _verdicts_of_one(comparison: Comparison) -> list[Verdict]:
    found, asked = _of_one(comparison), []
    if "entropy" in found:
        change = found["entropy"]
        mark = "yes" if change.change.mean < 0 else "no"
        words = f"In this run, from {say.number(change.start)} to {say.number(change.end)} nats a token."
        asked.append(Verdict("Did entropy fall?", words, mark, f"end minus start: {say.difference(change.change)}"))
    questions = {1: ("Is it right more often?", "higher")}
    questions[comparison.largest_k] = questions.get(comparison.largest_k, ("Does it reach fewer problems?", "lower"))
    for k, (question, yes) in questions.items():
        if f"pass@{k}" in found:
            change = found[f"pass@{k}"]
            words = f"pass@{k} {say.moved(change.change)} from {say.number(change.start)} to {say.number(change.end)}."
            mark = mark_of(change.change, yes)
            asked.append(Verdict(question, words, mark, f"end minus start: {say.difference(change.change)}"))
    return asked
