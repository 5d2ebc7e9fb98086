"""What the benchmarks share: rounds of arms in turn, medians with their spread, intervals, memory, the record kept.

Arms are always timed in turn within one process, in another order each round, so that a noisy machine slows all of
them; a ratio is the median over rounds of the two times of the same round.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from steer_core.common.environment import environment

RESULTS = Path(__file__).parent / "results"


def rounds(
    arms: Mapping[str, Callable[[], object]],
    repeats: int,
    what: str = "rounds",
    before: Callable[[str], object] = lambda arm: None,
    limit: float = inf,
) -> dict[str, np.ndarray]:
    """Seconds of every arm in every round; each round takes all arms, in an order of its own.

    before: is told an arm ahead of its turn, in time that does not count. limit: seconds after which no round but the
    second begins.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    began = time.perf_counter()
    for number in track(range(repeats), description=what):
        if number > 1 and time.perf_counter() - began > limit:
            break
        for arm in order.sample(list(arms), len(arms)):
            before(arm)
            seconds[arm].append(timed(arms[arm]))
    return {arm: np.array(values) for arm, values in seconds.items()}


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes; what it leaves for a GPU to do counts."""
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait for the GPU, where this process has begun to use one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def interval(values: np.ndarray) -> dict[str, float]:
    """The median of some values, such as paired ratios, and its 95% bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=-1), [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def spread(values: np.ndarray) -> dict[str, float]:
    """The median of some values, their quartiles, smallest and largest."""
    names = ("smallest", "quartile_low", "median", "quartile_high", "largest")
    return dict(zip(names, map(float, np.quantile(values, [0, 0.25, 0.5, 0.75, 1])), strict=True))


def slope(sizes: np.ndarray, values: np.ndarray) -> float:
    """The exponent b of the power law value = a size^b that fits best: the slope of log value on log size."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def resident(field: str) -> float:
    """A memory reading of this process in MiB, as Linux keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def added(work: Callable[[], object], device: str = "cpu") -> float:
    """MiB that a piece of work adds at its peak, to this process (Linux) or to what torch has allocated on a GPU."""
    if device == "cuda":
        synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        synchronise()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def in_own_process(script: str, *words: str) -> str:
    """The last line that a script prints in a process of its own, which gives freed memory back at once."""
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # or its heap hides what is needed
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False, env=given)
    if done.returncode:
        raise SystemExit(f"{Path(script).name} {shlex.join(words)}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def about() -> dict:
    """The record of where and how: `environment()`, with the command of a benchmark, less its --out, and threads."""
    words = iter(sys.argv[1:])
    kept = [word for word in words if not (word.startswith("--out=") or (word == "--out" and next(words, "")))]
    threads = os.environ.get("OMP_NUM_THREADS")
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])
    return environment() | {
        "command": f"OMP_NUM_THREADS={threads} {command}" if threads else command,
        "threads": torch.get_num_threads(),
    }


def show(result: dict, out: Path | None) -> None:
    """Print a benchmark's figures, and write them to a JSON file where one is named."""
    print(json.dumps(result, indent=2))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
