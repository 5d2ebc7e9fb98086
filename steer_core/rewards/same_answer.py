r"""Whether a final answer is the reference's value: taken apart into the parts that have to match, each its own.

The members of a list or set in any order, the entries of a tuple or interval in theirs, every side of an equation but
what the answer calls it, inequalities as intervals, units, exact numbers, words letter by letter. What remains are
single formulas.
"""

from __future__ import annotations

import re
from itertools import product

from steer_core.rewards.answers import choice, concluded, final_answer, members
from steer_core.rewards.notation import brackets, plain, split, squashed, tokens
from steer_core.rewards.quantities import Number, measure, number
from steer_core.rewards.ranges import as_intervals
from steer_core.rewards.same_formula import ROUNDED, canonical_formula, rounds_to, same_equation, same_formula

LONGEST = 1000
"""Characters of an answer that is still taken apart."""
_SYMBOL = (
    r"(?:\\?[A-Za-z]+|\\text\s*\{[^{}]*\})(?:\s*_\s*(?:\{(?:[^{}]|\\text\{[^{}]*\})*\}|\w))?"
    r"(?:'|\^\s*\{?\s*[*']\s*\}?)*"
)
_NO_FUNCTION = r"(?!\\?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|lim|sqrt|frac|int|sum|prod)(?![A-Za-z]))"
_NAME = re.compile(
    rf"(?:\\text\s*\{{[^{{}}]*\}}\s*)?{_NO_FUNCTION}"
    rf"(?:(?:m?\s*\\(?:angle|triangle)\s*)?(?:{_SYMBOL}|[A-Z](?:\s*[A-Z])+\s*(?:_\s*\{{\d+\}})?)(?:\s*\([\w,\s\\]*\))?"
    rf"|\(?\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)?)"
)
_LETTER = r"[A-Za-z](?:_(?:\{\w+\}|\w))?"
_ASKED_FOR = re.compile(
    rf"{_LETTER}(?:\s*(?:[-+/]|\\cdot|\\times|)\s*{_LETTER})+|\|\s*{_LETTER}(?:\s*{_LETTER})*\s*\|"
    rf"|\\frac\s*\{{\s*{_LETTER}\s*\}}\s*\{{\s*{_LETTER}\s*\}}|\\overline\s*\{{\s*[A-Z]{{2}}\s*\}}"
)
r"""What a question asks for and an answer may repeat, without a number of its own: `m+n`, `|AB|`, `\frac{a}{b}`."""
_EQUALS, _UNION, _EQUALS_OR_IN = re.compile("="), re.compile(r"\\cup"), re.compile(r"=|\\in")
_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])")
_POINT = re.compile(r"[A-Z]\s*(?=\()")
_COLUMN = re.compile(r"\\begin\s*\{[pb]matrix\}([^&]*)\\end\s*\{[pb]matrix\}")
_FUNCTION = re.compile(r"([A-Za-z])\(([a-z])\)")
_ABOUT = re.compile(r"\\approx")
_ENTRIES, _EITHER = re.compile("[,;]"), re.compile(r"\\text\s*\{\s*OR\s*\}|(?<![A-Za-z])OR(?![A-Za-z])")
_RELATION = re.compile(r"[<>]|\\(?:leq|geq)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.])(?<!\d,)\d{1,3}(?:,\d{3})+(?!,?\d)", re.ASCII)
_AND_A_PART = re.compile(r"(-?\d+) ?(?:\\text ?\{ ?and ?\}|and) ?(\\frac ?\{\d+\} ?\{\d+\}|\d+/\d+)", re.ASCII)
_CURRENCIES = "$\u20ac\u00a3\u00a5\u20b9"


def agree(reference: str, answer: str) -> bool:
    """Whether a final answer is the reference's value, or its very text. May take any time and memory."""
    if len(answer) > max(LONGEST, 2 * len(reference)):
        return False
    reference, answer = plain(reference), plain(answer)
    if not squashed(answer):
        return False
    if squashed(reference) == squashed(answer):
        return True
    if "\\boxed" in reference:
        reference = plain(final_answer(reference) or reference)
    if max(len(reference), len(answer)) > LONGEST:
        return False
    try:
        reference, answer = concluded(reference), concluded(answer)
        return any(_same_choice(right.strip(), answer) for right in _EITHER.split(reference))
    except MemoryError:
        raise
    except Exception:  # sympy, on text that a policy made up
        return False


def _same_choice(right: str, answer: str) -> bool:
    """Whether two answers agree, where either may be a letter that was to be chosen, with what it stands for."""
    (letter, value), (given, written) = choice(right) or ("", right), choice(answer) or ("", answer)
    if letter and given:
        return letter == given and (not value or not written or _same_rounded(value, written))
    return _same_rounded(right, answer) or (
        bool((given or value != right) and written and value) and _same_rounded(value, written)
    )


def _same_rounded(right: str, answer: str) -> bool:
    r"""Whether two answers agree, where the answer may be followed by what it is about: `2\sqrt{5} \approx 4.47`."""
    sides = split(answer, _ABOUT)
    if len(sides) == 2 and not _ABOUT.search(right) and not answer.startswith("\\approx"):
        exact, decimal = _unit_free(split(sides[0], _EQUALS)[-1]), _unit_free(sides[1])
        given = number(decimal)
        if not rounds_to(exact, decimal):
            return False
        return _in_some_reading(right, sides[0]) or (bool(given and given.places) and _in_some_reading(right, sides[1]))
    return _in_some_reading(right, answer)


def _in_some_reading(right: str, answer: str) -> bool:
    """Whether two answers agree, with a comma between digits for a list, or for thousands where it can be that."""
    return any(_same_list(one, other) for one, other in product(_readings(right), _readings(answer)))


def _readings(text: str) -> list[str]:
    """The text, and the text without commas for thousands where it is more than one number, or as a mixed number."""
    if found := _AND_A_PART.fullmatch(text):
        return [f"{found[1]} {found[2]}", text]
    without = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return [text] if without == text or number(text) else [text, without]


def _same_list(right: str, answer: str) -> bool:
    """Whether two lists, sets or single values agree, their members in any order."""
    if (same := _same_assignment(right, answer)) is not None:
        return same
    (right_name, right_value), (answer_name, answer_value) = _named(right), _named(answer)
    answer_name, answer_value = _of_argument(right_name, answer_name, answer_value)
    if right_name != answer_name and right_name and _is_equation(answer):
        return _same_equations(right, answer)
    if answer_name and not right_name and _is_equation(right):
        return _same_equations(right, answer)
    right, answer = right_value, answer_value
    if squashed(right) == squashed(answer):
        return True
    if r"\emptyset" in (right, answer):
        return False
    (variable, right), (other_variable, answer) = as_intervals(right), as_intervals(answer)
    if variable and other_variable and variable != other_variable:
        return False
    if bool(_RELATION.search(right)) != bool(_RELATION.search(answer)):
        return _is_range(right) and _is_range(answer) and same_formula(right, answer)
    if number(measure(right)[0]) and number(measure(answer)[0]):
        return _same_quantity(right, answer)
    ours, theirs = ([text] if number(text) else members(text) for text in (right, answer))
    if _UNION.search(right) and len(theirs) > 1:
        ours = split(right, _UNION)
    if len(ours) == 1 < len(theirs) and _OR.search(answer):  # one value in several forms
        return len(set(map(squashed, theirs))) == len(theirs) and all(_same_list(right, other) for other in theirs)
    if len(ours) != len(theirs):
        return False
    return _same_value(ours[0], theirs[0]) if len(ours) == 1 else _same_members(ours, theirs)


def _same_members(ours: list[str], theirs: list[str]) -> bool:
    """Whether each of ours has one of its own among theirs, of which there are as many."""
    left = list(theirs)
    for one in ours:
        at = next((i for i, other in enumerate(left) if _same_list(one, other)), None)
        if at is None:
            return False
        del left[at]
    return True


def _same_assignment(right: str, answer: str) -> bool | None:
    """Whether two answers give the same names the same values, or a tuple that of the names in the order of the
    alphabet; None where neither gives several names a value each.
    """
    ours, theirs = _assigned(right), _assigned(answer)
    if ours and theirs:
        return ours.keys() == theirs.keys() and all(_same_list(ours[name], theirs[name]) for name in ours)
    one, other = ours or theirs, _entries(answer if ours else right)
    if not one or not other or other[0] != ("(", ")") or len(other[1]) != len(one):
        return None
    if len(members(right if ours else answer)) == 1:  # a tuple of names is in an order of its own
        return None
    values = [one[name] for name in sorted(one)]
    return all(map(_same_list, other[1], values)) if theirs else all(map(_same_list, values, other[1]))


def _assigned(text: str) -> dict[str, str] | None:
    """{name: value} of `m=9, n=6` or `(m,n) = (9,6)`, where there are several names and all differ."""
    name, value = _named(text)
    if name and (names := brackets(name)) and (values := _entries(value)):
        pairs = list(zip(split(names[1], _ENTRIES), values[1], strict=False))
        alike = len(split(names[1], _ENTRIES)) == len(values[1])
    else:
        named = [_named(member) for member in members(text)] if "=" in text else []
        pairs = [(name, value) for name, value in named if name and re.fullmatch(_LETTER, name)]
        alike = len(pairs) == len(named)
    return dict(pairs) if alike and len(dict(pairs)) == len(pairs) > 1 else None


def _same_value(right: str, answer: str) -> bool:
    """Whether two single values agree: equations, unions, tuples and intervals, quantities, or formulas."""
    right_sides, answer_sides = split(right, _EQUALS), split(answer, _EQUALS)
    if len(answer_sides) > 1 and len(right_sides) == 1:
        if len(answer_sides) == 2 and _NAME.fullmatch(answer_sides[1]) and squashed(answer_sides[0]) == squashed(right):
            return True
        first = 1 if _NAME.fullmatch(answer_sides[0]) or _ASKED_FOR.fullmatch(answer_sides[0]) else 0
        return all(_same_list(right, side) for side in answer_sides[first:])
    if len(right_sides) > 1:
        if len(answer_sides) != len(right_sides):
            return False
        named = _NAME.fullmatch(right_sides[0])
        return all(map(_same_list, right_sides, answer_sides)) if named else same_equation(right_sides, answer_sides)
    if _UNION.search(right) or _UNION.search(answer):
        ours, theirs = split(right, _UNION), split(answer, _UNION)
        if len(ours) == len(theirs) > 1:
            return _same_members(ours, theirs)
    inside, given = _entries(right), _entries(answer)
    inside, given = inside or (given and _column(right)), given or (inside and _column(answer))
    if inside or given:
        if not (inside and given) or inside[0] != given[0] or len(inside[1]) != len(given[1]):
            return False
        return all(map(_same_list, inside[1], given[1]))
    grouped = [_ungrouped(right), _ungrouped(answer)]
    return _same_list(*grouped) if grouped != [right, answer] else _same_quantity(right, answer)


def _same_equations(right: str, answer: str) -> bool:
    """Whether two equations in two variables at least say the same, whichever variable they are solved for."""
    return same_equation(split(right, _EQUALS), split(answer, _EQUALS), least_names=2)


def _same_quantity(right: str, answer: str) -> bool:
    """Whether two values agree together with their units, of which one may be left out."""
    (value, unit), (given, given_unit) = measure(right), measure(answer)
    if unit or given_unit:
        if {unit, given_unit} <= {"\u00b0", "rad", None} and unit != given_unit:
            degrees, radians = (value, given) if unit == "\u00b0" else (given, value)
            if "\u00b0" in (unit, given_unit) and "\\pi" in radians:
                return same_formula(radians, rf"\frac{{({degrees}) \cdot \pi}}{{180}}")
        if unit and given_unit and unit != given_unit and not _same_rate(unit, given_unit):
            return False
        exact, written = number(value), number(given)
        if exact and written and "%" in (unit, given_unit) and unit != given_unit:
            hundredth = (exact.value / 100, written.value) if unit else (exact.value, written.value / 100)
            as_written = exact.value == written.value and (unit == "%" or abs(exact.value) >= 1)
            return as_written or hundredth[0] == hundredth[1]
        return _same_list(value, given)
    exact, written = number(right), number(answer)
    return _same_number(exact, written) if exact and written else same_formula(right, answer)


def _same_rate(unit: str, given: str) -> bool:
    """Whether one unit is the other's short form, as dollars are for dollars an hour, and degrees for Celsius."""
    longer, shorter = sorted((unit, given), key=len, reverse=True)
    if longer.startswith(f"{shorter} /") and (shorter in _CURRENCIES or shorter[0] == "\u00b0"):
        return True
    return shorter == "\u00b0" and longer[0] == shorter


def _same_number(exact: Number, given: Number) -> bool:
    """Whether two written-out numbers are equal, or the given one a long decimal for a fraction."""
    return exact.value == given.value or (exact.places is None and given.stands_for(exact.value, ROUNDED))


def canonical(answer: str) -> str:
    """An answer so written that equal ones are equal text, as far as that is cheap; what a majority vote counts."""
    text = plain(answer[: 2 * LONGEST])
    if len(text) > LONGEST:
        return squashed(text)
    try:
        return _canonical_list(_readings(concluded(text))[-1])
    except MemoryError:
        raise
    except Exception:  # sympy, on text that a policy made up
        return squashed(text)


def _canonical_list(text: str) -> str:
    text = as_intervals(_named(text)[1])[1]
    if exact := number(measure(text)[0]):
        return str(exact.value)
    found = members(text)
    return ", ".join(sorted(map(_canonical_list, found))) if len(found) > 1 else _canonical_value((found or [text])[0])


def _canonical_value(text: str) -> str:
    parts = split(text, _UNION)
    if len(parts) > 1:
        return r" \cup ".join(sorted(map(_canonical_list, parts)))
    if entries := _entries(text):
        (opening, closing), inside = entries
        return opening + ", ".join(map(_canonical_list, inside)) + closing
    value = measure(_ungrouped(text))[0]
    if value != text:
        return _canonical_list(value)
    return canonical_formula(text) or squashed(text)


def _named(text: str) -> tuple[str | None, str]:
    r"""(name, value) of `name = value`, `value = name` or `name \in value`, else (None, the text)."""
    sides = split(text, _EQUALS_OR_IN)
    if len(sides) == 2 and "=" in text and _NAME.fullmatch(sides[1]) and not _NAME.fullmatch(sides[0]):
        sides.reverse()
    return (squashed(sides[0]), sides[1]) if len(sides) == 2 and _NAME.fullmatch(sides[0]) else (None, text)


def _of_argument(right: str | None, name: str | None, value: str) -> tuple[str | None, str]:
    """(name, value) of an answer, with the reference's letter for its argument: `f(t)=t^2` is `f(x)=x^2`, and so is
    `y=x^2`.
    """
    ours, theirs = _FUNCTION.fullmatch(right or ""), _FUNCTION.fullmatch(name or "")
    if (ours and name == "y" and ours[2] == "x") or (theirs and right == "y" and theirs[2] == "x"):
        return right, value
    if not (ours and theirs and ours[1] == theirs[1]) or "\\text" in value or ours[2] in tokens(value):
        return name, value
    return right, "".join(ours[2] if token == theirs[2] else token for token in tokens(value))


def _is_equation(text: str) -> bool:
    return len(split(text, _EQUALS)) == 2


def _unit_free(text: str) -> str:
    return measure(_ungrouped(text))[0]


def _entries(text: str) -> tuple[tuple[str, str], list[str]] | None:
    """((opening, closing), entries) of a tuple or interval, which has two entries at least."""
    opening, inside, closing = brackets(_POINT.sub("", text, count=1) if _POINT.match(text) else text) or ("", "", "")
    entries = split(inside, _ENTRIES) if opening in ("(", "[") else []
    return ((opening, closing), entries) if len(entries) > 1 else None


def _column(text: str) -> tuple[tuple[str, str], list[str]] | None:
    """A matrix of one column as the tuple of its entries."""
    found = _COLUMN.fullmatch(text)
    return (("(", ")"), [row.strip() for row in found[1].split("\\\\") if row.strip()]) if found else None


def _ungrouped(text: str) -> str:
    """The text without brackets around all of it."""
    while (found := brackets(text)) and found[0] + found[2] in ("()", "{}"):
        text = found[1]
    return text


def _is_range(text: str) -> bool:
    """Whether the text is an interval, a union of some, or an inequality."""
    entries = _entries(text)
    return bool(_RELATION.search(text) or _UNION.search(text)) or (entries is not None and len(entries[1]) == 2)
