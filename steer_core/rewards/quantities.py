r"""Exact numbers and units as final answers write them, in the notation of `answers.plain`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_DECIMAL = r"(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?"
_POWER = r"(?:[eE]([+-]?\d{1,3})|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d{1,3})))"
_NUMBER = re.compile(rf"([+-]?)\s*({_DECIMAL}){_POWER}?", re.ASCII)
_SLASH = re.compile(r"([+-]?)()\s*(\d+)\s*/\s*(\d+)", re.ASCII)
_FRACTION = re.compile(
    rf"([+-]?)\s*(\d*)\s*\\frac\s*\{{\s*([+-]?{_DECIMAL})\s*\}}\s*\{{\s*([+-]?{_DECIMAL})\s*\}}", re.ASCII
)

_CURRENCY = re.compile(r"([+-]?)\s*(\\\$|\u20ac|\u00a3)\s*([+-]?[\d.].*)", re.DOTALL)
_SIGN_UNIT = re.compile(r"(.*[\w})\]])\s*(\\?%|\^\\circ(?:\s*[CF])?)", re.DOTALL)
_BASE_UNIT = re.compile(r"(-?[\dA-Za-z]*\d[\dA-Za-z]*)\s*_\s*\{?\s*(-?\w+)\s*\}?", re.ASCII)
_TEXT_UNIT = re.compile(r"(.*\S)\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*\{?\s*(\d)\s*\}?)?", re.DOTALL)
_BARE_UNIT = re.compile(r"(.*\d)\s+([A-Za-z][A-Za-z. ]*)(?:\^\s*\{?\s*(\d)\s*\}?)?", re.DOTALL)
_MOST_WORDS = 5
_SHORT_UNITS = frozenset({
    "cm", "mm", "km", "kg", "mg", "ml", "ft", "in", "lb", "oz", "hr", "min", "sec", "day", "men", "mph", "way", "egg",
})  # fmt: skip
_NO_UNITS = frozenset({
    "a", "all", "almost", "and", "any", "approximately", "at", "base", "but", "choose", "dozen", "even", "factorial",
    "false", "for", "half", "hundred", "if", "incorrect", "infinity", "is", "isn", "least", "less", "million",
    "billion", "thousand", "trillion", "minus", "mod", "modulo", "more", "most", "no", "not", "odd", "only", "or",
    "otherwise", "over", "plus", "quarter", "squared", "cubed", "the", "then", "third", "times", "to", "twice", "when",
    "where", "with", "without", "wrong", "arccos", "arcsin", "arctan", "cos", "cot", "csc", "exp", "gcd", "lcm", "ln",
    "log", "max", "sin", "sqrt", "tan", "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "omega",
    "sigma",
})  # fmt: skip
"""Words that change a number, say something of it, or are mathematics: text with one of them is no unit."""
_SAME_UNITS = {
    "percent": "%", "pct": "%", "percentage": "%", "dollar": "$", "usd": "$", "buck": "$", "euro": "\u20ac",
    "pound": "lb", "degree": "\u00b0", "deg": "\u00b0", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm",
    "millimetre": "mm", "kilometer": "km", "kilometre": "km", "meter": "m", "metre": "m", "inch": "in", "inche": "in",
    "feet": "ft", "foot": "ft", "kilogram": "kg", "gram": "g", "hour": "h", "hr": "h", "minute": "min", "second": "s",
    "sec": "s", "liter": "l", "litre": "l", "sq": "square", "cu": "cubic", "radian": "rad",
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A number that is written out. places: decimals behind its point, None for a fraction. digits: significant."""

    value: Fraction
    places: int | None
    digits: int

    def stands_for(self, exact: Fraction, digits: int) -> bool:
        """Whether a decimal of at least so many significant digits is the rounded value of an exact number."""
        return bool(self.places) and self.digits >= digits and round(exact, self.places) == self.value


def number(text: str) -> Number | None:
    r"""`1,000`, `.5`, `1e-5`, `2 \times 10^{3}`, `3/4`, `\frac{3}{4}` or `1\frac{3}{4}`; None for anything else."""
    if match := _NUMBER.fullmatch(text):
        sign, written, *powers = match.groups()
        written = written.replace(",", "")
        exponent = int(next(filter(None, powers), "0"))
        value = Fraction(written) * Fraction(10) ** exponent
        places = max(len(written.partition(".")[2]) - exponent, 0)
        digits = len(written.replace(".", "").lstrip("0"))
        return Number(-value if sign == "-" else value, places, digits)
    if match := _FRACTION.fullmatch(text) or _SLASH.fullmatch(text):
        sign, whole, upper, lower = match.groups()
        over, under = Fraction(upper.replace(",", "")), Fraction(lower.replace(",", ""))
        if not under:
            return None
        value = int(whole or 0) + over / under
        return Number(-value if sign == "-" else value, None, 0)
    return None


def measure(text: str) -> tuple[str, str | None]:
    r"""(value, unit) of plain text such as `5 \text{ cm}`, `\$5`, `50\%`, `5 dollars`, `41_{7}`; the unit may be None.

    Units are one word for each meaning (`%` for percent); two that differ are different units.
    """
    if match := _CURRENCY.fullmatch(text):
        sign, unit, value = match.groups()
        return sign + value, unit.removeprefix("\\")
    if match := _SIGN_UNIT.fullmatch(text):
        value, unit = match.groups()
        return value, "%" if "%" in unit else unit.replace("^\\circ", "\u00b0").replace(" ", "")
    if match := _BASE_UNIT.fullmatch(text):
        value, base = match.groups()
        return value, f"base {base}"
    for pattern in (_TEXT_UNIT, _BARE_UNIT):
        if match := pattern.fullmatch(text):
            value, words, power = match.groups()
            unit = _unit(words, power)
            bare_word = pattern is _BARE_UNIT and len(words.split()[0]) < 4 and words.split()[0] not in _SHORT_UNITS
            if unit and not bare_word and "\\text" not in value and re.search(r"\d|\\pi", value):
                return value.strip(), unit
    return text, None


def _unit(words: str, power: str | None) -> str | None:
    """One name for a unit, or None where the words are no unit."""
    found = re.findall(r"[a-z]+|[^a-z\s.,]", words.casefold())
    if not found or re.search(r"\d", words) or len(found) > _MOST_WORDS or _NO_UNITS.intersection(found):
        return None
    stems = [word.removesuffix("s") or word for word in found]
    singular = [_SAME_UNITS.get(stem, stem) for stem in stems]
    for word, meant in (("square", "2"), ("cubic", "3")):
        if singular[0] == word and len(singular) > 1:
            singular, power = singular[1:], meant
    return " ".join(singular) + (f"^{power}" if power else "")
