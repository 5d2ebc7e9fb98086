r"""Inequalities and sets written as intervals: `x<2 \text{ or } x \geq 3` is `(-\infty,2) \cup [3,\infty)`."""

from __future__ import annotations

import re

from steer_core.rewards.notation import split

_RELATION = re.compile(r"[<>]|\\(?:leq|geq)(?![A-Za-z])")
_OR = re.compile(r"or|\\text\s*\{\s*or\s*\}|\\(?:lor|vee)|\\cup")
_AND = re.compile(r"and|\\text\s*\{\s*and\s*\}|\\(?:land|wedge)")
_VARIABLE = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?")
_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid(?![A-Za-z])|\||:)(.*)\\\}", re.DOTALL)
_OUTWARD = re.compile(r"([\[\](])([^\[\]()]*,[^\[\]()]*)([\[\])])")
_ALL_BUT = re.compile(r"([A-Za-z])\s*\\neq\s*(-?[\d\\.][^,;<>=]*)")
_WITHOUT = re.compile(r"([(\[][^,()\[\]]+,)([^,()\[\]]+[)\]])\s*\\setminus\s*\\\{([^,{}]+)\\\}")
_TURNED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
Ends = tuple[str, str, str, str]
"""Opening bracket, lower end, upper end, closing bracket."""


def as_intervals(text: str) -> tuple[str | None, str]:
    r"""(variable, the set of its values as a union of intervals) of plain text; (None, the text) where it is no
    inequality in one variable that stands alone. A set-builder's braces, `]a,b]`, `x \neq a` and an interval
    without one value are intervals too.
    """
    if found := _BUILDER.fullmatch(text):
        text = found[2].strip()
    if (found := _OUTWARD.fullmatch(text)) and (found[1] == "]" or found[3] == "["):
        return None, ("(" if found[1] == "]" else found[1]) + found[2] + (")" if found[3] == "[" else found[3])
    if found := _WITHOUT.fullmatch(text):
        return None, rf"{found[1]}{found[3]}) \cup ({found[3]},{found[2]}"
    if (found := _ALL_BUT.fullmatch(text)) and not re.search(r"\\(?:neq|text|lor|land)|and|or", found[2]):
        return found[1], rf"(-\infty,{found[2]}) \cup ({found[2]},\infty)"
    if not _RELATION.search(text):
        return None, text
    variables, intervals = set(), []
    for part in split(text, _OR):
        ends: Ends | None = None
        for condition in split(part, _AND):
            one = _interval(condition)
            if one is None:
                return None, text
            variables.add(one[0])
            ends = one[1] if ends is None else _both(ends, one[1])
            if ends is None:
                return None, text
        if ends is not None:
            opening, lower, upper, closing = ends
            intervals.append(f"{opening}{lower},{upper}{closing}")
    return (variables.pop(), r" \cup ".join(intervals)) if len(variables) == 1 else (None, text)


def _interval(condition: str) -> tuple[str, Ends] | None:
    r"""(variable, ends) of `x<2`, `2 \leq x` or `1<x<2`."""
    sides, signs = split(condition, _RELATION), _RELATION.findall(condition)
    if len(sides) != len(signs) + 1:
        return None
    if len(sides) == 2:
        left, right = sides
        if _VARIABLE.fullmatch(left):
            variable, value, sign = left, right, signs[0]
        elif _VARIABLE.fullmatch(right):
            variable, value, sign = right, left, _TURNED[signs[0]]
        else:
            return None
        if variable == r"\infty" or _VARIABLE.fullmatch(value):
            return None
        if "<" in sign or "leq" in sign:
            return variable, ("(", r"-\infty", value, "]" if "leq" in sign else ")")
        return variable, ("[" if "geq" in sign else "(", value, r"\infty", ")")
    if len(sides) != 3 or not _VARIABLE.fullmatch(sides[1]):
        return None
    down = [sign in (">", r"\geq") for sign in signs]
    if down[0] != down[1]:
        return None
    if down[0]:
        sides, signs = sides[::-1], [_TURNED[sign] for sign in signs[::-1]]
    return sides[1], ("[" if "leq" in signs[0] else "(", sides[0], sides[2], "]" if "leq" in signs[1] else ")")


def _both(one: Ends, other: Ends) -> Ends | None:
    """The values in both, where one has no upper and the other no lower end."""
    if one[1] == r"-\infty":
        one, other = other, one
    if one[2] != r"\infty" or other[1] != r"-\infty":
        return None
    return one[0], one[1], other[2], other[3]
