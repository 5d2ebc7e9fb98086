"""The words of the notebooks show as they are meant: their Markdown is rendered, and nothing stays raw."""

import re
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt
from matplotlib.mathtext import MathTextParser

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").rglob("*.ipynb"))
MATH = re.compile(r"(?<![\\$])(\$\$?)(?!\$)(.+?)(?<!\\)\1", re.DOTALL)
MATHJAX = {r"\begin", r"\end", r"\underbrace", r"\text", r"\Big", r"\big", r"\iff", r"\ge", r"\le", r"\tfrac"}
MATHJAX |= {r"\textstyle", r"\lVert", r"\rVert"}
"""Commands that MathJax knows and matplotlib's parser does not."""


def formulas(source: str) -> tuple[list[str], str]:
    """(the TeX between dollars, the text with a word in the place of each); code is no formula."""
    text = re.sub(r"```.*?```|`[^`\n]*`|^(?: {4}|\t).*$", " code ", source, flags=re.DOTALL | re.MULTILINE)
    return [tex for _, tex in MATH.findall(text)], MATH.sub(" formula ", text)


def unknown_commands(tex: str) -> list[str]:
    """What would show as a word or in red: commands that no TeX renderer of ours knows, and doubled backslashes."""
    found = []
    for command in dict.fromkeys(re.findall(r"\\(?:[A-Za-z]+|.)", tex)):
        if command == r"\\":
            found += [] if r"\begin" in tex else [command]
        elif command not in MATHJAX and command[1:].isalpha() and not parses(command):
            found.append(command)
    return found


def parses(command: str) -> bool:
    """Whether matplotlib's TeX parser takes the command, alone or with arguments."""
    parser = MathTextParser("path")
    for form in (command, command + "{x}", command + "{x}{y}", command + "(x", command + ". x \\right."):
        try:
            parser.parse(f"${form}$")
        except (ValueError, RuntimeError):
            continue
        return True
    return False


def faults(source: str) -> list[str]:
    """What stays raw when Markdown is shown."""
    found, text = formulas(source)
    told = [command for tex in found for command in unknown_commands(tex)]
    told += ["unbraced {" for tex in found if tex.replace(r"\{", "").count("{") != tex.replace(r"\}", "").count("}")]
    shown = re.sub(r"<[^>]*>", "", MarkdownIt("commonmark").enable("table").render(text))
    told += [f"raw {mark}" for mark in ("$", "`", "\\", "**") if mark in shown]
    return told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_of_a_notebooks_markdown_stays_raw(path):
    cells = nbformat.read(path, as_version=4).cells
    assert {
        i: faults(cell.source) for i, cell in enumerate(cells) if cell.cell_type == "markdown" and faults(cell.source)
    } == {}


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (r"$\\bar R$", "\\\\"), (r"half $x", "raw $"), ("a ` tick", "raw `"), (r"$\omga$", r"\omga"),
        ("** bold**", "raw **"), (r"$\frac{1}{2$", "unbraced {"), (r"a \ b", "raw \\"),
    ],
)  # fmt: skip
def test_what_would_show_raw_is_found(source, fault):
    assert fault in faults(source)
    assert faults(r"$\bar R / \sigma$, **bold**, `code $`, and $$\Omega = I\, r\, A\; p\,(1-p)\,(\ln p + H).$$") == []
