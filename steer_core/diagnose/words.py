"""A diagnosis in words and tables: for the terminal, and the parts of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steer_core.compare.report import wording as say
from steer_core.diagnose import rules
from steer_core.diagnose.diagnosis import Diagnosis
from steer_core.diagnose.figures import NAMES
from steer_core.diagnose.methods import Effect

ORDER = {"found": 0, "undecided": 1, "not found": 2}
METHOD_HEAD = ("method", "damped", "raised", "factor", "of pushes", "of sizes", "net change", "top 1% damped",
               *NAMES.values(), "woken")  # fmt: skip
MOVER_HEAD = ("token", "p", "H", "A", "ratio", "estimated change", "where")


def sentences(seen: Diagnosis) -> list[str]:
    """What the dump is and what is found, sentence by sentence; what is found comes first."""
    dump = seen.dump
    left = f"; {say.count(dump.left_out, 'row')} without a token that counts left out" if dump.left_out else ""
    steps = f"{say.count(len(dump.steps), 'step')} ({dump.steps[0]} to {dump.steps[-1]})"
    about = f"{say.count(len(dump.responses), 'response')}, {say.count(len(dump), 'token')}, {steps}{left}."
    return [about, *dump.notes]


def finding_lines(seen: Diagnosis) -> list[list[str]]:
    """A row a finding: what, whether, and the numbers; those found first."""
    ordered = sorted(seen.findings.values(), key=lambda finding: ORDER[finding.status])
    return [[finding.name, finding.status, finding.says] for finding in ordered]


def extra_sentences(seen: Diagnosis) -> list[str]:
    """What is told beside the findings: the logged number, entropy since sampling, estimates against the measured."""
    told = list(seen.logged)
    if not math.isnan(seen.drift):
        told.append(
            f"At the same states entropy is {say.number(seen.drift, True, 4)} nats from where the policy that sampled "
            "had it."
        )
    told.append(measured_sentence(seen))
    return told


def measured_sentence(seen: Diagnosis) -> str:
    """Estimates against measured changes, in a sentence."""
    found = seen.measured
    if not found.by_form:
        return f"Estimates are not set against a measured change: {found.why_not}."
    parts = []
    for form, scores in found.by_form.items():
        way = "falls" if found.predicted[form] < 0 else "rises"
        told = f"Pearson {say.level(scores['pearson'], 2)}, right sign {say.level(scores['sign'], 2)}"
        parts.append(f"{form}: {told}, on the whole it {way}")
    whose = f"{say.count(found.tokens, 'token')} of {say.count(found.pairs, 'response')} that came at two steps"
    told = f"At {whose}, entropy changed by {say.number(found.change, True, 5)} nats on average; estimates at each"
    return f"{told}: {'; '.join(parts)}."


def quadrant_lines(seen: Diagnosis) -> list[list[str]]:
    """A row a quadrant."""
    return [
        [
            NAMES[name],
            f"{one.share:.1%}",
            say.number(one.probability),
            say.number(one.change, True, 4),
            _percent(one.share_of_size),
        ]
        for name, one in seen.quadrants.items()
    ]


QUADRANT_HEAD = ("quadrant", "tokens", "mean p", "estimated change, summed", "of the sum of sizes")


def method_lines(seen: Diagnosis) -> list[list[str]]:
    """A row a method: shares damped and raised, factors, what is left of the estimated change, whom it damps."""
    return [_method_line(one) for one in seen.effects if not one.why_not]


def _method_line(one: Effect) -> list[str]:
    by = one.by_quadrant or {}
    return [
        f"{'GRPO' if one.name == 'none' else one.name}{f' ({one.settings})' if one.settings else ''}",
        f"{one.damped:.1%}",
        f"{one.raised:.1%}",
        f"{say.number(one.smallest, digits=2)} to {say.number(one.largest, digits=2)}",
        say.number(one.mean, digits=2),
        say.number(one.size, digits=2),
        say.number(one.change, True, 3),
        f"{one.top_damped:.0%}",
        *(say.number(by.get(name, math.nan), digits=2) for name in NAMES),
        f"{one.woken:.1%}",
    ]


def silent_methods(seen: Diagnosis) -> list[str]:
    """Of methods that nothing is told of, why; those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for one in seen.effects:
        if one.why_not:
            reasons.setdefault(one.why_not, []).append(one.name)
    return [f"{say.listed(names)}: {why}" for why, names in reasons.items()]


def mover_lines(seen: Diagnosis) -> list[list[str]]:
    """A row a token of largest estimated change."""
    if seen.movers is None:
        return []
    return [
        [
            f"{_shown(one.before)}[{_shown(one.token)}]{_shown(one.after)}",
            say.number(one.probability),
            say.number(one.entropy),
            say.number(one.advantage, True, 2),
            say.number(one.ratio, digits=2),
            say.number(one.change, True, 4),
            one.where,
        ]
        for one in seen.movers.largest
    ]


def text_lines(seen: Diagnosis) -> list[list[str]]:
    """A row a token text: how often it comes, and the sum of its estimated changes."""
    movers = seen.movers.by_text if seen.movers else []
    return [[_shown(text), str(count), say.number(change, True, 4)] for text, count, change in movers]


def verdict_of(seen: Diagnosis) -> str:
    """What is found, in a line."""
    found = [finding.name for finding in seen.findings.values() if finding.status == "found"]
    undecided = sum(finding.status == "undecided" for finding in seen.findings.values())
    told = f"Found: {_lower(found)}." if found else "None of the troubles that the rules know is found."
    return f"{told} {undecided} of {len(seen.findings)} undecided." if undecided else told


def _lower(names: Sequence[str]) -> str:
    return "; ".join(name[0].lower() + name[1:] for name in names)


def _percent(value: float) -> str:
    return say.MISSING if math.isnan(value) else f"{value:.1%}"


def _shown(text: str) -> str:
    """A token as it can stand in a table: line ends and other signs that cannot be seen by their escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


RULES = tuple(
    (name, getattr(rules, name))
    for name in (
        "COLLAPSED",
        "EXPLODED",
        "NOTHING_LEFT",
        "CLIPPED",
        "FAR",
        "OUTLIER",
        "DOMINANT",
        "TRUNCATED",
        "SILENT",
        "GAP",
        "GAP_PAST",
    )
)
"""The thresholds that the page lists."""
