"""README and docs: links that lead somewhere, commands that run, code that runs as it is pasted, plain English."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from processes import steer
from small import SMALL

import steer_core
from steer_core.problems.sets import data_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "steer_core/interventions/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
ENVIRONMENT = {**os.environ, "CI": "1"}
MISLEADING = {
    "not settled": "say what is undecided and why",
    "other turns": "say what came out differently",
    "too few of": "name what is scarce",
    "to pay for": "say what it costs",
    "second-hand": "say where it was copied from",
    "are warm": "say what the optimiser has averaged",
    "irreproducible numbers": "a claim without a source",
    "setting is GRPO": "undecided is not equal",
}

LONGER = 6
"""Rollouts of a small run that is given another length."""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(program: str, *languages: str, pages: tuple[str, ...] = tuple(TEXTS)) -> list[list[str]]:
    found = (block for page in pages for language in languages for block in blocks(language, TEXTS[page]))
    lines = (line.split(" #")[0].strip() for block in found for line in block.splitlines())
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def shortened(words: list[str]) -> list[str]:
    """The command with the small settings added where settings go."""
    if "--resume" in words:
        longer = [f"train.rollouts={LONGER}" if word.startswith("train.rollouts=") else word for word in words]
        return [*longer, "--no-report"]
    if words[1] in ("train", "compare"):
        at = next((i for i in range(2, len(words)) if words[i].startswith("--")), len(words))
        if words[1] == "compare":
            return [*words[:2], "--seeds", "0", *words[2:], *SMALL, "train.rollouts=2"]
        slower = "optimizer.learning_rate=1e-4"  # so that an estimate still finds right responses
        # `steer report` has a line of its own
        return [*words[:at], *SMALL, slower, *words[at:], "--no-report"]
    if words[1] == "estimate":  # enough groups for some with differing rewards
        return [*words, "rollout.prompts=16", "rollout.responses=8", "optimizer.mini_batch_prompts=8"]
    if "--benchmarks" in words:
        return [*words, "benchmark.problems=4", "benchmark.samples=2", "benchmark.threads=1"]
    if words[1:3] == ["data", "audit"]:
        return [*words, "aime24", "math500"]
    return words


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(words, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False)


@cache
def help_of(*command: str) -> str:
    done = run([sys.executable, "-m", "steer_core", *command, "--help"], ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_at_most_130_lines():
    assert len(README.splitlines()) <= 130


@pytest.mark.long
def test_every_steer_command_of_the_docs_runs_in_order(tmp_path):
    told = commands("steer", "bash", pages=("docs/commands.md", "docs/evaluation.md"))
    assert {words[1] for words in told} == {
        "compare", "train", "evaluate", "paired", "estimate", "report", "data", "doctor", "show", "plan", "grade",
        "diagnose",
    }  # fmt: skip
    if data_folder() is None:  # an audit needs the files
        told = [words for words in told if words[1:3] != ["data", "audit"]]
    (tmp_path / "curve.csv").write_text("rollout,entropy\n1,0.3\n60,0.2\n", encoding="utf-8")
    for words in told:
        done = steer(*shortened(words)[1:], cwd=tmp_path)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr[-500:]}"
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_that_a_page_shows_exists_with_its_options(page):
    told = commands("steer", "bash", "console", pages=(page,))
    told += [shlex.split(words) for words in re.findall(r"`(steer [a-z][^`]*)`", TEXTS[page].replace("'", ""))]
    for words in told:
        assert re.search(rf"^ +{words[1]}\b", help_of(), flags=re.MULTILINE), words
        for option in re.findall(r"--[a-z-]+", " ".join(words)):
            assert option in help_of(words[1]), f"{' '.join(words)}: {option}"
    for script in re.findall(r"python ((?:reproduce|benchmarks|examples)/\w+\.py)", TEXTS[page]):
        assert (ROOT / script).is_file(), script


def test_every_make_target_that_a_page_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    told = {words[1] for words in commands("make", "bash")}
    told |= {target for text in TEXTS.values() for target in re.findall(r"`make ([\w-]+)", text)}
    assert {"run", "test", "notebooks", "lint"} <= told
    for target in told:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_readmes_loop_runs_as_pasted_and_damps_the_token_at_the_maximum():
    (code,) = (code for code in blocks("python") if "integrations" not in code)
    names = {}
    exec(code, names)
    assert names["weights"].min() == pytest.approx(0.7)
    assert names["weights"].max() <= 1
    assert names["logits"].grad.isfinite().all()
    assert names["logits"].grad.abs().sum() > 0


@pytest.mark.slow
def test_the_readmes_code_for_trl_trains_as_pasted(tmp_path):
    pytest.importorskip("trl")
    (code,) = (code for code in blocks("python") if "integrations.trl" in code)
    (tmp_path / "steer_core").symlink_to(ROOT / "steer_core")
    tell = "\nfrom transformers.trainer_utils import get_last_checkpoint; print(get_last_checkpoint('runs/trl'))"
    done = run([sys.executable, "-c", code + tell], tmp_path)
    assert done.returncode == 0, done.stderr[-500:]
    assert "lambda/mean" in done.stdout
    assert "checkpoint-1" in done.stdout


def test_the_readmes_settings_of_verl_name_what_is_there():
    pytest.importorskip("verl")
    from importlib import import_module

    (lines,) = blocks("text")
    pairs = (line.split("=") for line in lines.splitlines())
    settings = {key.rsplit(".", 1)[1]: value for key, value in pairs}
    integration = import_module(settings["external_lib"])
    assert settings["loss_mode"] == integration.LOSS_MODE


@pytest.mark.slow
def test_the_method_of_the_page_on_adding_one_trains_from_the_folder_it_lies_in(tmp_path):
    page = TEXTS["steer_core/interventions/README.md"]
    (tmp_path / "calm_module.py").write_text(re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1])
    line = next(line for line in page.splitlines() if line.startswith("steer train intervention.name=calm_module:Calm"))
    program = Path(sys.executable).with_name("steer")  # the installed command, which does not look in the folder itself
    words = [str(program), *shortened(shlex.split(line))[1:], "train.rollouts=1", "evaluation.every=0"]
    done = run(words, tmp_path, PYTHONPATH=os.pathsep.join([".", os.environ.get("PYTHONPATH", "")]))  # as the page says
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "runs" / "calm" / "metrics.jsonl").exists()


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_the_readme_leads_to_every_page_of_docs():
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README)}
    assert {f"docs/{path.name}" for path in PAGES if path.parent == ROOT / "docs"} <= linked


@pytest.mark.parametrize("page", [name for name in TEXTS if name != "CHANGELOG.md"])  # which names what is gone
def test_every_file_that_a_page_names_exists(page):
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|ipynb|md|yml|yaml|txt))`", TEXTS[page]):
        assert any((place / name).exists() for place in (ROOT, ROOT / "steer_core")), name


def test_the_citation_names_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (steer_core.__version__, project["license"])
    (paper,) = cited["references"]
    assert paper["title"] == "Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective"
    assert "2510.10150" in paper["url"]


def prose() -> dict[str, str]:
    found = dict(TEXTS)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return {name: " ".join(text.split()) for name, text in found.items()}


@pytest.mark.parametrize("phrase", MISLEADING)
def test_no_page_or_notebook_uses_a_phrase_that_readers_stumbled_over(phrase):
    assert [name for name, text in prose().items() if phrase in text] == [], MISLEADING[phrase]
