"""The walk of notebooks: short cells, one way through all of them, exercises with answers, outputs without noise."""

import re
import statistics
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
WALK = sorted(FOLDER.glob("*.ipynb"))
ANSWERS = FOLDER / "answers"
EVERY = [*WALK, *sorted(ANSWERS.glob("*.ipynb"))]
by_name = pytest.mark.parametrize("path", WALK, ids=lambda path: path.stem)
by_any_name = pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.stem}")


def cells(path, kind=None):
    return [cell for cell in nbformat.read(path, as_version=4).cells if kind in (None, cell.cell_type)]


def links(text):
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def shown(output):
    """What a cell left to read: text on its output, or the text of a table; not of a figure or a widget."""
    data = output.get("data", {})
    pictures = "image/png" in data or "application/vnd.jupyter.widget-view+json" in data
    return output.get("text", "") if output.output_type == "stream" else "" if pictures else data.get("text/plain", "")


@by_name
def test_a_notebook_has_20_to_35_cells_and_its_code_cells_are_short(path):
    lengths = [len(cell.source.splitlines()) for cell in cells(path, "code")]
    assert 20 <= len(cells(path)) <= 35
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 20


@by_name
def test_a_notebook_opens_with_its_number_what_is_learnt_the_minutes_and_what_comes_before(path):
    opening = cells(path)[0].source
    assert opening.startswith(f"# {path.stem.split('_')[0]} · ")
    parts = (r"\*\*What you will learn\.\*\*", r"\*\*Time:\*\* about \d+ minutes", r"\*\*Before:\*\*")
    places = [re.search(part, opening).start() for part in parts]
    assert places == sorted(places)


@by_name
def test_a_notebook_closes_with_three_exercises_and_a_link_to_their_answers(path):
    closing = cells(path)[-1].source.split("## Exercises")[1]
    assert re.findall(r"^(\d)\. ", closing, re.MULTILINE) == ["1", "2", "3"]
    assert f"answers/{path.name}" in links(closing)


def test_the_next_links_lead_through_all_notebooks_and_the_previous_links_back():
    following = {path: cells(path)[-1].source.split("**Next:**")[1:] for path in WALK}
    for path, after in pairwise(WALK):
        assert links(following[path][0])[0] == after.name, path.name
    for before, path in pairwise(WALK):
        back = links(cells(path)[-1].source.split("**Previous:**")[1])[0]
        assert back[:2] == before.name[:2], path.name
    assert following[WALK[-1]] == []


def test_every_notebook_has_answers_and_every_answer_a_notebook():
    assert [path.name for path in WALK] == sorted(path.name for path in ANSWERS.glob("*.ipynb"))


@pytest.mark.parametrize("path", sorted(ANSWERS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_three_exercises_are_answered_each_with_a_sentence_or_a_number(path):
    headings = [cell.source.splitlines()[0] for cell in cells(path, "markdown") if cell.source.startswith("## ")]
    assert headings == ["## Exercise 1", "## Exercise 2", "## Exercise 3"]
    assert max(len(cell.source.splitlines()) for cell in cells(path, "code")) <= 25


@by_any_name
def test_every_link_of_a_notebook_leads_to_a_file(path):
    for link in links("\n".join(cell.source for cell in cells(path, "markdown"))):
        assert (path.parent / link.partition("#")[0]).exists(), link


@by_any_name
def test_every_code_cell_was_run_and_none_failed(path):
    for cell in cells(path, "code"):
        assert cell.execution_count is not None, cell.source
        assert all(output.output_type != "error" for output in cell.outputs), cell.source


@by_any_name
def test_outputs_name_no_folder_of_a_machine_and_hold_no_warning(path):
    for cell in cells(path, "code"):
        assert all(output.get("name") != "stderr" for output in cell.outputs), cell.source
        told = "".join(map(shown, cell.outputs))
        assert not re.search(r"/(home|tmp|work|root)/|site-packages|Warning", told), cell.source


@by_name
def test_every_figure_is_followed_by_numbers(path):
    code = cells(path, "code")
    for cell, after in zip(code, [*code[1:], None], strict=True):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert any(shown(o).strip() for part in (cell, after) if part for o in part.outputs), cell.source
