"""The fenced blocks of a response that may be its program, by the rules of Markdown (CommonMark 4.5).

A fence is three or more backticks or tildes, indented or behind a list's mark; it ends at as many of the same. As in
LiveCodeBench's harness, words may stand before one that names Python, and an end mark (`</answer>`) or words behind the
last. Which of several blocks is the program is decided where they can be parsed without danger: in the sandbox
(`inside.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from steer_core.rewards.base import after_thinking

PYTHON = ("", "python", "py", "pypy")
"""Languages of the blocks that may be a program; figures and attributes behind them (`python3 title=x`) are passed."""
_FENCE = re.compile(r"^([^`~\n]*+)(`{3,}+|~{3,}+)([^\n]*+)$", re.MULTILINE)
_INDENT = re.compile(r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?")
_LANGUAGE = re.compile(r"[{.\s]*([A-Za-z#+-]*)")
_NO_LANGUAGE = re.compile(r"\s*(?:$|<|[^\x00-\x7f])|\s+\S+\s")


class _Fence(NamedTuple):
    lead: str
    marks: str
    info: str
    start: int
    end: int

    @property
    def bare(self) -> bool:
        """Whether nothing but an indent and a list's mark stands before it."""
        return _INDENT.fullmatch(self.lead) is not None

    @property
    def indent(self) -> int:
        """How far it is indented; words before it are no indent."""
        return len(self.lead) if self.bare else 0

    @property
    def language(self) -> str:
        """The first word behind the marks, in lower case, without figures."""
        match = _LANGUAGE.match(self.info)
        return match[1].lower() if match else ""

    @property
    def ends(self) -> bool:
        """Whether what stands behind the marks names no language: nothing, an end mark, or words after a space."""
        return not self.info or (self.language not in PYTHON[1:] and _NO_LANGUAGE.match(self.info) is not None)

    @property
    def named(self) -> bool:
        """Whether what stands behind the marks names a language, with no more behind it but for Python."""
        return not self.ends and (self.language in PYTHON or len(self.info.split()) == 1)

    def opens(self) -> bool:
        """Whether it opens a block where none is open."""
        return self.bare or self.language in PYTHON[1:]

    def closes(self, other: _Fence) -> bool:
        """Whether it ends the block that the other one opened."""
        return self.bare and self.ends and self.marks.startswith(other.marks)

    def opens_within(self, other: _Fence) -> bool:
        """Whether it opens a block, so that the one the other opened was never closed: no program has such a line.

        But a fence of Python may hold a shorter or another one in its texts.
        """
        if not (self.bare and self.named):
            return False
        return other.language not in PYTHON or self.marks.startswith(other.marks)


def python_blocks(response: str) -> list[str]:
    """The closed blocks behind a response's thoughts that are fenced as Python, or as nothing, in their order."""
    text = after_thinking(response)
    blocks, opened = [], None
    for fence in _fences(text):
        if fence.opens() if opened is None else fence.opens_within(opened):
            opened = fence
        elif opened is not None and fence.closes(opened):
            if opened.language in PYTHON:
                blocks.append(_shifted(text[opened.end + 1 : fence.start], opened.indent))
            opened = None
    return blocks


def _fences(text: str) -> Iterator[_Fence]:
    """The lines that are fences; ```code``` within one line is none."""
    for match in _FENCE.finditer(text):
        lead, marks, info = match.groups()
        if "`" not in info or marks[0] == "~":
            yield _Fence(lead, marks, info.rstrip(), match.start(), match.end())


def _shifted(block: str, indent: int) -> str:
    """A block shifted left by as much as its fence is indented, but by no more than its first line is."""
    if not indent:
        return block
    first = next((line for line in block.split("\n") if line.strip()), "")
    shift = min(indent, len(first) - len(first.lstrip(" \t")))
    return re.sub(rf"^[ \t]{{1,{shift}}}", "", block, flags=re.MULTILINE) if shift else block
