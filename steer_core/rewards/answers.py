r"""The final answer of a response: where it is given, and the ways in which it may be a list, a choice or a range.

The final answer is the last `\boxed{...}`; without a box, what follows the last "Answer:" or "answer is". What a
response thinks before `</think>` is no answer. Nothing is evaluated here, and every pattern is linear in the text,
which may be long and hostile.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from steer_core.rewards.notation import brackets, plain, split, unworded
from steer_core.rewards.quantities import changes_a_number

_BRACES = re.compile(r"(\\(?:boxed|f(?:rame)?box))\s*\{|\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|f(?:rame)?box)(?![A-Za-z])")
_BARE_BOX = re.compile(r"\\boxed *(?=[-+.\d]|\\[dt]?frac|\\sqrt|\\pi|[A-Zx-z](?:[\s.,$]|$))([^\n$]*)")
_BARE_BOX_END = re.compile(r"\\[)\]]|[.,;:]?(?: +[A-Za-z(]|\s*$)")
_GLUE = re.compile(
    r"(?:[\s$,;&.]|\\[()\[\]]|\\q?quad|\\text\s*\{\s*,?\s*(?:and|or)?\s*,?\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z])"
    r"|[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)
_JOINS, _LONGEST_GLUE = re.compile(r",|;|&|(?<![A-Za-z])(?:and|or)(?![A-Za-z])"), 60
_MARK = re.compile(
    r"(?<![a-z])answer\**\s*[:=]|<answer>|^#### ?(?=[-$\\\d])|^(?:#{1,6} |\*\*)(?:the )?(?:final )?answer\**:?\**[ ]*$"
    r"|(?<![a-z])answer\b(?:\s{1,3}to\s(?:the|this)\s(?:question|problem))?,?(?:\s{1,3}(?:then|therefore|thus|hence),?)?"
    r"\s{1,3}(?:is|equals|(?:would|should|must)\sbe)\b(?:\s(?:therefore|thus|simply|clearly|indeed|equal\sto|just|exactly)\b)?\s*:?",
    re.IGNORECASE | re.MULTILINE,
)
_AFTER_MARK = re.compile(r"(?:[*\s$]|\\\[)*([^\n]*)")
_SENTENCE_END = re.compile(r"[.!](?:[*$]|\\[)\]])*\s+(?=[A-Z(\[])")
_SECOND_THOUGHT = re.compile(
    r"\b(?:no|not|wait|actually|wrong|incorrect|sorry|instead|rather|hmm|but|or|oops|mistake|however|alternatively)\b",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"[,;(]?\s{0,3}\b(?:because|since|so|which|as\s(?:required|desired|shown|claimed|expected|above))\b.*", re.DOTALL
)
_EXPRESSION = re.compile(
    r"\$([^$\n]+)\$|\\\(((?:[^\\\n]|\\[^()\n])+)\\\)|\\\[((?:[^\\]|\\[^\[\]])+)\\\]"
    r"|((?:(?<![\w)}\]])-)?(?:\d+ (?=\d+/\d))?"
    r"(?:(?:\d{1,3}(?:(?:,|\{,\}|\\[, ]|[ ~\xa0\u2009\u202f])\d{3})+(?![\d/])|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?%?)",
    re.ASCII,
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_NEXT_WORD = re.compile(r"\s*(?:\\text\s*\{\s*)?([A-Za-z]+)")
_LIST = re.compile(r",|;|and|or|\\text\s*\{[^{}]*\}|\\(?:lor|vee|land|wedge)")
_EITHER_SIGN = re.compile(r"\\pm(?![A-Za-z])")
_HENCE = re.compile(r"\\(?:implies|Rightarrow|Longrightarrow|therefore)(?![A-Za-z])")
_STATED = re.compile(
    r"(\\text ?\{ ?)?([A-Za-z]{2}[A-Za-z ]{1,50}?)(?: ?:|(?<![A-Za-z])(?:is|are|equals) ?:?) ?(\} ?)?(?![ :}])(.+)",
    re.DOTALL | re.IGNORECASE,
)
_SAYS_MORE = frozenset("and if square cube root when where while who whose that which".split())  # noqa: SIM905
_ARTICLE = re.compile(r"(?:an?|the|in|on|due) (?=[a-z]{3}[a-z ]*)", re.IGNORECASE)
_CHOICE = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? ?)?"
    r"(?:\(\s*([A-J])\s*\)|([A-J])(?:[).:](?= |$)|(?=$)))(?:\s*(-?[\w\\$.(\[{][^,;]*|-?\S.*\d.*))?",
    re.IGNORECASE | re.DOTALL,
)


def final_answer(response: str) -> str | None:
    r"""The text of the final answer as it stands, or None where there is none.

    A last box that is empty or never closes is no answer, and neither an earlier box nor an answer line stands
    in for it. A box within a box belongs to the outer one. Boxes with nothing but "and", "or" or a comma between them
    are one list.
    """
    if not _BOX.search(response):
        return _marked(response)
    boxes, cut_off = _boxes(response)
    bare = _last(_BARE_BOX, response)
    last = boxes[-1].close if boxes else -1
    if cut_off > max(last, bare.start() if bare else -1):
        return None
    if bare and bare.start() > last:
        return bare[1][: _BARE_BOX_END.search(bare[1]).start()].strip() or None
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _is_list(response[boxes[first - 1].close + 1 : boxes[first].command]):
        first -= 1
    texts = list(dict.fromkeys(response[box.open : box.close].strip() for box in boxes[first:]))
    return (", ".join(texts) if all(texts) else "") or None


def last_box(response: str) -> str | None:
    """What stands in the last whole box; None without one, where it is empty, or where another never closes."""
    boxes, cut_off = _boxes(response)
    return response[boxes[-1].open : boxes[-1].close].strip() or None if boxes and cut_off < boxes[-1].close else None


class _Box(NamedTuple):
    """Where a box's command, its text and its closing brace begin."""

    command: int
    open: int
    close: int


def _boxes(response: str) -> tuple[list[_Box], int]:
    """(the whole boxes that stand in no other, where the last that never closes begins or -1)."""
    open_braces: list[tuple[int, int] | None] = []
    boxes: list[_Box] = []
    for token in _BRACES.finditer(response):
        if token[1]:
            open_braces.append((token.start(), token.end()))
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces and (box := open_braces.pop()):
            while boxes and boxes[-1].command > box[0]:
                boxes.pop()
            boxes.append(_Box(*box, token.start()))
    return boxes, max((box[0] for box in open_braces if box), default=-1)


def _is_list(glue: str) -> bool:
    """Whether what stands between two boxes makes them two members of one list."""
    return len(glue) <= _LONGEST_GLUE and bool(_GLUE.fullmatch(glue) and _JOINS.search(glue))


def _marked(response: str) -> str | None:
    """The text behind the last mark: its line, without a sentence or a reason that only follows on the answer."""
    mark = _last(_MARK, response)
    if mark is None:
        return None
    line = _AFTER_MARK.match(response, mark.end())[1].partition("</answer>")[0]
    end = _SENTENCE_END.search(line)
    if end and not _SECOND_THOUGHT.search(line, end.end()):
        line = line[: end.start()]
    return _REASON.sub("", line).strip().rstrip(".*_$ ") or None


def last_expression(text: str) -> str | None:
    r"""The last formula between `$`, `\(` or `\[`, or the last number outside of one, with a word behind it that
    changes it (`7 thousand`); None where there is none.
    """
    last = _last(_EXPRESSION, text)
    if last is None:
        return None
    word = _NEXT_WORD.match(text, last.end())
    found = last[last.lastindex]
    return f"{found} {word[1]}" if word and changes_a_number([word[1].casefold()]) else found


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """A pattern's last match, without a step of Python for each of what may be a million."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def members(text: str) -> list[str]:
    r"""The members of a set, or the items of a list: `1, 2`, `1 or 2`, `\{1, 2\}`. One with one `\pm` is two."""
    opening, inside, closing = brackets(text) or ("", "", "")
    if (opening, closing) in ((r"\{", r"\}"), ("{", "}")):
        text = inside
    if not _EITHER_SIGN.search(text):
        text = text.replace("\\mp", "\\pm")
    found = []
    for part in split(text, _LIST):
        signs = len(_EITHER_SIGN.findall(part)) == 1 and "\\mp" not in part
        found += [_EITHER_SIGN.sub(sign, part).strip() for sign in "+-"] if signs else [part]
    return found


def concluded(text: str) -> str:
    r"""What plain text comes to: `12` of `x = 12`'s `2x = 24 \implies x = 12`, `\text{The total is } 12`,
    `\text{There are 12}`; `ellipse` of `an ellipse`. The text itself where the words before say more than a name.
    """
    text = plain(_HENCE.split(text)[-1])
    found = _STATED.fullmatch(text)
    if found and bool(found[1]) == bool(found[3]) and choice(text) is None:
        words = found[2].casefold().split()
        if not changes_a_number(words) and not _SAYS_MORE.intersection(words):
            text = plain(found[4])
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) and text.replace(" ", "").isalpha() else text


def choice(text: str) -> tuple[str, str] | None:
    """(letter, what it stands for or "") of plain text such as `(B)`, `B. 12` or `Option B`; None for anything else."""
    found = _CHOICE.fullmatch(unworded(text))
    if found is None:
        return None
    letter, rest = found[1] or found[2], (found[3] or "").strip()
    words = re.findall("[a-z]+", _COMMAND.sub(" ", rest).casefold())
    if letter != letter.upper() or (words and (changes_a_number(words) or {"and", "wrong", "is"}.intersection(words))):
        return None
    return letter, rest
