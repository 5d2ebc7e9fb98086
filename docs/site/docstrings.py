"""Docstrings are plain sentences: before Sphinx reads one, what reStructuredText would take for markup is escaped."""

import re
from typing import Any

from sphinx.application import Sphinx

_CODE = re.compile(r"(`[^`]*`)")
FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): ")
_MARKUP = re.compile(r"([\\*|]|(?<=\w)_(?!\w))")


def plain(text: str) -> str:
    """A line with stars, bars and hanging underscores as they are; what stands between backticks is kept as code."""
    parts = _CODE.split(text)
    return "".join(f"`{part}`" if i % 2 else _MARKUP.sub(r"\\\1", part) for i, part in enumerate(map(_unquoted, parts)))


def _unquoted(part: str) -> str:
    return f" {part[1:-1]} ".strip() if part.startswith("`") else part


def items(rows: list[str]) -> list[str]:
    """The rows of a paragraph joined: one item for each that begins `name: `, with what is indented below it."""
    found: list[str] = []
    hanging = False  # whether the last item has rows that are indented
    for row in rows:
        field, indented = FIELD.match(row), row.startswith(" ")
        if not found or field or (hanging and not indented):
            found.append(f"- ``{field[1]}``: {plain(row[field.end() :])}" if field else plain(row))
            hanging = False
        else:
            found[-1] += f" {plain(row.strip())}"
            hanging = hanging or indented
    return [line for item in found for line in (item, "")]


def escape(app: Sphinx, kind: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """The event `autodoc-process-docstring`: an indented paragraph stays as it is, and so does a list."""
    told: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = paragraph.splitlines()
        if rows and all(row.startswith("    ") for row in rows):
            told += ["::", "", *rows, ""]
        elif any(row.startswith(("- ", "* ")) for row in rows):
            told += [*map(plain, rows), ""]
        else:
            told += items(rows)
    lines[:] = told


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the event."""
    app.connect("autodoc-process-docstring", escape)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
