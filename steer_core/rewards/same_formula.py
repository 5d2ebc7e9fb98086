"""Single formulas: read and compared by math-verify, once it is sure that nothing in them is read past or misread."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from steer_core.rewards.notation import has_words, nesting
from steer_core.rewards.quantities import TRIGONOMETRY, number

DEEPEST = 12
"""Brackets within one another of a formula that is still read. Benchmarks have up to 5; the time grows as 2^depth."""
ROUNDED = 6
"""Significant digits that a decimal needs to stand for a number that is no decimal, as 0.333333 does for 1/3."""
_DIGITS, _MANY_DIGITS = 20, 10_000
"""Digits to which two values are compared before math-verify is asked; many where both are exact and quick."""
_COARSE = 1e-5
"""How far a rounded value may lie from an exact one, relative to its size."""
_NO_FORMULA = re.compile(
    r"\\(?:approx|sim|equiv|[bp]?mod|l?dots|cdots|to|rightarrow|mid|neq|boxed|permil|not|s?out|[bx]?cancel)(?![A-Za-z])"
    r"|[?:\u2026]|\.\.|\d'"
)
"""What math-verify reads past, and what makes a statement of a value: with it, answers are compared as text."""
_IMAGINARY = re.compile(r"(?<![\\A-Za-z])i(?=[A-Za-z]?(?![A-Za-z]))")
_COMMAND, _LETTER = re.compile(r"\\[A-Za-z]+"), re.compile("[A-Za-z]")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", re.ASCII)
_NO_DIGIT_BEFORE = r"(?<![\w.^_\\])"
_MIXED = re.compile(rf"{_NO_DIGIT_BEFORE}(\d+)\s*(\\frac\s*\{{\s*\d+\s*\}}\s*\{{\s*\d+\s*\}})", re.ASCII)
_MIXED_SLASH = re.compile(rf"{_NO_DIGIT_BEFORE}(\d+)\s+(\d+)\s*/\s*(\d+)(?!\s*[\d(])", re.ASCII)
_PRODUCT = re.compile(
    rf"({_NO_DIGIT_BEFORE}\d+(?:\.\d+)?|\\pi|\))\s*(?=[(\[]|\\(?:frac|binom))|(?<=[)])\s*(?=\d)", re.ASCII
)
_BINOMIAL = re.compile(r"(\\binom\s*\{[^{}]*\}\s*\{[^{}]*\})\s*(?=\d|\\(?:binom|frac))")
_FACTORIAL = re.compile(r"(?<![\w!.])(\d+|[a-z])!(?=\s*\^)", re.ASCII)
_PRIMED = re.compile(r"(?<![\\A-Za-z])([A-Za-z])('+)")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\^\\circ", re.ASCII)
_SIDE_BY_SIDE = re.compile(
    rf"{_NO_DIGIT_BEFORE}(?:\d+(?:\.\d+)?(?:\s+\.?\d|\s*\{{)|(?<![\w}}\]^_])\{{\s*\d+\s*\}}\s*\{{?\s*\d)", re.ASCII
)
"""Numbers that stand side by side without a sign, as `2 5` or `2{5}`: neither their sum nor their product."""


def same_formula(right: str, answer: str) -> bool:
    """Whether math-verify says that two formulas agree. A decimal for what is none needs 6 significant digits.

    It is not asked where they differ at a point already: what is very small is 0 to it.
    """
    import math_verify

    exact, given = number(right), number(answer)
    rounded = given is not None and exact is None and bool(given.places)
    pair = _formulas(right, answer)
    if pair is None or (given and rounded and given.digits < ROUNDED) or _apart(*pair, rounded):
        return False
    places = max([ROUNDED, *(each.places or 0 for each in (exact, given) if each)])
    return math_verify.verify(*pair, float_rounding=places, allow_set_relation_comp=True, timeout_seconds=None)


def same_equation(right: list[str], answer: list[str], least_names: int = 1) -> bool:
    """Whether two equations, each as its sides, differ by a constant factor only. math-verify would solve them.

    least_names: variables that both must have; with one, an equation may be no more than the question.
    """
    import sympy

    pair = _formulas(*("({}) - ({})".format(*sides) for sides in (right, answer))) if len(right) == 2 else None
    if pair is None or min(len(each.free_symbols) for each in pair) < least_names:
        return False
    factor = sympy.simplify(pair[0] / pair[1])
    return bool(factor.is_number and factor.is_finite and factor != 0)


def rounds_to(formula: str, decimal: str) -> bool:
    """Whether a formula's value, rounded to a decimal's places, is that decimal."""
    exact, given = number(formula), number(decimal)
    if given is None or given.places is None:
        return False
    if exact is None:
        read = [] if is_text(formula) else parsed(formula)
        value = read[0].evalf(_DIGITS + given.digits) if read and hasattr(read[0], "evalf") else None
        if value is None or not value.is_Float:
            return False
        exact_value = Fraction(str(value))
    else:
        exact_value = exact.value
    return 2 * abs(exact_value - given.value) <= Fraction(1, 10**given.places)


def canonical_formula(text: str) -> str | None:
    """A formula's text: exact where it is a rational number, ten digits of another constant, else expanded."""
    read = [] if is_text(text) else parsed(text)
    if not read:
        return None
    formula = read[0]
    if formula.free_symbols:
        return str(formula.expand() if formula.count_ops() < 100 else formula)
    size = formula.evalf(15)
    if not size.is_comparable:
        return str(size)
    value = formula.doit() if not size or 1e-300 < abs(size) < 1e300 else size  # others take millions of digits
    return str(Fraction(int(value.p), int(value.q))) if value.is_Rational else str(value.evalf(10))


def is_text(text: str) -> bool:
    """Whether plain text is not to be read as a formula."""
    return has_words(text) or bool(_NO_FORMULA.search(text))


@lru_cache(maxsize=4096)
def parsed(formula: str) -> list[Any]:
    """A formula as math-verify reads it; an empty list where it does not, where brackets are more than DEEPEST deep, or
    where numbers stand side by side. Units stay on: they may be names.
    """
    formula = _GROUPED.sub(lambda found: found[0].replace(",", ""), formula)
    formula = _MIXED_SLASH.sub(r"(\1+\\frac{\2}{\3})", _MIXED.sub(r"(\1+\2)", formula))
    formula = _DEGREES.sub(r"(\1 \\cdot \\pi / 180)", formula) if TRIGONOMETRY.search(formula) else formula
    formula = _PRIMED.sub(lambda found: f"{found[1]}_{{{'p' * len(found[2])}}}", _FACTORIAL.sub(r"(\1!)", formula))
    for beside in (_PRODUCT, _BINOMIAL):  # it adds numbers that stand beside one another
        formula = beside.sub(r"\1 \\cdot ", formula)
    if nesting(formula) > DEEPEST or _SIDE_BY_SIDE.search(formula):
        return []
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    reading = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    boxes = LatexExtractionConfig(
        try_extract_without_anchor=False, boxed_match_priority=0, normalization_config=reading
    )
    formula = _IMAGINARY.sub(" i ", formula)  # it takes `2 i` for imaginary and `2i` for a variable
    read = parse(rf"\boxed{{{formula}}}", [boxes], fallback_mode="no_fallback", parsing_timeout=None)
    return [_imaginary(each) for each in read]


def _imaginary(formula: Any) -> Any:
    """A formula with the imaginary unit for its variable `i`, so that `(1+i)^2` is `2i`."""
    import sympy

    named = [name for name in getattr(formula, "free_symbols", ()) if name.name == "i"]
    return formula.subs({name: sympy.I for name in named}) if named else formula


def _formulas(right: str, answer: str) -> tuple[Any, Any] | None:
    """Both formulas parsed, or None where one is none, or they are not to be compared as mathematics.

    That is words, signs that math-verify reads past, variables of another case, and derivatives and limits, which
    sympy takes of functions that it does not know.
    """
    import sympy

    if is_text(right) or is_text(answer) or _other_case(right, answer):
        return None
    ours, theirs = parsed(right), parsed(answer)
    if not ours or not theirs or any(each.has(sympy.Derivative, sympy.Limit) for each in (ours[0], theirs[0])):
        return None
    return ours[0], theirs[0]


def _other_case(right: str, answer: str) -> bool:
    """Whether the answer writes a variable as a capital or small letter that the reference has only otherwise."""
    known, used = (set(_LETTER.findall(_COMMAND.sub(" ", text))) for text in (right, answer))
    return any(letter.swapcase() in known for letter in used - known)


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
        difference = ours - theirs
        if isinstance(difference, sympy.Float) and difference._prec == 1:  # no digit of it is sure: `3-3`
            continue
        gap, size = (sympy.Abs(value).evalf(digits) for value in (difference, ours))
        limit = size * (_COARSE if rounded else sympy.Float(10) ** (10 - digits))
        if gap.is_comparable and limit.is_comparable and gap > limit:
            return True
    return False
