r"""The text of a final answer: where a response gives it, and how it is taken apart. Nothing is evaluated here.

The final answer is the last `\boxed{...}`; without a box, what follows the last "Answer:" or "answer is". Every
pattern is linear in the text, which may be long and hostile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_BOXES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_MARKED = re.compile(r"(?<![a-z])(?:answer\**\s*:|answer\s+is\b\s*:?)(?:[*\s$]|\\\[)*([^\n]*)", re.IGNORECASE)
_EXPRESSION = re.compile(
    r"\$([^$\n]+)\$|\\\(((?:[^\\\n]|\\[^()\n])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]"
    r"|((?:(?<![\w)}\]])-)?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?%?)",
    re.ASCII,
)

_REWRITTEN = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+", " "),
        (r"[\u2212\u2010-\u2013]", "-"),
        (r"(?<!\\)\$|(?<!\\)\\[()\[\]]", " "),
        (r"\\(?:left|right)\.", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])", ""),
        (r"\{,\}|(?<=\d)\\[,!](?:,\\!)?(?=\d{3}(?!\d))|(?<=\d),\\!(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\(?:displaystyle|limits)(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\(?:textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox)(?![A-Za-z])", r"\\text"),
        (r"_\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"_{\1}"),
        (r"\\leqslant|\\leq?(?![A-Za-z])|\u2264|<=", r"\\leq "),
        (r"\\geqslant|\\geq?(?![A-Za-z])|\u2265|>=", r"\\geq "),
        (r"\\ne(?![A-Za-z])|\u2260|!=", r"\\neq "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])|\u00b0)", r"^\\circ"),
        (r"\\infin(?![A-Za-z])|\u221e", r"\\infty "),
        (r"\u03c0|(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\u00d7", r"\\times "),
        (r"\u222a", r"\\cup "),
        (r"\s+", " "),
    )
]
_WRAPPED = re.compile(r"\\(?:boxed|text)\s*\{")
_TEXT_COMMAND = re.compile(r"\\text\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\s+(?!\d)|(?<!\d)\s+")
_TOKENS = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|\\(?:[A-Za-z]+|.)|[<>!:]=|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|.",
    re.DOTALL,
)
_NO_WORD = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\}|\\(?!text)[A-Za-z]+|arc|sinh?|cosh?|tanh?|log|exp")
_WORDS = re.compile(r"^[A-Za-z\s]*[A-Za-z]{2}[A-Za-z\s]*$|[A-Za-z]{4}")
_OPENING, _CLOSING = {"(", "[", "{", r"\{"}, {")", "]", "}", r"\}"}
_LIST = re.compile(r",|;|and|or|\\text\s*\{[^{}]*\}|\\(?:lor|vee|land|wedge)")


def final_answer(response: str) -> str | None:
    r"""The text of the final answer as it stands, or None where there is none.

    A last box that is empty or never closes is no answer, and neither an earlier box nor an answer line stands
    in for it. A box within a box belongs to the outer one.
    """
    if "\\boxed" not in response:
        lines = _MARKED.findall(response)
        return (lines[-1].strip().rstrip(".*_$ ") or None) if lines else None
    open_braces: list[int | None] = []
    box: tuple[int, int] | None = None
    for token in _BOXES.finditer(response):
        text = token.group()
        if text.startswith("\\boxed"):
            open_braces.append(token.end())
        elif text == "{":
            open_braces.append(None)
        elif text == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                box = (start, token.start())
    cut_off = max((start for start in open_braces if start is not None), default=-1)
    if box is None or cut_off > box[1]:
        return None
    return response[slice(*box)].strip() or None


def last_expression(text: str) -> str | None:
    r"""The last formula between `$`, `\(` or `\[`, or the last number outside of one; None where there is none."""
    found = None
    for match in _EXPRESSION.finditer(text):
        found = next((group for group in match.groups() if group), None) or found
    return found


def plain(text: str) -> str:
    r"""An answer in one notation: no `$`, sizes or spacing commands, one kind of fraction, text, minus and degree."""
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(" .,;")
    while (inside := _unwrapped(text)) is not None:
        text = inside.rstrip(" .,;")
    return text


def squashed(text: str) -> str:
    """Plain text as it is compared letter by letter: no text commands, no white space but between digits, and in
    words no capitals.
    """
    while (without := _TEXT_COMMAND.sub(r"\1", text)) != text:
        text = without
    text = _SPACE.sub("", text)
    return text.casefold() if has_words(text) else text


def has_words(text: str) -> bool:
    r"""Whether plain text is words rather than a formula: `\text`, nothing but letters, or four letters on end."""
    bare = _NO_WORD.sub(".", text)
    return "\\text" in bare or bool(_WORDS.search(bare))


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


def members(text: str) -> list[str]:
    r"""The members of a set, or the items of a list: `1, 2`, `1 or 2`, `\{1, 2\}`. One with one `\pm` is two."""
    opening, inside, closing = brackets(text) or ("", "", "")
    if (opening, closing) in ((r"\{", r"\}"), ("{", "}")):
        text = inside
    found = []
    for part in split(text, _LIST):
        signs = part.count("\\pm") == 1 and "\\mp" not in part
        found += [part.replace("\\pm", sign).strip() for sign in "+-"] if signs else [part]
    return found


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


def _unwrapped(text: str) -> str | None:
    r"""What stands in a `\boxed{}` or `\text{}` that is all of the text."""
    match = _WRAPPED.match(text)
    enclosed = brackets(text[match.end() - 1 :]) if match else None
    return enclosed[1] if enclosed else None
