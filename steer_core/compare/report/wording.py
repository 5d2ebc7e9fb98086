"""Intervals as words: what a number decides and what it leaves open, never stronger than its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from steer_core.stats.intervals import NO_WIDTH, Interval, digits_of

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
NO_INTERVAL = "no interval (one seed)"
NO_SPREAD = "the same in every seed"


def number(value: float, signed: bool = False, digits: int = 3) -> str:
    """A number as text with a true minus sign; a dash where it is missing."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def bounds(interval: Interval, signed: bool = False, digits: int = 3) -> str:
    """`low to high`, or that one seed gives no interval. signed: with the digits that tell a bound from 0."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return NO_INTERVAL
    if signed and interval.high - interval.low <= NO_WIDTH:
        return NO_SPREAD
    digits = digits_of(interval.low, interval.high, digits) if signed else digits
    return f"{number(interval.low, signed, digits)} to {number(interval.high, signed, digits)}"


def level(interval: Interval, digits: int = 3) -> str:
    """A level with its bounds in brackets."""
    return f"{number(interval.mean, digits=digits)} [{bounds(interval, digits=digits)}]"


def difference(interval: Interval, digits: int = 3) -> str:
    """A difference, signed, with its bounds in brackets."""
    return f"{number(interval.mean, True, digits)} [{bounds(interval, True, digits)}]"


def verdict(interval: Interval) -> str:
    """`higher`, `lower`, `undecided`, or `undecided: no interval (one seed)`."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"undecided: {NO_INTERVAL}"
    return interval.verdict


def finding(name: str, interval: Interval) -> str:
    """One quantity's difference in words, for example `pass@32 is higher (+0.041 [+0.020 to +0.062])`."""
    said = "is undecided" if interval.verdict == "undecided" else f"is {interval.verdict}"
    return f"{name} {said} ({difference(interval)})"


def findings(table: Mapping[str, Interval]) -> str:
    """All differences of an arm in words, the decided ones first."""
    ordered = sorted(table.items(), key=lambda item: item[1].verdict == "undecided")
    return "; ".join(finding(name, interval) for name, interval in ordered)


def movement(name: str, start: float, end: Interval, unit: str = "") -> str:
    """Whether a level left its start, for example `entropy fell from 0.352 to 0.294 [0.281 to 0.307] nats a token`."""
    change = Interval(end.mean - start, end.low - start, end.high - start)
    text = f"{name} {moved(change)} from {number(start)} to {level(end)}{unit and ' ' + unit}"
    if change.verdict == "undecided":
        text += ", a change these seeds leave undecided"
    return text


def moved(change: Interval) -> str:
    """`rose`, `fell`, or `went` where the interval leaves the direction open."""
    return {"higher": "rose", "lower": "fell", "undecided": "went"}[change.verdict]


def slower_learning(arm: str, control: str, primary: str, table: Mapping[str, Interval]) -> str:
    """Is an arm more than slow learning? Arm minus control at equal pass@1, judged on `primary` alone."""
    if primary not in table:
        return f"{arm} and {control} have no finished seed in common, so slower learning is not tested yet."
    interval = table[primary]
    where = f"{primary} at equal pass@1, {difference(interval)}"
    if interval.verdict == "higher":
        text = f"{arm} is above {control} ({where}): at these problems, more than this slower learning gives."
    elif interval.verdict == "lower":
        text = f"{arm} is below {control} ({where}): at these problems, learning more slowly did better."
    elif math.isfinite(interval.low):
        text = (
            f"{arm} against {control} is undecided ({where}): these runs do not show an effect beyond learning "
            "more slowly, and do not rule one out within that interval."
        )
    else:
        text = f"{arm} against {control} is undecided ({where}): one seed cannot tell it from learning more slowly."
    if "entropy" in table and primary != "entropy":
        text += f" There {finding('entropy', table['entropy'])}."
    return text


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def count(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
