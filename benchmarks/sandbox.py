"""What it costs to judge a program: a sandbox against a bare interpreter, and samples a second of the grader's pool.

    python benchmarks/sandbox.py --out benchmarks/results/sandbox.json

Each round takes every arm in turn, in an order of its own, so that a noisy machine slows all of them; a ratio is the
median over rounds with its 95% bootstrap interval. `plain` is `python -c` on one input, without any wall or limit.
The pool judges one batch of responses of which a quarter is right and passes all ten tests, a quarter is wrong at
once, a quarter at the fifth test, and a quarter is no program. About a minute. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.progress import track

from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import cores, environment
from steer_core.rewards.code import CodeGrader
from steer_core.rewards.sandbox import Mode, Sandbox

PROGRAM = "print(int(input()) ** 2)"
TESTS = 10
BATCH = 64


def plain() -> None:
    """The program under a bare interpreter."""
    subprocess.run([sys.executable, "-c", PROGRAM], input=b"3\n", capture_output=True, check=True)


def sandboxed(tests: int, mode: Mode = "bubblewrap") -> Callable[[], None]:
    """The program in a sandbox of its own, once a test."""

    def arm() -> None:
        with Sandbox(PROGRAM, mode=mode) as sandbox:
            for number in range(tests):
                assert sandbox.run(f"{number}\n").end == "done"

    return arm


ARMS = {
    "plain": plain,
    "sandbox, 1 test": sandboxed(1),
    f"sandbox, {TESTS} tests": sandboxed(TESTS),
    "limits, 1 test": sandboxed(1, "limits"),
}


def batch() -> tuple[list[str], list[str]]:
    """References and responses of one call."""
    numbers = range(TESTS)
    reference = json.dumps({"inputs": [f"{n}\n" for n in numbers], "outputs": [f"{n * n}\n" for n in numbers]})
    late = "n = int(input())\nprint(n * n if n < 4 else n)"
    programs = [f"```python\n{program}\n```" for program in (PROGRAM, "print(1 - 2)", late)] + ["no program"]
    return [reference] * BATCH, programs * (BATCH // len(programs))


def interval(values: np.ndarray) -> dict[str, float]:
    """The median and its 95% bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=-1), [0.025, 0.975])
    return {"median": round(float(np.median(values)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def timed(arm: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    arm()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(1), default=60, help="rounds (default %(default)s)")
    parser.add_argument("--note", help="a word on the machine, kept with the figures")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    args = parser.parse_args()

    grader, (references, responses) = CodeGrader(), batch()
    arms = ARMS | {"pool": lambda: grader.grade(references, responses)}
    order, seconds = random.Random(0), {arm: [] for arm in arms}
    for _ in track(range(args.repeats), description="rounds"):
        for arm in order.sample(list(arms), len(arms)):
            seconds[arm].append(timed(arms[arm]))
    grader.close()

    times = {arm: np.array(values) for arm, values in seconds.items()}
    many, one = times[f"sandbox, {TESTS} tests"], times["sandbox, 1 test"]
    result = {
        "milliseconds": {arm: interval(1000 * values) for arm, values in times.items() if arm != "pool"},
        "milliseconds_of_each_further_test": interval(1000 * (many - one) / (TESTS - 1)),
        "over_plain": {arm: interval(times[arm] / times["plain"]) for arm in ARMS if arm != "plain"},
        "further_test_over_plain": interval((many - one) / (TESTS - 1) / times["plain"]),
        "pool_samples_per_second": interval(BATCH / times["pool"]),
        "pool_workers": cores(),
        "repeats": args.repeats,
        "note": args.note,
        "environment": environment() | {"command": "python benchmarks/sandbox.py"},
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    end(main)
