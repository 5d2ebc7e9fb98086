"""One source of pins: pyproject.toml, constraints.txt and every installer agree, and what is shipped is there."""

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
INSTALLERS = ("Makefile", "Dockerfile", "environment.yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SHIPPED = [
    *(f"models/countdown/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    *(f"models/countdown/{name}" for name in ("generation_config.json", "tokenizer_config.json")),
    *(f"configs/{name}.yaml" for name in ("grpo", "steer")),
    *(f"show/viewer.{name}" for name in ("html.j2", "css", "js")),
    *(f"plans/{name}.yaml" for name in ("compare", "quick", "quadrants", "short")),
    "problems/manifest.yaml",
    "rewards/inside.py",
]


def pin_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def pins() -> dict[str, str]:
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in pin_lines()}


def text(name: str) -> str:
    return (ROOT / name).read_text()


def commands(name: str) -> list[str]:
    return [line for line in text(name).splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *chain(*EXTRAS.values())])
def test_every_dependency_has_a_pin_that_satisfies_it(line):
    requirement = Requirement(line)
    if canonicalize_name(requirement.name) == PROJECT["name"]:
        assert requirement.extras <= EXTRAS.keys()
    else:
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_pins_are_exact_sorted_and_without_local_tags():
    lines = pin_lines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", line)] == []
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert PROJECT["name"] not in names


PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
PAGES += [path for folder in ("steer_core", "reproduce", "benchmarks") for path in (ROOT / folder).rglob("*.py")]


def test_every_extra_that_a_page_or_a_message_names_exists_and_stands_in_quotes_for_zsh():
    told = [line for path in PAGES for line in re.findall(r"-e \S*\.\[[^\n]*", path.read_text(encoding="utf-8"))]
    assert len(told) >= 8
    for line in told:
        quoted = re.match(r"-e '\.\[([\w,-]+)\]'", line)
        assert quoted, line
        assert set(quoted[1].split(",")) <= EXTRAS.keys()


def test_every_pip_install_goes_through_the_constraints():
    installs = [line for name in ("Makefile", "Dockerfile") for line in commands(name) if "pip install" in line]
    installs += [line for line in commands("Makefile") if "$(PIP) install" in line]
    ours = [line for line in installs if "--no-deps" not in line]  # the wheel is tried without what it needs
    assert [" -c constraints.txt -e " in line for line in ours] == [True]  # the one install there is
    assert "$(call quietly,[dev])" in text("Makefile")
    assert "make .venv/dev.stamp" in text("Dockerfile")
    assert "make .venv/extras.stamp" in text("Dockerfile")
    sections = [
        item["pip"] for item in yaml.safe_load(text("environment.yml"))["dependencies"] if isinstance(item, dict)
    ]
    assert len(sections) == 1
    assert sections[0][0] == "-c constraints.txt"


def test_installers_hold_no_pins_and_name_no_index():
    for name in INSTALLERS:
        assert not re.search(r"==\s*\d|index-url|://", "\n".join(commands(name))), name


def test_installers_name_only_extras_that_exist():
    named = [re.findall(r"(?:-e \.|`\.|quietly,)\[([\w,-]+)\]", text(name)) for name in ("Makefile", "environment.yml")]
    assert all(named)
    assert {extra for found in named for group in found for extra in group.split(",")} <= EXTRAS.keys()


def test_the_python_of_each_installer_is_accepted():
    accepted = SpecifierSet(PROJECT["requires-python"])
    assert accepted.contains(re.search(r"python:(3\.\d+)-slim", text("Dockerfile"))[1])
    assert accepted.contains(re.search(r"python=(3\.\d+)", text("environment.yml"))[1])


@pytest.mark.parametrize("asset", SHIPPED)
def test_shipped_file_is_there_and_not_ignored(asset):
    path = ROOT / "steer_core" / asset
    assert path.stat().st_size > 0 or asset == "py.typed"
    if (ROOT / ".git").exists():  # the wheel leaves out what git ignores
        assert subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT).returncode == 1


def test_licence_is_apache_2_everywhere():
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    licence = text("LICENSE")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
