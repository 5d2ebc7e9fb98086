"""Sandboxes for tests: short limits, a program run once, and the processes that belong to sandboxes."""

import os
import shutil
import textwrap
from pathlib import Path

import pytest

from steer_core.rewards.sandbox import Limits, Outcome, Sandbox, label

SHORT = Limits(cpu=1, wall=2.0, memory=256 << 20, output=1 << 20, disk=4 << 20, threads=16)
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap (bwrap) is not installed")
both_modes = pytest.mark.parametrize("mode", [pytest.param("bubblewrap", marks=needs_bubblewrap), "limits"])


def run(program: str, stdin: str = "", mode="bubblewrap", limits: Limits = SHORT) -> Outcome:
    with Sandbox(textwrap.dedent(program), limits, mode) as sandbox:
        return sandbox.run(stdin)


def printed(program: str) -> str:
    outcome = run(program, limits=Limits(wall=60.0))
    assert outcome.end == "done", outcome
    return outcome.output.decode()


def sandboxed(mark: str | None = None) -> list[int]:
    """The processes of sandboxes of this process (or of the one with the label), by their command lines."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
            parent = int(Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if (mark or label()).encode() in words or parent in found:  # one that became a command has another line
            found.append(int(process))
    return found


def resident(processes: list[int]) -> int:
    """The resident memory of processes together, in bytes; what they share counts for each."""
    total = 0
    for process in processes:
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total
