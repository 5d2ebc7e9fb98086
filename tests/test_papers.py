"""docs/papers.md holds every method, advantage, reduction and estimate, with the paper that its docstring names."""

import re
import runpy
from pathlib import Path

import pytest

from steer_core import ADVANTAGES, ENTROPY_CHANGE, INTERVENTIONS
from steer_core.formulas.loss import REDUCTIONS

ROOT = Path(__file__).parents[1]
PAPERS = runpy.run_path(str(ROOT / "reproduce" / "papers.py"))
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]


def test_the_page_is_what_the_package_says():
    assert PAPERS["page"]() == PAGE, "run `python reproduce/papers.py`"


def test_every_name_of_the_registries_has_a_row():
    names = {name for row in ROWS for name in re.findall(r"`([^`]+)`", row[1] if len(row) > 1 else "")}
    wanted = set(INTERVENTIONS) - {"none"} | {f"algorithm.advantage={name}" for name in ADVANTAGES}
    wanted |= {f"algorithm.reduction={name}" for name in REDUCTIONS} | {
        f"intervention.form={name}" for name in ENTROPY_CHANGE
    }
    assert wanted <= names


@pytest.mark.parametrize(
    ("name", "number"), [("steer", "2510.10150"), ("kl-cov", "2505.22617"), ("w-reinforce", "2506.01347")]
)
def test_a_methods_row_links_its_paper_and_tells_its_defaults(name, number):
    (row,) = [row for row in ROWS if len(row) > 3 and row[1] == f"`{name}`"]
    assert row[0] == f"[{number}](https://arxiv.org/abs/{number})"
    for key, value in re.findall(r"`(\w+)=([^`]+)`", row[3]):
        assert str(getattr(INTERVENTIONS[name](), key)) == value.strip('"')


def test_text_cannot_break_its_cell():
    assert PAPERS["cell"]("|a| < b* c") == r"\|a\| \< b\* c"
    assert PAPERS["papers"]("eq. 8, arXiv 2301.00001 and arXiv 2301.00002").count("](") == 2
    assert PAPERS["papers"]("no number") == PAPERS["NONE"]
