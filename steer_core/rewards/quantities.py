r"""Exact numbers and units as final answers write them, in the notation of `notation.plain`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from steer_core.rewards.notation import has_words, unworded

_DECIMAL = r"(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?"
_POWER = r"(?:[eE]([+-]?\d{1,3})|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d{1,3})))"
_NUMBER = re.compile(rf"([+-]?)\s*({_DECIMAL}){_POWER}?", re.ASCII)
_POWER_OF_TEN = re.compile(r"([+-]?)\s*(10)\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d))", re.ASCII)
_WHOLE = r"(\d{1,3}(?:,\d{3})+|\d+)"
_SLASH = re.compile(rf"([+-]?)\s*(?:(\d+)\s+)?{_WHOLE}\s*/\s*{_WHOLE}", re.ASCII)
_FRACTION = re.compile(
    rf"([+-]?)\s*()\{{?\s*\\frac\s*\{{\s*([+-]?{_DECIMAL})\s*\}}\s*\{{\s*([+-]?{_DECIMAL})\s*\}}\s*\}}?", re.ASCII
)
_MIXED = re.compile(
    r"([+-]?)\s*(\d+)\s*\{?\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}\s*\}?", re.ASCII
)  # a whole number, then a fraction of whole numbers
_PERIOD = r"\\(?:overline|bar)\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\)|((?:\\dot\s*\{?\s*\d\s*\}?\s*|\d)+)|\\ldots"
_REPEATING = re.compile(rf"([+-]?)\s*(\d*)\.(\d*?)\s*(?:{_PERIOD})", re.ASCII)
_WRITTEN = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10,
}  # fmt: skip
_NEGATIVE = re.compile(r"(?:negative|minus) (?!negative|minus)([\w\\.].*)", re.IGNORECASE)

_CURRENCY = re.compile(r"([+-]?)\s*(\\\$|[\u20ac\u00a3\u00a5\u20b9])\s*([+-]?[\d.\\].*)", re.DOTALL)
_CURRENCY_BEHIND = re.compile(r"(.*\d)\s*(\\\$|[\u20ac\u00a3\u00a5\u20b9])", re.DOTALL)
_SIGN_UNIT = re.compile(r"(.*[\w})\]])\s*(\\?%|\^\\circ(?:\s*\\text\s*\{\s*[CF]\s*\}|\s*[CF])?)(.*)", re.DOTALL)
_BASE_UNIT = re.compile(r"(-?[\dA-Za-z]*\d[\dA-Za-z]*)\s*_\s*\{?\s*(-?\w+)\s*\}?", re.ASCII)
_WORDS = r"\\text\s*\{[^{}]*\}"
_TAIL = rf"(?:{_WORDS}|\\(?:mu|Omega|cdot)(?![A-Za-z])|\^\s*\{{?\s*-?\d\s*\}}?|[/.*()\s])"
_TEXT_UNIT = re.compile(
    rf"(.*?[^\s(/])\s*((?:/\s*)?(?:\(\s*)?(?:{_WORDS}|\\mu\s*{_WORDS}|\\Omega(?![A-Za-z])"
    rf"|\\frac\s*\{{\s*{_WORDS}\s*\}}\s*\{{\s*{_TAIL}+\}}){_TAIL}*)",
    re.DOTALL,
)
_BARE_UNIT = re.compile(
    r"(.*\d|.*\}(?=\s)|.*\\pi)(\s*)\(?([A-Za-z][A-Za-z./ ]*)\)?(?:\^\s*\{?\s*(\d)\s*\}?)?", re.DOTALL
)
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_MOST_WORDS = 5
_SHORT_UNITS = frozenset(
    """
    cm mm km kg mg ml ft in lb lbs oz hr hrs min mins sec day men mph way egg am pm eur cup sq mi yd yds deg rad
    gal usd pct kwh hz ev pts bus car box boy cat dog pie pen bag cow man toy jar can set th st nd rd
    """.split()  # noqa: SIM905
)
_SHORT_PARTS = frozenset(
    """
    m s g h l n j w v a k c b
    """.split()  # noqa: SIM905
)
"""What may stand around a slash: `m/s`."""
_NUMBER_WORD = re.compile(
    r"(?:(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ie)|hundred|thousand"
    r"|thou|[a-z]+illion|one|two|three|third|four|five|fif|six|seven|eight|eigh|nine|nin|ten|eleven|twelve|twelf|zero"
    r"|[a-z]*score|dozen|gross|half|halve|quarter|pair|couple|lakh|crore|bn|thousand|double|triple|quadruple)"
    r"(?:th|fold)?[sd]?"
)
"""Cardinals, ordinals, fractions, multiples: `hundredths`, `dozen`, `twenty`, `halves`."""
_NO_UNITS = frozenset(
    """
    all almost any approximately at base but choose factorial false if incorrect infinity is isn least less
    minus mod modulo more most no not only or otherwise over plus then to twice thrice when where without wrong
    none never nor half divided multiplied added subtracted raised increased decreased reduced rounded halved
    squared cubed power root reciprocal inverse opposite remainder above below under fewer greater than many few
    unless except through mille permille basis fold about around roughly nearly off does do did negated reversed
    arccos arcsin arctan cos cot csc exp gcd lcm ln log max sin sqrt tan alpha beta gamma delta epsilon theta
    lambda omega sigma mil mln bln mn tn grand
    """.split()  # noqa: SIM905
)
"""Words that change a number, say something of it, or are mathematics: text with one of them is no unit."""
_NOT_LAST = frozenset(
    """
    and times negative positive higher lower larger smaller odd even by a of the
    """.split()  # noqa: SIM905
)
"""Words that do so where they end the text. `7 times` by itself counts something."""
_SAME_UNITS = {
    "percent": "%", "pct": "%", "percentage": "%", "dollar": "$", "usd": "$", "buck": "$", "euro": "\u20ac",
    "eur": "\u20ac", "pound": "lb", "degree": "\u00b0", "deg": "\u00b0", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "kilometer": "km", "kilometre": "km", "meter": "m", "metre": "m",
    "inch": "in", "inche": "in", "feet": "ft", "foot": "ft", "kilogram": "kg", "gram": "g", "hour": "h", "hr": "h",
    "minute": "min", "second": "s", "sec": "s", "liter": "l", "litre": "l", "sq": "square", "cu": "cubic",
    "celsius": "C", "fahrenheit": "F",
    "radian": "rad", "per": "/", "mile": "mi", "ounce": "oz", "yard": "yd", "year": "yr", "lbs": "lb",
}  # fmt: skip
_SUFFIXED = {"squared": "2", "cubed": "3"}
_COMPOUND = {"mph": "mi / h", "kph": "km / h", "kmh": "km / h", "% point": "%"}


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
    r"""The number of `1,000`, `.5`, `1e-5`, `2 \times 10^{3}`, `3/4`, `\frac{3}{4}`, `1\frac{3}{4}`, `1 3/4`,
    `0.1\overline{6}`, `0.(3)`, `0.333\ldots`, `five` or `negative two thirds`; None for anything else.
    """
    if match := _NUMBER.fullmatch(text) or _POWER_OF_TEN.fullmatch(text):
        sign, written, *powers = match.groups()
        written = written.replace(",", "") if match.re is _NUMBER else "1"
        exponent = int(next(filter(None, powers), "0"))
        value = Fraction(written) * Fraction(10) ** exponent
        places = max(len(written.partition(".")[2]) - exponent, 0)
        digits = len(written.replace(".", "").lstrip("0"))
        return Number(-value if sign == "-" else value, places, digits)
    if match := _FRACTION.fullmatch(text) or _MIXED.fullmatch(text) or _SLASH.fullmatch(text):
        sign, whole, upper, lower = match.groups()
        over, under = Fraction(upper.replace(",", "")), Fraction(lower.replace(",", ""))
        if not under:
            return None
        value = int(whole or 0) + over / under
        return Number(-value if sign == "-" else value, None, 0)
    if match := _REPEATING.fullmatch(text):
        return _repeating(match)
    return _in_words(text)


def _in_words(text: str) -> Number | None:
    """The number of `seven`, `twenty-four`, `two thirds`, or of a number behind `negative` or `minus`."""
    if ("negative" in text.casefold() or "minus" in text.casefold()) and (match := _NEGATIVE.fullmatch(unworded(text))):
        size = number(match[1])
        return Number(-size.value, size.places, size.digits) if size else None
    words = text.casefold().replace("-", " ").split()
    if len(words) == 1 and words[0] in _WRITTEN + _TENS:
        value = _WRITTEN.index(words[0]) if words[0] in _WRITTEN else 10 * _TENS.index(words[0])
        return Number(Fraction(value), 0, 2)
    if len(words) != 2:
        return None
    first, second = words
    if first in _TENS[2:] and second in _WRITTEN[1:10]:
        return Number(Fraction(10 * _TENS.index(first) + _WRITTEN.index(second)), 0, 2)
    part = _PARTS.get(second.removesuffix("s").replace("halve", "half"))
    return Number(Fraction(_WRITTEN.index(first), part), None, 0) if part and first in _WRITTEN[1:] else None


def _repeating(match: re.Match[str]) -> Number | None:
    """A decimal whose period is marked, or, before dots, seen: twice at least, and thrice where it is one digit."""
    sign, whole, before, lined, digit, bracketed, dotted = match.groups()
    period = lined or digit or bracketed
    if dotted:
        first, last = dotted.find("\\dot"), dotted.rfind("\\dot")
        digits = re.sub(r"\D", "", dotted[:first]), re.sub(r"\D", "", dotted[first:])
        marked_last = re.fullmatch(r"\\dot\s*\{?\s*\d\s*\}?\s*", dotted[last:])
        if first < 0 or not marked_last or (dotted.count("\\dot") > 2 and len(digits[1]) > dotted.count("\\dot")):
            return None
        before, period = before + digits[0], digits[1]
    if period is None:
        seen = re.fullmatch(r"(\d*?)(?:(\d)\2{2,}|(\d)\3|(\d{2,12}?)\4+)", before)
        if seen is None or (seen[3] and seen[1]):
            return None
        before, period = seen[1], seen[2] or seen[3] or seen[4]
    value = Fraction(int(whole + before or "0")) + Fraction(int(period), 10 ** len(period) - 1)
    value /= 10 ** len(before)
    return Number(-value if sign == "-" else value, None, 0)


def measure(text: str) -> tuple[str, str | None]:
    r"""(value, unit) of plain text such as `5 \text{ cm}`, `\$5`, `50\%`, `5 dollars`, `41_{7}`; the unit may be None.

    Units are one word for each meaning (`%` for percent); two that differ are different units.
    """
    if match := _CURRENCY.fullmatch(text):
        sign, unit, value = match.groups()
        value, more = measure(value)
        unit = unit.removeprefix("\\")
        behind = more.removeprefix(unit).strip() if more else ""
        return (sign + value, f"{unit} {behind}".rstrip()) if not behind or behind[0] == "/" else (text, None)
    if match := _CURRENCY_BEHIND.fullmatch(text):
        return match[1], match[2].removeprefix("\\")
    angle = bool(TRIGONOMETRY.search(text))  # whose degrees are no unit of the value
    if not angle and (match := _SIGN_UNIT.fullmatch(text)) and (not match[3].strip() or _unit(match[3])):
        value, unit, more = match.groups()
        if "%" in unit:
            return value, "%"
        scale, rate = re.match(r"([cf](?![a-z]))?\s*(/.*)?", _unit(more) or "").groups("")
        scale = "".join(re.findall("[CF]", unit)) or scale.upper()
        return value, f"\u00b0{scale} {rate}".rstrip()
    if match := _BASE_UNIT.fullmatch(text):
        value, base = match.groups()
        return value, f"base {_WRITTEN.index(base) if base in _WRITTEN else base}"
    if match := _TEXT_UNIT.fullmatch(text):
        value, words = match.groups()
        if not has_words(value) and (unit := _unit(words)):
            return value.strip(), unit
    elif match := _BARE_UNIT.fullmatch(text):
        value, space, words, power = match.groups()
        if _may_be_bare(words, bool(space)) and (unit := _unit(words + (f"^{power}" if power else ""))):
            return value.strip(), unit
    return text, None


def changes_a_number(words: list[str]) -> bool:
    """Whether small-letter words make another number of the one before them, as `thousand` and `divided by` do."""
    return bool(_NO_UNITS.intersection(words)) or any(map(_NUMBER_WORD.fullmatch, words))


def _may_be_bare(words: str, spaced: bool) -> bool:
    """Whether letters behind a number are a word rather than variables: `5 cm`, `5 eggs`, `5 m/s`, not `5 m`."""
    first = re.split(r"[ /.]", words.casefold())[0]
    if "/" in words:
        parts = [part.strip() for part in words.casefold().split("/")]
        return all(part in _SHORT_UNITS or part in _SHORT_PARTS or len(part) > 3 for part in parts)
    return (
        first in _SHORT_UNITS
        or first == "of"
        or len(first) > 3
        or bool(re.fullmatch(r"[ap]\.?\s?m\.?", words.strip().casefold()))
    )


def _unit(words: str) -> str | None:
    r"""One name for a unit, or None where the words are no unit. words: `\text{ cm}^2`, `cm/s`, `per hour`."""
    words = words.replace("\\Omega", "ohm").replace("\\mu", "micro").replace("\\frac", " ").replace("}{", "/")
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", words)
    if re.search(r"(?<![A-Za-z])k(?![A-Za-z])", words):  # a thousand; K is kelvin
        return None
    words = words.casefold()
    powers = re.findall(r"\^\s*\{?\s*(-?\d)\s*\}?", words)
    words = re.sub(r"\^\s*\{?\s*-?\d\s*\}?", " ", words)
    found = re.findall(r"[a-z]+|/|[^a-z\s.,()\\{}*'\u2019]", words)
    if not any(word.isalpha() or word in "%\u00b0" for word in found) or len(found) > _MOST_WORDS + 2:
        return None
    if len(found) > 1 and found[-1] in _SUFFIXED:
        found, powers = found[:-1], [_SUFFIXED[found[-1]]]
    if re.search(r"\d", words) or changes_a_number(found):
        return None
    if found[0] in ("and", "by") or (found[-1] in _NOT_LAST and not (found == ["times"] or found == ["a", "m"])):
        return None
    if "times" in found[:-1] and found[found.index("times") + 1] not in ("per", "a", "each", "/", "as"):
        return None
    stems = [word.removesuffix("s") or word for word in found]
    singular = [_SAME_UNITS.get(word) or _SAME_UNITS.get(stem, stem) for word, stem in zip(found, stems, strict=True)]
    for word, meant in (("square", "2"), ("cubic", "3")):
        if singular[0] == word and len(singular) > 1:
            singular, powers = singular[1:], [meant]
    unit = re.sub("\u00b0 (?=[CF])", "\u00b0", " ".join(singular))
    return _COMPOUND.get(unit, unit) + "".join(f"^{power}" for power in powers)
