"""The fenced blocks of a response that may be its program, by the rules of Markdown (CommonMark 4.5).

A fence is three or more backticks or tildes, indented or behind a list's mark; it ends at as many of the same. Which
of several blocks is the program is decided where they can be parsed without danger: in the sandbox (`inside.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from steer_core.rewards.base import after_thinking

PYTHON = ("", "python", "py", "pypy")
"""Languages of the blocks that may be a program; figures and attributes behind them (`python3 title=x`) are passed."""
_FENCE = re.compile(r"^([ \t]*+(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)?)(`{3,}+|~{3,}+)([^\n]*+)$", re.MULTILINE)
_LANGUAGE = re.compile(r"[{.\s]*([A-Za-z#+-]*)")


class _Fence(NamedTuple):
    indent: int
    marks: str
    info: str
    start: int
    end: int

    @property
    def language(self) -> str:
        """The first word behind the marks, in lower case, without figures."""
        match = _LANGUAGE.match(self.info)
        return match[1].lower() if match else ""

    def closes(self, other: _Fence) -> bool:
        """Whether it ends the block that the other one opened."""
        return not self.info and self.marks.startswith(other.marks)

    def opens_within(self, other: _Fence) -> bool:
        """Whether it opens a block, so that the one the other opened was never closed: no program has such a line.

        But a fence of Python may hold a shorter or another one in its texts.
        """
        if not self.info:
            return False
        named = self.language in PYTHON or len(self.info.split()) == 1
        return named and (other.language not in PYTHON or self.marks.startswith(other.marks))


def python_blocks(response: str) -> list[str]:
    """The closed blocks behind a response's thoughts that are fenced as Python, or as nothing, in their order."""
    text = after_thinking(response)
    blocks, opened = [], None
    for fence in _fences(text):
        if opened is None or fence.opens_within(opened):
            opened = fence
        elif fence.closes(opened):
            if opened.language in PYTHON:
                blocks.append(_shifted(text[opened.end + 1 : fence.start], opened.indent))
            opened = None
    return blocks


def _fences(text: str) -> Iterator[_Fence]:
    """The lines that are fences; ```code``` within one line is none."""
    for match in _FENCE.finditer(text):
        indent, marks, info = match.groups()
        if "`" not in info or marks[0] == "~":
            yield _Fence(len(indent), marks, info.strip(), match.start(), match.end())


def _shifted(block: str, indent: int) -> str:
    """A block shifted left by as much as its fence is indented, but by no more than its first line is."""
    if not indent:
        return block
    first = next((line for line in block.split("\n") if line.strip()), "")
    shift = min(indent, len(first) - len(first.lstrip(" \t")))
    return re.sub(rf"^[ \t]{{1,{shift}}}", "", block, flags=re.MULTILINE) if shift else block
