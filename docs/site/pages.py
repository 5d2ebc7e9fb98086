"""Which pages the site has, in which order, and where their links lead."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "Notebooks": ["notebooks/*.ipynb", "notebooks/answers/*.ipynb"],
    "Results": [
        "docs/results.md",
        "docs/when.md",
        "docs/tournament.md",
        "docs/estimators.md",
        "docs/paper.md",
    ],
    "Tables": ["reproduce/results/*.md", "reproduce/results/**/*.md"],
    "Use": [
        "docs/install.md",
        "docs/commands.md",
        "docs/papers.md",
        "docs/integrations.md",
        "docs/evaluation.md",
        "docs/scale.md",
        "docs/*.md",
    ],
    "Reference": [
        "docs/glossary.md",
        "docs/site/api.md",
        "docs/architecture.md",
        "docs/guarantees.md",
        "steer_core/interventions/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ],
}
"""The sidebar: its captions, and the pages below each. A page that a pattern and a name find goes by its name."""
FENCE = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!\!)\[((?:[^\[\]]|\[[^\]]*\]|!\[[^\]]*\]\([^)]*\))*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")

WIDGET = "application/vnd.jupyter.widget-view+json"
NO_KERNEL = "*Here a slider moves the figure: run the notebook (`make notebooks`) to use it.*"


def repository() -> str:
    """Where the code is, as https://HOST/OWNER/NAME/; empty where nothing tells it.

    STEER_REPOSITORY says it, else GitHub's own runner, else the remote that the checkout came from.
    """
    told = os.environ.get("STEER_REPOSITORY", "")
    if not told and "GITHUB_REPOSITORY" in os.environ:
        told = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{os.environ['GITHUB_REPOSITORY']}"
    if not told:
        asked = ["git", "remote", "get-url", "origin"]
        told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        told = re.sub(r"^git@([\w.-]+):", r"https://\1/", told)
    told = told.removesuffix("/").removesuffix(".git")
    return f"{told}/" if re.match(r"https://(github|gitlab)\.com/", told) else ""


def documents() -> dict[str, list[str]]:
    """Caption to the pages below it, each once, as paths from the root of the repository."""
    named = {one for patterns in SECTIONS.values() for one in patterns if "*" not in one}
    found: dict[str, list[str]] = {}
    for caption, patterns in SECTIONS.items():
        pages: list[str] = []
        for pattern in patterns:
            paths = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
            pages += [path for path in paths if "*" not in pattern or path not in named]
        found[caption] = list(dict.fromkeys(pages))
    return found


def contents() -> str:
    """The tables of contents that the first page ends with, which make the sidebar."""
    parts = []
    for caption, pages in documents().items():
        names = "\n".join(f"/{page.rpartition('.')[0]}" for page in pages)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n:maxdepth: 1\n\n{names}\n```\n")
    return "\n".join(parts)


def redirected(text: str, page: Path) -> str:
    """A page's text with its links to what is no page of the site turned to the repository, or to plain words.

    A link to another page stays; one to an HTML file, which lies at the same place on the site, becomes HTML.
    """
    known = {name for pages in documents().values() for name in pages} | {"README.md"}

    def turn(found: re.Match) -> str:
        words, target = found[1], found[2]
        path, _, anchor = target.partition("#")
        place = Path(os.path.normpath(page.parent / path))
        name = place.relative_to(ROOT).as_posix() if place.is_relative_to(ROOT) else ""
        if name in known or not place.exists():
            return found[0]  # what is not there, the build warns of
        if place.suffix == ".html":
            return f'<a href="{target}">{words}</a>'
        if repository():
            kind = "tree" if place.is_dir() else "blob"
            return f"[{words}]({repository()}{kind}/main/{name}{anchor and '#' + anchor})"
        return words

    parts = FENCE.split(text)
    return "".join(part if i % 2 else LINK.sub(turn, part) for i, part in enumerate(parts))


def of_notebook(text: str, page: Path) -> str:
    """A notebook's JSON with its links turned, and in place of each widget, which needs a kernel, words that say so.

    An output that holds a picture beside its widget keeps the picture.
    """
    notebook = json.loads(text)
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = redirected("".join(cell["source"]), page)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.pop(WIDGET, None) is not None and not any(kind.startswith("image/") for kind in data):
                output["data"] = {"text/markdown": NO_KERNEL}
    return json.dumps(notebook)


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """The event `source-read`: links turned, and the contents after the first page's words."""
    page = Path(app.env.doc2path(name))
    source[0] = (of_notebook if page.suffix == ".ipynb" else redirected)(source[0], page)
    if name == app.config.root_doc:
        source[0] += f"\n\n{contents()}"


def finish(app: Sphinx, error: Exception | None) -> None:
    """The event `build-finished`: the first page also as index.html, and the page without a kernel at its place."""
    if error is None and app.builder.format == "html":
        out = Path(app.outdir)
        shutil.copyfile(out / f"{app.config.root_doc}.html", out / "index.html")
        (out / "docs").mkdir(exist_ok=True)
        for page in sorted((ROOT / "docs").glob("*.html")):
            shutil.copyfile(page, out / "docs" / page.name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the events."""
    app.connect("source-read", read)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
