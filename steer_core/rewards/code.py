"""Grades model-written Python by its tests: a fenced block of a response, run in a sandbox test by test.

A test is a text on stdin and the text that must come out, or arguments of a function and the value it must return
(`code_tests.py`). The right answers never enter a sandbox: what a program puts out is compared here, so nothing a
program does to its own process can make a pass of a wrong answer. Of several blocks (`fences.py`) the program is the
last that is one, of those that define the function where one is tested (`inside.py`). What is right is as
LiveCodeBench's harness judges it: line by line up to space at the ends, or as decimal numbers.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from decimal import Decimal
from typing import Any

from steer_core.common.environment import cores
from steer_core.common.errors import SteerError
from steer_core.rewards.base import UNJUDGED, Status, Verdict
from steer_core.rewards.code_tests import Case, parse_tests
from steer_core.rewards.fences import python_blocks
from steer_core.rewards.sandbox import End, Limits, Mode, Outcome, Sandbox, require_sandbox

STATUS: dict[End, Status] = {"failed": "wrong", "timed out": "timed out"}
"""The verdict on a run that put nothing out to compare; `crashed` where a limit, or a signal, ended it."""


class CodeGrader:
    """Judges programs by their tests, several at a time; a reference is the tests as JSON text (`parse_tests`).

    Calls may come from any thread and share the workers. A verdict's detail names the first test that failed.
    """

    name = "code"

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        mode: Mode = "bubblewrap",
        ended_is_wrong: bool = False,
    ) -> None:
        """workers: programs at a time (the cores). ended_is_wrong: call a program wrong that a limit ended.

        Raises SteerError where this machine cannot run the mode.
        """
        workers = cores() if workers is None else workers
        if workers < 1:
            raise SteerError(f"workers: {workers!r} must be at least 1")
        self.limits, self.mode, self.ended_is_wrong = limits or Limits(), mode, ended_is_wrong
        require_sandbox(mode, self.limits)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="code-grader")

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """The verdict on each response, by the tests of its reference.

        Raises ValueError where the two differ in length, and SteerError for malformed tests, before any program
        runs, or where no sandbox can be started. Interrupted, it ends every program first.
        """
        if len(references) != len(responses):
            raise ValueError(f"{len(references)} references for {len(responses)} responses")
        tests = {reference: parse_tests(reference) for reference in dict.fromkeys(references)}
        stop, futures = threading.Event(), []
        try:
            for reference, response in zip(references, responses, strict=True):
                futures.append(self._pool.submit(self._judge, tests[reference], response, stop))
            verdicts = [future.result() for future in futures]
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            wait(futures)
            raise
        if not self.ended_is_wrong:
            return verdicts
        return [replace(one, status="wrong") if one.status in UNJUDGED else one for one in verdicts]

    def close(self) -> None:
        """Let the workers go, once what they run has ended."""
        self._pool.shutdown()

    def _judge(self, cases: list[Case], response: str, stop: threading.Event) -> Verdict:
        blocks = python_blocks(response)
        if not blocks:
            return Verdict("unanswered", detail="no fenced block of Python")
        try:
            sandbox = Sandbox(blocks, self.limits, self.mode, stop)
        except ValueError as error:
            return Verdict("wrong", detail=str(error)[:200])
        used, end = 0.0, time.monotonic() + self.limits.total * self.limits.wall / self.limits.cpu
        with sandbox:
            for number, case in enumerate(cases, 1):
                at, left = f"test {number} of {len(cases)}: ", end - time.monotonic()
                if used > self.limits.total:
                    return Verdict("timed out", detail=f"{at}more than {self.limits.total:.3g} seconds of CPU in all")
                if left <= 0:
                    return Verdict("timed out", detail=f"{at}the machine gave it too little time in all")
                outcome = run(case, sandbox, min(left, self.limits.wall))
                used += outcome.seconds
                if outcome.end != "done":
                    status = STATUS.get(outcome.end, "crashed")
                    return Verdict(status, detail=f"{at}{outcome.end} ({outcome.detail})")
                if not accepts(case, outcome.output):
                    return Verdict("wrong", detail=f"{at}wrong answer")
        return Verdict("right", detail=f"passed {len(cases)} test{'s' if len(cases) > 1 else ''}")


def run(case: Case, sandbox: Sandbox, wall: float | None = None) -> Outcome:
    """What a sandbox's program makes of a test."""
    if case.function is None:
        return sandbox.run(case.given, wall)
    return sandbox.call(case.function, case.given, wall)


def accepts(case: Case, output: bytes) -> bool:
    """Whether an output, stdout or a result as JSON text, is right."""
    same = same_text if case.function is None else same_value
    return any(same(output, value) for value in case.accepted)


def same_text(output: bytes, expected: str) -> bool:
    """Whether a stdout is the expected one: line by line, but for space at the ends, or as decimal numbers."""
    try:
        text = output.decode().strip()
    except UnicodeDecodeError:
        return False
    expected = expected.strip()
    if text.count("\n") != expected.count("\n"):
        return False
    return all(
        line == wanted or _same_numbers(line, wanted)
        for line, wanted in zip(map(str.strip, text.split("\n")), map(str.strip, expected.split("\n")), strict=True)
    )


def same_value(output: bytes, expected: Any) -> bool:
    """Whether a result, one JSON text, has the expected value; numbers of equal value are equal."""
    if len(output) > 4 * len(json.dumps(expected)) + 64:  # no way to write it is that long; a bomb is not read
        return False
    try:
        return bool(json.loads(output) == expected)
    except (ValueError, RecursionError):
        return False


def _same_numbers(line: str, wanted: str) -> bool:
    """Whether two lines hold the same decimal numbers, word by word."""
    words, others = line.split(), wanted.split()
    try:
        return len(words) == len(others) and all(Decimal(a) == Decimal(b) for a, b in zip(words, others, strict=True))
    except ArithmeticError:
        return False
