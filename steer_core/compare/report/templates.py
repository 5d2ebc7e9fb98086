"""The templates of pages: one style, and filters that write numbers as the report does."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from steer_core.compare.report import wording as say


def templates(*folders: Path) -> Environment:
    """The templates of some folders, and of the report, whose `style.html.j2` every page includes."""
    found = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "coded": coded,
        "number": say.number,
        "bounds": say.bounds,
        "verdict": say.verdict,
        "count": say.count,
    }
    return found


def coded(text: str) -> Markup:
    """Text as HTML, what stands between backticks as code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # a backtick that nothing closes stays
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
