r"""Maths by math-verify, strictly: the final answer that a response marks, judged part by part, in killable processes.

math-verify compares formulas; by itself it takes hours for minutes, 4210 in base 6 for 4210 in base 5, `x+1=3` for 3
and `2, 4` for `(2,4)`. So an answer is first taken apart here, and each part has to match its own: the members of a
list or set in any order, the entries of a tuple or interval in theirs, every side of an equation but a name on its
left, units, exact numbers, words letter by letter. What remains are single formulas, and only those are math-verify's.

Units may be left out or added, for the question names them, but not replaced: `18 dollars` is 18, `40 hours` is not
`40 minutes`. A percent sign is a unit, and also a hundredth: `50\%` is 50 and 0.5, while 0.5 is not 50. Words that
change a number (`18 thousand`) are no units. Digits are 0 to 9: a full-width or Arabic digit makes an answer wrong.
An answer that is the reference's own text, up to spaces, `$` and `\text`, is right whatever it says: some ground
truths are sentences. What is longer than 1,000 characters is compared in this way only, and so is a formula with more
than 12 brackets within one another.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from steer_core.rewards.answers import (
    brackets,
    final_answer,
    has_words,
    last_expression,
    members,
    nesting,
    plain,
    split,
    squashed,
)
from steer_core.rewards.base import Verdict
from steer_core.rewards.quantities import Number, measure, number
from steer_core.rewards.workers import Failure, WorkerPool, shared_pool

LONGEST = 1000
"""Characters of an answer that is still taken apart."""
DEEPEST = 12
"""Brackets within one another of a formula that is still read. Benchmarks have up to 5; the time grows as 2^depth."""
_ROUNDED = 6
"""Significant digits that a decimal needs to stand for a number that is no decimal, as 0.333333 does for 1/3."""
_DIGITS, _MANY_DIGITS = 20, 10_000
"""Digits to which two values are compared before math-verify is asked; many where both are exact and quick."""
_COARSE = 1e-5
"""How far a rounded value may lie from an exact one, relative to its size."""
_SYMBOL = r"(?:\\?[A-Za-z]+|\\text\s*\{[^{}]*\})(?:\s*_\s*(?:\{[^{}]*\}|\w))?'*"
_NAME = re.compile(
    rf"(?!\\?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|lim|sqrt)(?![A-Za-z]))"
    rf"(?:(?:\\(?:angle|triangle)\s*)?(?:{_SYMBOL}|[A-Z](?:\s*[A-Z])+\s*(?:_\s*\{{\d+\}})?)(?:\s*\([\w,\s\\]*\))?"
    rf"|\(?\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)?)"
)
_EQUALS, _UNION, _EQUALS_OR_IN = re.compile("="), re.compile(r"\\cup"), re.compile(r"=|\\in")
_ENTRIES, _EITHER = re.compile("[,;]"), re.compile(r"\\text\s*\{\s*OR\s*\}|(?<![A-Za-z])OR(?![A-Za-z])")
_RELATION = re.compile(r"[<>]|\\(?:leq|geq)(?![A-Za-z])")
_NO_FORMULA = re.compile(
    r"\\(?:approx|sim|equiv|[bp]?mod|l?dots|cdots|to|rightarrow|mid|neq|boxed)(?![A-Za-z])|[?:\u2026]|\.\."
)
"""What math-verify reads past, and what makes a statement of a value: with it, answers are compared as text."""
_IMAGINARY = re.compile(r"(?<![\\A-Za-z])i(?=[A-Za-z]?(?![A-Za-z]))")
_COMMAND, _LETTER = re.compile(r"\\[A-Za-z]+"), re.compile("[A-Za-z]")


class MathsGrader:
    """Right where the marked final answer agrees with the reference; see this module's head for what agrees.

    anywhere: take the last formula or number where nothing is marked, or where the marked line is a sentence; a
    stray number then counts as an answer, and with it a lucky one.
    """

    name = "strict"

    def __init__(self, anywhere: bool = False, pool: WorkerPool | None = None) -> None:
        self.anywhere = anywhere
        self._pool = pool or shared_pool(f"{__name__}:judge")

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Grader.grade`."""
        pairs = zip(references, responses, strict=True)
        return verdicts(self._pool, [[reference, response, self.anywhere] for reference, response in pairs])


def verdicts(pool: WorkerPool, items: list[Any]) -> list[Verdict]:
    """What a pool's function says of each item, as it returns it: [status, answer]; or how judging failed."""
    return [
        Verdict(result.status, detail=result.detail) if isinstance(result, Failure) else Verdict(*result)
        for result in pool.map(items)
    ]


def judge(item: tuple[str, str, bool]) -> tuple[str, str | None]:
    """(status, answer in canonical form) of (reference, response, anywhere). Runs in a worker: it may hang or die."""
    reference, response, anywhere = item
    answer = final_answer(response)
    if anywhere and "\\boxed" not in response and (answer is None or has_words(plain(answer[:LONGEST]))):
        if answer is not None and agree(reference, answer):
            return "right", canonical(answer)
        answer = last_expression(answer or response) or answer
    if answer is None:
        return "unanswered", None
    return "right" if agree(reference, answer) else "wrong", canonical(answer)


def warm_up() -> None:
    """Load math-verify and have its parser learn its grammar, which no item should be charged for."""
    judge(("1", r"\boxed{x+\frac{\sqrt{2}}{3}}", False))


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
        return any(_same_list(choice.strip(), answer) for choice in _EITHER.split(reference))
    except MemoryError:
        raise
    except Exception:  # sympy, on text that a policy made up
        return False


def _same_list(right: str, answer: str) -> bool:
    """Whether two lists, sets or single values agree, their members in any order."""
    (right_name, right), (answer_name, answer) = _named(right), _named(answer)
    if right_name and answer_name and right_name != answer_name:
        return False
    if squashed(right) == squashed(answer):
        return True
    if bool(_RELATION.search(right)) != bool(_RELATION.search(answer)):
        return _is_range(right) and _is_range(answer) and _same_formula(right, answer)
    exact, given = number(right), number(answer)
    if exact and given:
        return _same_number(exact, given)
    ours, theirs = members(right), members(answer)
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


def _same_value(right: str, answer: str) -> bool:
    """Whether two single values agree: equations, unions, tuples and intervals, quantities, or formulas."""
    right_sides, answer_sides = split(right, _EQUALS), split(answer, _EQUALS)
    if len(answer_sides) > 1 and len(right_sides) == 1:
        first = 1 if _NAME.fullmatch(answer_sides[0]) else 0
        return all(_same_list(right, side) for side in answer_sides[first:])
    if len(right_sides) > 1:
        return len(answer_sides) == len(right_sides) and (
            all(map(_same_list, right_sides, answer_sides))
            if _NAME.fullmatch(right_sides[0])
            else _same_equation(right_sides, answer_sides)
        )
    if _UNION.search(right) or _UNION.search(answer):
        ours, theirs = split(right, _UNION), split(answer, _UNION)
        if len(ours) == len(theirs) > 1:
            return _same_members(ours, theirs)
    inside, given = _entries(right), _entries(answer)
    if inside or given:
        return bool(inside and given) and inside[0] == given[0] and all(map(_same_list, inside[1], given[1]))
    grouped = [_ungrouped(right), _ungrouped(answer)]
    return _same_list(*grouped) if grouped != [right, answer] else _same_quantity(right, answer)


def _same_quantity(right: str, answer: str) -> bool:
    """Whether two values agree together with their units, of which one may be left out."""
    (value, unit), (given, given_unit) = measure(right), measure(answer)
    if unit or given_unit:
        if unit and given_unit and unit != given_unit:
            return False
        exact, written = number(value), number(given)
        if exact and written and "%" in (unit, given_unit) and unit != given_unit:
            hundredth = (exact.value / 100, written.value) if unit else (exact.value, written.value / 100)
            return exact.value == written.value or hundredth[0] == hundredth[1]
        return _same_list(value, given)
    exact, written = number(right), number(answer)
    return _same_number(exact, written) if exact and written else _same_formula(right, answer)


def _other_case(right: str, answer: str) -> bool:
    """Whether the answer writes a variable as a capital or small letter that the reference has only otherwise."""
    known, used = (set(_LETTER.findall(_COMMAND.sub(" ", text))) for text in (right, answer))
    return any(letter.swapcase() in known for letter in used - known)


def _same_number(exact: Number, given: Number) -> bool:
    """Whether two written-out numbers are equal, or the given one a long decimal for a fraction."""
    return exact.value == given.value or (exact.places is None and given.stands_for(exact.value, _ROUNDED))


def _same_formula(right: str, answer: str) -> bool:
    """Whether math-verify says that two formulas agree. A decimal for what is none needs 6 significant digits.

    It is not asked where they differ at a point already: what is very small is 0 to it.
    """
    import math_verify

    exact, given = number(right), number(answer)
    rounded = given is not None and exact is None and bool(given.places)
    pair = _formulas(right, answer)
    if pair is None or (rounded and given.digits < _ROUNDED) or _apart(*pair, rounded):
        return False
    places = max([_ROUNDED, *(each.places or 0 for each in (exact, given) if each)])
    return math_verify.verify(*pair, float_rounding=places, allow_set_relation_comp=True, timeout_seconds=None)


def _same_equation(right: list[str], answer: list[str]) -> bool:
    """Whether two equations, each as its sides, differ by a constant factor only. math-verify would solve them."""
    import sympy

    pair = _formulas(*("({}) - ({})".format(*sides) for sides in (right, answer))) if len(right) == 2 else None
    if pair is None or not (pair[0].free_symbols and pair[1].free_symbols):
        return False
    factor = sympy.simplify(pair[0] / pair[1])
    return bool(factor.is_number and factor.is_finite and factor != 0)


def _formulas(right: str, answer: str) -> tuple[Any, Any] | None:
    """Both formulas parsed, or None where one is none, or they are not to be compared as mathematics.

    That is words, signs that math-verify reads past, variables of another case, and derivatives and limits, which
    sympy takes of functions that it does not know.
    """
    import sympy

    if _is_text(right) or _is_text(answer) or _other_case(right, answer):
        return None
    ours, theirs = parsed(right), parsed(answer)
    if not ours or not theirs or any(each.has(sympy.Derivative, sympy.Limit) for each in (ours[0], theirs[0])):
        return None
    return ours[0], theirs[0]


def _is_text(text: str) -> bool:
    return has_words(text) or bool(_NO_FORMULA.search(text))


def _apart(right: Any, answer: Any, rounded: bool) -> bool:
    """Whether two formulas have different values, relative to their size, with a whole number for every variable."""
    import sympy

    if not (isinstance(right, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    names = sorted(right.free_symbols | answer.free_symbols, key=str)
    point = {name: sympy.prime(3 + i) for i, name in enumerate(names)}
    both = right.subs(point), answer.subs(point)
    quick = not any(each.has(sympy.Float, sympy.Integral, sympy.Sum, sympy.Product) for each in both)
    for digits in (_DIGITS, _MANY_DIGITS) if quick else (_DIGITS,):
        ours, theirs = (each.evalf(digits) for each in both)
        if not (ours.is_number and theirs.is_number):
            return False
        gap, size = (sympy.Abs(value).evalf(digits) for value in (ours - theirs, ours))
        limit = size * (_COARSE if rounded else sympy.Float(10) ** (10 - digits))
        if gap.is_comparable and limit.is_comparable and gap > limit:
            return True
    return False


def canonical(answer: str) -> str:
    """An answer so written that equal ones are equal text, as far as that is cheap; what a majority vote counts."""
    text = plain(answer[: 2 * LONGEST])
    if len(text) > LONGEST:
        return squashed(text)
    try:
        return _canonical_list(text)
    except MemoryError:
        raise
    except Exception:
        return squashed(text)


def _canonical_list(text: str) -> str:
    text = _named(text)[1]
    exact = number(text)
    if exact:
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
    read = [] if _is_text(text) else parsed(text)
    return _canonical_formula(read[0]) if read else squashed(text)


def _canonical_formula(formula: Any) -> str:
    """A formula's text: exact where it is a rational number, ten digits of another constant, else expanded."""
    if formula.free_symbols:
        return str(formula.expand() if formula.count_ops() < 100 else formula)
    size = formula.evalf(15)
    if not size.is_comparable:
        return str(size)
    value = formula.doit() if abs(size) < 1e300 else size
    return str(Fraction(int(value.p), int(value.q))) if value.is_Rational else str(value.evalf(10))


def _named(text: str) -> tuple[str | None, str]:
    r"""(name, value) of `name = value` or `name \in value`, else (None, the text)."""
    sides = split(text, _EQUALS_OR_IN)
    return (squashed(sides[0]), sides[1]) if len(sides) == 2 and _NAME.fullmatch(sides[0]) else (None, text)


def _entries(text: str) -> tuple[tuple[str, str], list[str]] | None:
    """((opening, closing), entries) of a tuple or interval, which has two entries at least."""
    opening, inside, closing = brackets(text) or ("", "", "")
    entries = split(inside, _ENTRIES) if opening in ("(", "[") else []
    return ((opening, closing), entries) if len(entries) > 1 else None


def _ungrouped(text: str) -> str:
    """The text without brackets around all of it."""
    while (found := brackets(text)) and found[0] + found[2] in ("()", "{}"):
        text = found[1]
    return text


def _is_range(text: str) -> bool:
    """Whether the text is an interval, a union of some, or an inequality."""
    entries = _entries(text)
    return bool(_RELATION.search(text) or _UNION.search(text)) or (entries is not None and len(entries[1]) == 2)


@lru_cache(maxsize=4096)
def parsed(formula: str) -> list[Any]:
    """A formula as math-verify reads it; an empty list where it does not, or where brackets are more than DEEPEST deep.

    Units stay on: they may be names.
    """
    if nesting(formula) > DEEPEST:
        return []
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    reading = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    boxes = LatexExtractionConfig(
        try_extract_without_anchor=False, boxed_match_priority=0, normalization_config=reading
    )
    formula = _IMAGINARY.sub(" i ", formula)  # it takes `2 i` for imaginary and `2i` for a variable
    return parse(rf"\boxed{{{formula}}}", [boxes], fallback_mode="no_fallback", parsing_timeout=None)
