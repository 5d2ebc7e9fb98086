"""The site: it builds without a warning, no link is broken, no formula is raw, and it loads nothing from elsewhere."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("bs4")
pytest.importorskip("latex2mathml")
from bs4 import BeautifulSoup

import steer_core

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))
import docstrings  # noqa: E402
import mathml  # noqa: E402
import pages  # noqa: E402

RAW = re.compile(r"\\[a-zA-Z]{2,}|\$\$|(?<![\w$])\$[^$\n]{1,80}\$(?![\w$])")
"""TeX that no renderer took."""
CODE = ["code", "pre", "script", "style", "math"]
QUOTED = {"data_audit.html": {r"\boxed"}}
"""What a page quotes: the names of the data's prompts."""


def built(test):
    """Marks a test of the built site: slow where it has to be built first."""
    return test if "SITE" in os.environ else pytest.mark.slow(test)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site: the one that `make docs` has just built, or one of our own."""
    if "SITE" in os.environ:
        return (ROOT / os.environ["SITE"]).resolve()
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2", "-c", "docs/site", ".", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def html(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


@cache
def anchors(path: Path) -> set[str]:
    return {one["id"] for one in parsed(path).find_all(id=True)}


def broken(site: Path, path: Path) -> list[str]:
    """The links and pictures of a page that lead nowhere on the site."""
    found = []
    for tag, key in (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")):
        for one in parsed(path).find_all(tag, **{key: True}):
            link = urlsplit(one[key])
            if link.scheme or link.netloc or link.path.startswith("_sources"):
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            missing = not target.is_file()
            lost = link.fragment and target.suffix == ".html" and unquote(link.fragment) not in anchors(target)
            if missing or (lost and path.name not in ("genindex.html", "search.html")):
                found.append(one[key])
    return found


@built
def test_no_link_of_the_site_is_broken(site):
    assert {path.relative_to(site).as_posix(): links for path in html(site) if (links := broken(site, path))} == {}


@built
def test_no_formula_stays_raw(site):
    raw = {}
    for path in html(site):
        told = " ".join(text for text in parsed(path).find_all(string=True) if not text.find_parent(CODE))
        raw[path.name] = set(RAW.findall(told)) - QUOTED.get(path.name, set())
    assert {name: found for name, found in raw.items() if found} == {}
    assert len(parsed(site / "docs/site/api.html").find_all("math")) > 10


@built
def test_a_page_loads_nothing_from_another_place(site):
    for path in html(site):
        page = parsed(path)
        loaded = [one.get("src") for one in page.find_all(["script", "img", "iframe"])]
        loaded += [one["href"] for one in page.find_all("link") if set(one["rel"]) & {"stylesheet", "preload", "icon"}]
        assert [one for one in loaded if one and re.match(r"(https?:)?//", one)] == [], path.name


@built
def test_every_page_has_search_a_dark_mode_and_a_way_on(site):
    assert parsed(site / "index.html").get_text() == parsed(site / "README.html").get_text()
    for name in [page for below in pages.documents().values() for page in below]:
        page = parsed((site / name).with_suffix(".html"))
        assert page.find("input", attrs={"name": "q"}), name
        assert page.find("button", class_="theme-toggle"), name
        assert page.find("a", class_="next-page") or page.find("a", class_="prev-page"), name
        (play,) = page.select(".sidebar-play a")
        links = page.select(".sidebar-container a[href]")
        assert links.index(play) <= 1, name  # the brand alone stands above it
    assert "entropi" in (site / "searchindex.js").read_text(encoding="utf-8")  # stemmed


@built
def test_every_public_name_is_explained(site):
    told = anchors(site / "docs/site/api.html")
    assert {f"steer_core.{name}" for name in steer_core.__all__ if name != "__version__"} <= told


@built
def test_the_glossary_and_reproduces_tables_are_there(site):
    rows = parsed(site / "docs/glossary.html").select("tbody tr")
    assert len(rows) >= 20
    made = {path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "reproduce/results").rglob("*.md")}
    assert [str(path) for path in made if not (site / path).is_file()] == []


def test_every_page_of_docs_and_every_notebook_has_a_place_and_one_alone():
    told = [page for below in pages.documents().values() for page in below]
    assert len(told) == len(set(told))
    wanted = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]}
    assert wanted <= set(told)


@pytest.mark.parametrize("told", ["https://github.com/one/two", "https://github.com/one/two.git"])
def test_links_to_code_go_to_the_repository_that_is_told_and_are_plain_words_where_none_is(monkeypatch, told):
    text = "[a](../Makefile) [b](results.md#limits) [c](play.html) `[d](../Makefile)` [e](../tests) [f](nowhere.md)"
    page, code = ROOT / "docs" / "when.md", "https://github.com/one/two"
    monkeypatch.setenv("STEER_REPOSITORY", told)
    assert pages.redirected(text, page) == (
        f'[a]({code}/blob/main/Makefile) [b](results.md#limits) <a href="play.html">c</a> `[d](../Makefile)` '
        f"[e]({code}/tree/main/tests) [f](nowhere.md)"
    )
    monkeypatch.setattr(pages, "repository", lambda: "")
    assert pages.redirected(text, page).startswith("a [b](results.md#limits) <a")


def test_a_formula_that_cannot_be_rendered_ends_the_build():
    with pytest.raises(Exception, match="is not known to latex2mathml"):
        mathml.mathml(r"\omga + 1", "inline")
    assert "<mspace" in mathml.mathml(r"\ln p", "inline")
    assert "<mspace" not in mathml.mathml(r"\ln(p)", "inline")


def test_a_docstring_reads_as_it_is_written():
    lines = [
        "|Omega| of p_old_ * 2, see `a*b`.",
        "",
        "size: how many,",
        "    at most 3.",
        "rate: fast.",
        "",
        "    x_",
    ]
    docstrings.escape(None, "function", "x", None, None, lines)
    assert lines == [
        r"\|Omega\| of p_old\_ \* 2, see `a*b`.", "",
        "- ``size``: how many, at most 3.", "", "- ``rate``: fast.", "",
        "::", "", "    x_", "",
    ]  # fmt: skip


def test_a_widget_becomes_words_or_the_picture_beside_it():
    plain, beside = {pages.WIDGET: {}, "text/plain": "interactive"}, {pages.WIDGET: {}, "image/png": "..."}
    cell = {"cell_type": "code", "outputs": [{"data": plain}, {"data": beside}, {"name": "stdout"}]}
    notebook = {"metadata": {"widgets": {}}, "cells": [cell, {"cell_type": "markdown", "source": ["[a](../tests)"]}]}
    told = json.loads(pages.of_notebook(json.dumps(notebook), ROOT / "notebooks" / "00.ipynb"))
    assert [output.get("data") for output in told["cells"][0]["outputs"]] == [
        {"text/markdown": pages.NO_KERNEL}, {"image/png": "..."}, None
    ]  # fmt: skip
    assert told["metadata"] == {}
    assert told["cells"][1]["source"] != "[a](../tests)"
