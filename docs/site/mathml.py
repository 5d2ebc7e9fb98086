"""Formulas as MathML, made while the pages are written: no script, no font of another place, nothing left raw."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

FUNCTION = re.compile(r"(<mi>(?:ln|log|exp|max|min|sum)</mi>)(?=<m(?:i|sub|row|over|frac)\b)")
"""The name of a function with its argument behind it, unbracketed: a thin space belongs between them."""


def mathml(tex: str, display: str) -> str:
    """A formula as MathML. display: `inline` or `block`. Raises ExtensionError where TeX would stay raw."""
    told = convert(tex, display=display)
    if "\\" in told:
        raise ExtensionError(f"formula {tex!r}: a command is not known to latex2mathml; write it another way")
    return FUNCTION.sub(r"\1<mspace width='0.17em'/>", told)


def visit_inline(translator: Any, node: nodes.Element) -> None:
    """Write a formula within a line."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.Element) -> None:
    """Write a formula of its own, which scrolls where it is too wide."""
    translator.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer, and use it."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
