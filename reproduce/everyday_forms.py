r"""Twelve everyday forms of an answer: each writes a ground truth in several ways, and wrong answers in the same ways.

A form takes the `core` of a ground truth and returns `Answers`, whole responses, with none where it does not fit.
Wrong answers are the truth's neighbour (its last whole number raised by one) in the same ways, and the form's own
traps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from wrong_answers import boxed, neighbour

from steer_core.rewards.answers import choice, members
from steer_core.rewards.notation import brackets, has_words, plain, split
from steer_core.rewards.quantities import Number, measure, number

_RELATION, _UNION = re.compile(r"[<>]|\\(?:leq|geq)(?![A-Za-z])"), re.compile(r"\\cup")
_STATEMENT = re.compile(
    r"=|\\(?:equiv|mid|neq|in|pm|to|ldots|cdots|dots|forall|text|begin|boxed|quad|approx)|[<>:?|&;]|\.\."
)
_LONGEST_PERIOD = 12


class Answers(NamedTuple):
    """Responses that are right and responses that are wrong."""

    right: list[str]
    wrong: list[str]


NONE = Answers([], [])
Writers = list[Callable[[str], str]]


def currency(truth: str) -> Answers:
    r"""`\$5`, `5 dollars`, with cents for a whole number."""
    exact = _number(truth)
    if exact is None or exact.value < 0:
        return NONE
    whole = exact.value.denominator == 1 and exact.value < 10**12
    writers: Writers = [r"\${}".format, r"{} \text{{ dollars}}".format, "{} dollars".format]
    answers = _written(truth, writers)
    if whole:
        answers.right.extend(map(boxed, (rf"\${int(exact.value):,}", rf"\${int(exact.value):,}.00")))
        answers.wrong.append(boxed(rf"\${int(exact.value) + 1:,}"))
    return _with_traps(answers, exact, [rf"\${truth} \text{{ thousand}}", rf"{truth} \text{{ million dollars}}"])


def thousands(truth: str) -> Answers:
    r"""`57,500`, `57{,}500`, `57\,500`, `57 500`, the first two with a unit and a currency."""
    exact = _number(truth)
    if exact is None or exact.value.denominator != 1 or not 1000 <= abs(exact.value) < 10**15:
        return NONE
    written = [f"{int(exact.value):,}", f"{int(exact.value) + 1:,}"]
    marks = [",", "{,}", r"\,", r",\!", " ", r"\ "]
    answers = Answers(*([boxed(each.replace(",", mark)) for mark in marks] for each in written))
    answers.right.extend(map(boxed, (rf"{written[0]} \text{{ miles}}", f"{written[0]} miles")))
    answers.wrong.extend(map(boxed, (written[0][:-1], f"{written[0]}0", f"{written[0]},000")))
    return answers


def units(truth: str) -> Answers:
    r"""`5 \text{ cm}` and the like behind any value; words that change a number are the traps."""
    if not _is_value(truth):
        return NONE
    units = (r" \text{ cm}", r"\,\mathrm{m/s}", r" \text{ square units}", r"\ \text{cm}^2", r" \text{ miles per hour}")
    answers = _written(truth, [(r"{}" + unit.replace("{", "{{").replace("}", "}}")).format for unit in units])
    exact = _number(truth)
    if exact:
        answers.right.extend(map(boxed, (f"{truth} people", rf"{truth} \text{{ apples in total}}")))
    words = ("thousands", "dozens", "hundredths", "divided by two", "million", "tenths", "more", "times three")
    return _with_traps(answers, exact, [rf"{truth} \text{{ {word}}}" for word in words])


def intervals(truth: str) -> Answers:
    r"""An interval or a union of some as inequalities, an inequality as an interval or turned round."""
    parts = [_ends(part) for part in split(plain(truth), _UNION)]
    if not parts or not all(parts):
        return NONE
    ends = [part for part in parts if part]
    opened = [(_turned(opening), lower, upper, _turned(closing)) for opening, lower, upper, closing in ends]
    shifted = [
        (opening, lower if "infty" in lower else f"{lower}-1", upper if "infty" in upper else f"{upper}+1", closing)
        for opening, lower, upper, closing in ends
    ]
    ways: list[Callable] = [_as_interval, _as_inequality, _as_turned_inequality]
    wrong = [way(each) for way in ways for each in (opened, shifted) if each != ends]
    return Answers([boxed(way(ends)) for way in ways], [boxed(each) for each in wrong])


def mixed_fraction(truth: str) -> Answers:
    r"""`1\frac{4}{5}` for 9/5."""
    exact = _number(truth)
    if exact is None or abs(exact.value) <= 1 or exact.value.denominator == 1 or exact.value.denominator > 10**6:
        return NONE
    sign, size = "-" if exact.value < 0 else "", abs(exact.value)
    whole, rest = divmod(size, 1)
    over, under = rest.numerator, rest.denominator
    ways = [r"{}{}\frac{{{}}}{{{}}}", r"{}{} \tfrac{{{}}}{{{}}}", "{}{} {}/{}"]
    ways.append(r"{}{}\ \frac{{{}}}{{{}}} \text{{ cups}}")
    right = [boxed(way.format(sign, whole, over, under)) for way in ways]
    wrong = [boxed(way.format(sign, whole + 1, over, under)) for way in ways]
    if whole * rest != size:
        wrong.append(boxed(rf"{sign}{whole}\cdot\frac{{{over}}}{{{under}}}"))
    return Answers(right, [*wrong, boxed(rf"{sign}{whole}\left(\frac{{{over}}}{{{under}}}\right)")])


def percent(truth: str) -> Answers:
    r"""`50\%` for 50, and for 1/2."""
    exact = _number(truth)
    if exact is None:
        return NONE
    ways: Writers = [r"{}\%".format, r"{} \text{{ percent}}".format, "{}%".format]
    if abs(exact.value) >= 1:
        return _written(truth, ways)
    hundredfold = exact.value * 100
    decimal = _decimal(hundredfold)
    if decimal is None or not exact.value:
        return NONE
    wrong = _decimal(hundredfold * 10) or "0"
    return Answers([boxed(way(decimal)) for way in ways], [boxed(way(wrong)) for way in ways])


def repeating_decimal(truth: str) -> Answers:
    r"""`0.1\overline{6}` for 1/6, with a bar, in brackets, and with dots."""
    exact = _number(truth)
    found = _period(exact.value) if exact else None
    if exact is None or found is None:
        return NONE
    before, period = found
    other = period[:-1] + str((int(period[-1]) + 1) % 10)
    ways: list[Callable[[str, str], str]] = [
        r"{}\overline{{{}}}".format, r"{}\bar{{{}}}".format, "{}({})".format,
        lambda before, period: before + period * 3 + r"\ldots", lambda before, period: before + period * 3 + "...",
    ]  # fmt: skip
    wrong = [boxed(way(before, other)) for way in ways]
    cut = before + period[:2]
    short = [boxed(cut)] if len(cut.lstrip("-0.")) < 6 and period.strip("0") else []
    return Answers([boxed(way(before, period)) for way in ways], [*wrong, *short])


def equation(truth: str) -> Answers:
    r"""`x = 5`, also turned round, and what is asked for with its value; an equation with its sides swapped."""
    sides = split(plain(truth), re.compile("="))
    if len(sides) == 2 and not has_words(plain(truth)) and not _STATEMENT.search(plain(truth).replace("=", " ")):
        return _written(f"{sides[1]} = {sides[0]}", ["{}".format])
    if not _is_value(truth):
        return NONE
    variables = set(re.findall(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])", plain(truth)))
    ways: Writers = [r"S = {}".format, r"\text{{Area}} = {}".format, r"f(x) = {}".format]
    if not variables:
        ways += [r"x = {}".format, r"a+b = {}".format, r"{} = x".format, r"a_1 = {}".format]
    answers = _written(truth, ways)
    return Answers(answers.right, [*answers.wrong, *map(boxed, (f"x+1={truth}", f"2k={truth}"))])


def list_order(truth: str) -> Answers:
    r"""The members of a list or set in another order, with braces, with "and" between them, in boxes of their own."""
    text = plain(truth)
    found = members(text)
    if (
        len(found) < 2
        or number(text)
        or text.count("{") != text.count("}")
        or r"\pm" in text
        or _STATEMENT.search(text)
        or has_words(text)
    ):
        return NONE
    turned = found[::-1]
    if len(set(turned)) < len(turned) or any(each.startswith("(") != turned[0].startswith("(") for each in turned):
        return NONE
    last = neighbour(turned[-1])
    ways: list[Callable[[list[str]], str]] = [
        lambda each: boxed(", ".join(each)), lambda each: boxed(rf"\{{{', '.join(each)}\}}"),
        lambda each: boxed(r" \text{ and } ".join(each)), lambda each: boxed(", ".join(each[:-1]) + " and " + each[-1]),
        lambda each: " and ".join(rf"$\boxed{{{one}}}$" for one in each),
    ]  # fmt: skip
    right = [way(turned) for way in ways]
    others = [turned[:-1], [*turned, "1234567"], *([[*turned[:-1], last]] if last and last not in turned else [])]
    return Answers(right, [way(each) for way in ways for each in others])


def choice_letter(truth: str) -> Answers:
    r"""`(B)` with and without its brackets and its value; any value behind a letter."""
    if (found := choice(plain(truth))) and not found[1]:
        ways: Writers = [
            "{}".format, "({})".format, r"\text{{({})}}".format, r"\textbf{{({})}}\ 12".format, "{}. 12".format,
            r"\text{{Option {}}}".format, r"\mathrm{{{}}}".format,
        ]  # fmt: skip
        other = "D" if found[0] != "D" else "A"
        return Answers([boxed(way(found[0])) for way in ways], [boxed(way(other)) for way in ways])
    if not _is_value(truth):
        return NONE
    return _written(truth, [r"\textbf{{(B)}}\ {}".format, r"\text{{(B) }}{}".format, "(B) {}".format])


def nested_box(truth: str) -> Answers:
    r"""A box in a box, or in bold, or another kind of box; a bare one around a number."""
    boxes = [
        r"\boxed{{\boxed{{{}}}}}", r"So $\fbox{{{}}}$.", r"$\boxed{{\displaystyle {}}}$", r"\boxed{{{{{}}}}}",
        r"\boxed{{\text{{The answer is }}\boxed{{{}}}}}", r"$$\boxed{{\boldsymbol{{{}}}}}$$",
    ]  # fmt: skip
    if truth.count("{") != truth.count("}") or "$" in truth or r"\[" in truth or has_words(plain(truth)):
        return NONE
    ways = [each.format for each in boxes] + [r"It is $\boxed {}$.".format] * bool(re.fullmatch(r"-?[\d.]+", truth))
    near = None if "\\binom" in truth else neighbour(truth)
    wrong = [way(near) for way in ways] if near else []
    exact = _number(truth)
    return Answers([way(truth) for way in ways], [*wrong, *([rf"\boxed{{\boxed{{{truth}}}+1}}"] if exact else [])])


def prose(truth: str) -> Answers:
    """A marked answer in a sentence, with another sentence after it."""
    if "\n" in truth or "$" in truth or r"\[" in truth or "\\boxed" in truth or ". " in truth:
        return NONE
    formula = "{}" if has_words(plain(truth)) and "\\" not in truth else "${}$"
    ways: Writers = [
        f"The final answer is {formula}. I hope it is correct.".format, f"**Answer:** {formula}".format,
        f"So the answer is {formula}.\n\nThat is all.".format, f"Therefore, the answer is: {formula}".format,
        f"<answer>{formula}</answer>".format, f"**Final Answer**\n\n{formula}".format,
    ]  # fmt: skip
    near = None if "\\binom" in truth else neighbour(truth)
    wrong = [way(near) for way in ways] if near else []
    return Answers([way(truth) for way in ways], [*wrong, f"The answer is not {formula}.".format(truth)])


FORMS: dict[str, Callable[[str], Answers]] = {
    "currency": currency,
    "thousands": thousands,
    "units": units,
    "interval and inequality": intervals,
    "mixed fraction": mixed_fraction,
    "percent": percent,
    "repeating decimal": repeating_decimal,
    "equation": equation,
    "set and list order": list_order,
    "choice letter": choice_letter,
    "nested box": nested_box,
    "prose": prose,
}


def _written(truth: str, ways: Writers) -> Answers:
    """The truth in each way, and its neighbour in each way; a binomial coefficient's may be equal to it."""
    near = None if "\\binom" in truth else neighbour(truth)
    return Answers([boxed(way(truth)) for way in ways], [boxed(way(near)) for way in ways] if near else [])


def _with_traps(answers: Answers, exact: Number | None, traps: list[str]) -> Answers:
    """The answers, and traps that are wrong behind every number but 0."""
    return Answers(answers.right, [*answers.wrong, *(map(boxed, traps) if exact and exact.value else ())])


def _number(truth: str) -> Number | None:
    """The number that a ground truth is, without a unit."""
    return number(plain(truth))


def _is_value(truth: str) -> bool:
    """Whether a ground truth is one value without a unit: no list, tuple, statement or words."""
    text = plain(truth)
    if (
        has_words(text)
        or _STATEMENT.search(text)
        or _RELATION.search(text)
        or measure(text)[1]
        or len(members(text)) != 1
    ):
        return False
    inside = brackets(text)
    return bool(text) and truth.count("{") == truth.count("}") and not (inside and len(members(inside[1])) > 1)


def _ends(part: str) -> tuple[str, str, str, str] | None:
    """(opening, lower, upper, closing) of an interval that is one beyond doubt, or of an inequality in x."""
    opening, inside, closing = brackets(part) or ("", "", "")
    entries = split(inside, re.compile(","))
    if opening not in ("(", "[") or len(entries) != 2 or has_words(part):
        return None
    return (opening, *entries, closing) if opening + closing != "()" or "infty" in part else None


def _turned(bracket: str) -> str:
    return {"(": "[", ")": "]", "[": "(", "]": ")"}[bracket]


def _as_interval(parts: list[tuple[str, str, str, str]]) -> str:
    return r"x \in " + r" \cup ".join(f"{opening}{lower}, {upper}{closing}" for opening, lower, upper, closing in parts)


def _as_inequality(parts: list[tuple[str, str, str, str]]) -> str:
    return r" \text{ or } ".join(_inequality(*part, variable_first=True) for part in parts)


def _as_turned_inequality(parts: list[tuple[str, str, str, str]]) -> str:
    return r" \text{ or } ".join(_inequality(*part, variable_first=False) for part in reversed(parts))


def _inequality(opening: str, lower: str, upper: str, closing: str, variable_first: bool) -> str:
    less = (r"\le" if opening == "[" else "<", r"\le" if closing == "]" else "<")
    more = (r"\ge" if opening == "[" else ">", r"\ge" if closing == "]" else ">")
    if "infty" in lower:
        return f"x {less[1]} {upper}" if variable_first else f"{upper} {more[1]} x"
    if "infty" in upper:
        return f"x {more[0]} {lower}" if variable_first else f"{lower} {less[0]} x"
    return f"{lower} {less[0]} x {less[1]} {upper}" if variable_first else f"{upper} {more[1]} x {more[0]} {lower}"


def _decimal(value: Fraction) -> str | None:
    """A value as a decimal that ends within 6 places; None where it does not."""
    scaled = value * 10**6
    return f"{float(value):.6f}".rstrip("0").rstrip(".") if scaled.denominator == 1 and abs(value) < 10**6 else None


def _period(value: Fraction) -> tuple[str, str] | None:
    """(the decimal up to its period, its period) of a value whose decimal repeats soon; None for another."""
    rest, digits, seen = abs(value) % 1, "", {}
    while rest and rest not in seen and len(digits) <= _LONGEST_PERIOD:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, 1)
        digits += str(digit)
    if not rest or rest not in seen:
        return None
    sign = "-" if value < 0 else ""
    return f"{sign}{int(abs(value))}.{digits[: seen[rest]]}", digits[seen[rest] :]
