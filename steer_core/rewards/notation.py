r"""One notation for the answers that people and models write: what looks the same on paper is the same text here.

Nothing is evaluated. Every pattern is linear in the text, which may be long and hostile.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

_END = r"(?![A-Za-z])"
_BARE = r"(?<![\\A-Za-z])"
_GREEK = {chr(code): rf"\{unicodedata.name(chr(code)).split()[-1].lower()} " for code in range(0x3B1, 0x3CA)}
_FRACTIONS = {
    sign: r"\frac{{{0.numerator}}}{{{0.denominator}}}".format(Fraction(unicodedata.numeric(sign)).limit_denominator(10))
    for sign in "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
}
_SIGNS = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2264": r"\leq ", "\u2265":
    r"\geq ", "\u2260": r"\neq ", "\u2248": r"\approx ", "\u221e": r"\infty ", "\u00d7": r"\times ", "\u00b7":
    r"\cdot ", "\u22c5": r"\cdot ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205":
    r"\emptyset ", "\u211d": r"\mathbb{R} ", "\u2124": r"\mathbb{Z} ", "\u00b1": r"\pm ", "\u2026": r"\ldots ",
    "\u00b0": r"^\circ ", "\u221a": r"\sqrt ", "\u00a2": r" \text{cents}",
}  # fmt: skip
_UNICODE = str.maketrans(_GREEK | _FRACTIONS | _SIGNS)
_SUPERSCRIPTS, _ROOT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), re.compile(r"√(\d+)", re.ASCII)
_SPACED = r"(?:\\[,:;! ]|~|\s|\\thinspace\s*)+"
_MARK = rf"(?:\{{,\}}(?:\s|\\!)*|\{{\\,\}}|\\mathord\{{,\}}|\\text\{{,\}}|,\\[,!]|'|{_SPACED})"
_GROUPED = re.compile(rf"(?<![\d._^])(?<![^\\],)\d{{1,3}}(?:(?:,|{_MARK})\d{{3}})+(?!\d|\s*/)", re.ASCII)
_GROUP_MARK = re.compile(rf"{_MARK}|,")

_LOOKS = (
    "textbf|textit|textrm|textnormal|textsf|texttt|textsc|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|mbox|hbox"
    "|boldsymbol|bm|pmb|bold|emph|underline|operatorname\\*?|unit"
)
"""Commands that change how their argument looks, and nothing of what it says."""
_SIZES = (
    "displaystyle|textstyle|scriptstyle|limits|nolimits|tiny|small|normalsize|large|Large|LARGE|huge|Huge|strut|bf|rm"
    "|it|sf|tt|bfseries|itshape|boldmath|nonumber|thinspace|medspace|thickspace|allowbreak|nobreak"
)
_SCALES = {"thousand": "3", "million": "6", "billion": "9", "trillion": "12"}
_SCALE = rf"({'|'.join(_SCALES)})(?![A-Za-z])"
_FUNCTIONS = "arcsin|arccos|arctan|sin|cos|tan|cot|csc|sinh|cosh|tanh|log|ln|exp"

_FOR_ALL = (
    r"for (?:all|any|every)(?: real)?(?: numbers?)? ?\}? ?[a-z] ?\}?"
    r"(?: ?\\in ?\\mathbb ?\{[A-Z]\}(?:\^\{?\+\}?)?)?[ .]*"
)
"""What says of a formula only that it holds everywhere."""

_REWRITTEN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\*\*([^*]*)\*\*$|^`([^`]*)`$", r"\1\2"),
        (r"US\s*\\?\$|\\(?:textdollar|mathdollar)(?![A-Za-z])|\{\s*\\\$\s*\}|\\text\s*\{\s*\\\$\s*\}", r"\\$"),
        (r"(?:\\text\s*\{\s*USD\s*\}|(?<![A-Za-z])USD)\s*(?=\d)", r"\\$"),
        (r"\\text\s*\{\s*([€£¥₹:])\s*\}", r"\1"),
        (r"\\(?:pounds|textsterling)(?![A-Za-z])", "£"),
        (r"\\(?:euro|texteuro)(?![A-Za-z])(?:\{\})?", "€"),
        (r"\{\s*\\?%\s*\}|\\text\s*\{\s*\\?%\s*\}|\\permil(?![A-Za-z])", lambda m: m[0] if "mil" in m[0] else r"\%"),
        (r"(?<!\\)\$|(?<!\\)\\[()\[\]]", " "),
        (
            r"\\(?:text)?color(?:box)?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}|\\[hv]space\*?\s*\{[^{}]*\}",
            " ",
        ),
        (r"\\(?:left|right)\.", " "),
        (rf"\\(?:left|right|[bB]igg?[lrm]?){_END}", ""),
        (rf"(?<!\\)\\[,;:! ]|~|\\q?quad{_END}|\\(?:{_SIZES}){_END}", " "),
        (rf"\\(?:[dtcs]|nice)?frac{_END}", r"\\frac"),
        (rf"\\[dt]binom{_END}", r"\\binom"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\{([^{}]*)\\choose([^{}]*)\}", r"\\binom{\1}{\2}"),
        (rf"\\(?:{_LOOKS}){_END}", r"\\text"),
        (rf"\\f(?:rame)?box{_END}", r"\\boxed"),
        (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{\\?([^{}]*)\}", r"\1 \\text{\2}"),
        (rf"\\text\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (r"\\text\s*\{([ei])\}", r" \1 "),
        (r"\\text\s*\{((?:[-+.,/ ]*\d)+[ .,]*)\}", r" \1 "),
        (r"\\text\s*\{\s*(\\\$\s*\d[\d.,]*)\s*\}", r"\1"),
        (rf"(?<=\d) ?\\text ?\{{ ?{_SCALE}", lambda m: rf" \times 10^{{{_SCALES[m[1]]}}} \text{{"),
        (rf"(?<=\d) ?{_SCALE}", lambda m: rf" \times 10^{{{_SCALES[m[1]]}}}"),
        (r"\\text\s*\{\s*\.?\s*\}", " "),
        (r"_\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"_{\1}"),
        (r"(\\text\s*\{[^{}]*)\^\s*\{\s*(-?\d)\s*\}([^{}]*\})", r"\1^\2\3"),
        (r"\\\\\s*\[\d+\.?\d*[a-z]+\]", r"\\\\"),
        (r"\^\s*\{?\s*\\text\s*\{(st|nd|rd|th)\}\s*\}?", r" \\text{\1}"),
        (r"\^\s*\{\s*\\text\s*\{\s*(-?\d)\s*\}\s*\}", r"^{\1}"),
        (rf"\\leqslant|\\leq?{_END}|<=", r"\\leq "),
        (rf"\\geqslant|\\geq?{_END}|>=", r"\\geq "),
        (rf"\\ne{_END}|!=", r"\\neq "),
        (rf"\\lt{_END}", "<"),
        (rf"\\gt{_END}", ">"),
        (r":=|&\s*=", "="),
        (rf"\\colon{_END}|\{{:\}}", ":"),
        (r"(?<=\d)\s*\\text\s*\{\s*to\s*\}\s*(?=\d)|(?<=\d) to (?=\d)", ":"),
        (r"\\&", " and "),
        (r"(?<=\w) & (?=\w[^\\]*$)", " and "),
        (rf"\\[lr]brace{_END}", lambda m: r"\{" if m[0][1] == "l" else r"\}"),
        (rf"\\[lr]brack{_END}", lambda m: "[" if m[0][1] == "l" else "]"),
        (rf"\\[lr]?vert{_END}", "|"),
        (rf"\\(?:varnothing|O){_END}", r"\\emptyset "),
        (rf"\\bigcup{_END}(?!\s*_)", r"\\cup "),
        (rf"\\[lr]angle{_END}", lambda m: "(" if "l" in m[0][:2] else ")"),
        (rf"\^ ?\{{ ?((?:\\prime ?)+)\}}|\^ ?(\\prime){_END}", lambda m: "'" * (m[1] or m[2]).count("prime")),
        (r"\\pmod ?(\w)", r"\\pmod{\1}"),
        (r"\( ?(?:\\b?mod|\\text ?\{ ?mod ?\}|mod) ?(\w+) ?\)", r"\\pmod{\1}"),
        (r"(?<![\w)}\]])(?:\{\})?[\^_] ?\{?(\d+|[a-z])\}? ?C ?_ ?\{?(\d+|[a-z])\}?", r"\\binom{\1}{\2}"),
        (r"\\(?:mathbb|Bbb)\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}"),
        (rf"\\R{_END}|^(?:x \\in )?\\text\s*\{{R\}}$", r"\\mathbb{R} "),
        (r"\(\s*-\s*\\infty\s*,\s*\+?\s*\\infty\s*\)", r"\\mathbb{R}"),
        (rf"\\(?:dots|cdots|dotsc|dotsb){_END}|\.\.\.+", r"\\ldots "),
        (rf"\\(?:simeq|thickapprox){_END}", r"\\approx "),
        (rf"\s*(?:\^\s*(?:\{{\s*\\circ\s*\}}|\\circ{_END})|\\degree{_END})", r"^\\circ"),
        (rf"\\infin{_END}", r"\\infty "),
        (rf"{_BARE}({_FUNCTIONS})(?= ?[\d(\\{{])", r"\\\1"),
        (r"\\log\s*_\s*\{?\s*e\s*\}?(?![A-Za-z])", r"\\ln "),
        (rf"\\(?:backslash|smallsetminus){_END}|(?<=\\mathbb\{{R\}})\s*-\s*(?=\\\{{)", r"\\setminus "),
        (r"\{([-+])\}", r"\1"),
        (rf"{_BARE}pi{_END}", r"\\pi "),
        (rf"{_BARE}sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<=\d) ?[x*] ?(?=10\s*\^)", r"\\times "),
        (r"\s+", " "),
        (rf",? ?(?:\\text ?\{{ ?,? ?|(?<= )){_FOR_ALL}$", ""),
    )
]
_WRAPPED = re.compile(
    r"(?:(?:\\text\s*\{(?![^{}]*\b(?:not|no|never|wrong)\b)[^{}]*\}|[A-Za-z]\s*=)\s*)*\\boxed\s*\{|\\text\s*\{"
)
_EDGES = " .,;"
_SAID = {
    re.compile(said, re.IGNORECASE): meant
    for said, meant in {
        r"\\\{\s*\\\}|(?:the )?(?:empty|null) set|(?:there (?:is|are) )?no (?:real )?solutions?": r"\emptyset",
        r"\+?infinit(?:y|e)|\+ ?\\infty|positive infinity": r"\infty",
        r"(?:-|negative |minus )infinity": r"-\infty",
        r"d\.?n\.?e|(?:the limit )?does not exist": "undefined",
    }.items()
}
"""What is said in words and has a sign, or another word, of its own: all of an answer."""
_TEXT_COMMAND = re.compile(r"\\text\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\s+(?!\d)|(?<!\d)\s+")
_NO_WORD = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\}|\\(?!text)[A-Za-z]+|arc|sinh?|cosh?|tanh?|log|exp")
_WORDS = re.compile(r"^[A-Za-z\s]*[A-Za-z]{2}[A-Za-z\s]*$|[A-Za-z]{4}")
_TWO_NAMES = re.compile(r"(?!(?i:no|on|up|in|at|an|or|is|it|am|pm))[A-Za-z] ?[A-Za-z]")
_TOKENS = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|\\(?:[A-Za-z]+|.)|[<>!:]=|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|.",
    re.DOTALL,
)
_OPENING, _CLOSING = {"(", "[", "{", r"\{"}, {")", "]", "}", r"\}"}


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    r"""An answer in one notation: no `$`, looks or spacing, one kind of fraction, text, minus, degree and thousands."""
    text = _SUPERSCRIPTS.sub(_power, " ".join(text.split()))
    text = _ROOT.sub(r"\\sqrt{\1}", text).translate(_UNICODE)
    text = _GROUPED.sub(lambda found: _GROUP_MARK.sub(",", found[0]), text)
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    text = _trimmed(text)
    while (inside := _unwrapped(text)) is not None:
        text = _trimmed(inside)
    return next((meant for said, meant in _SAID.items() if said.fullmatch(text)), text)


def squashed(text: str) -> str:
    """Plain text as it is compared letter by letter: no text commands, no white space but between digits, and in
    words of three letters at least no capitals.
    """
    while (without := _TEXT_COMMAND.sub(r"\1", text)) != text:
        text = without
    text = _SPACE.sub("", text)
    return text.casefold() if has_words(text) and not _TWO_NAMES.fullmatch(text) else text


def has_words(text: str) -> bool:
    r"""Whether plain text is words rather than a formula: `\text`, nothing but letters, or four letters on end. Two
    small letters are a product, but for `no` and a few more.
    """
    bare = _NO_WORD.sub(".", text)
    return "\\text" in bare or (bool(_WORDS.search(bare)) and not (bare.islower() and _TWO_NAMES.fullmatch(bare)))


def unworded(text: str) -> str:
    r"""Plain text with the words of its `\text{...}` in the open."""
    return " ".join(_TEXT_COMMAND.sub(r" \1 ", text).split())


def split(text: str, separators: re.Pattern[str]) -> list[str]:
    """The parts of plain text between separators that stand outside of all brackets, without empty ones."""
    depth, parts = 0, [""]
    for token in tokens(text):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and token not in _CLOSING and separators.fullmatch(token):
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts if part.strip()]


def brackets(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) of plain text that one pair of brackets encloses, as an interval's may differ."""
    found = list(tokens(text))
    if len(found) < 2 or found[0] not in _OPENING or found[-1] not in _CLOSING:
        return None
    depth = 0
    for i, token in enumerate(found):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and i < len(found) - 1:
            return None
    return found[0], "".join(found[1:-1]).strip(), found[-1]


def nesting(text: str) -> int:
    """How many brackets of plain text stand within one another at most."""
    depth = deepest = 0
    for token in tokens(text):
        depth += (token in _OPENING) - (token in _CLOSING)
        deepest = max(deepest, depth)
    return deepest


def tokens(text: str) -> Iterator[str]:
    """Commands, brackets, joined signs, `and`, `or`, and single characters."""
    return (match.group() for match in _TOKENS.finditer(text))


def _power(found: re.Match[str]) -> str:
    digits = unicodedata.normalize("NFKC", found[0])
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


def _trimmed(text: str) -> str:
    text = text.strip().rstrip(_EDGES)
    while text.endswith("\\\\"):
        text = text[:-2].rstrip(_EDGES)
    return text


def _unwrapped(text: str) -> str | None:
    r"""What stands in a `\boxed{}`, `\text{}` or `{}` that is all of the text, but for words or a name before a box."""
    match = _WRAPPED.match(text)
    enclosed = brackets(text[match.end() - 1 :] if match else text)
    return enclosed[1] if enclosed and enclosed[0] + enclosed[2] == "{}" else None
