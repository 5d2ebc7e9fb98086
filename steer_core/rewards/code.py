"""Grades model-written Python by its tests: the last fenced block of a response, run in a sandbox test by test.

A test is a text on stdin and the text that must come out, or arguments of a function and the value it must return, in
the two formats that APPS and LiveCodeBench ship. The right answers never enter a sandbox: what a program puts out is
compared here, so nothing a program does to its own process can make a pass of a wrong answer.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from steer_core.common.environment import cores
from steer_core.common.errors import SteerError
from steer_core.rewards.base import UNJUDGED, Status, Verdict
from steer_core.rewards.sandbox import End, Limits, Mode, Outcome, Sandbox, require_sandbox

FENCE = re.compile(r"^ {0,3}```[ \t]*+([^\s`]*+)[ \t\r]*+$", re.MULTILINE)
PYTHON = ("", "python", "python3", "py")
"""Languages of the fenced blocks that are taken for a program."""
STATUS: dict[End, Status] = {"failed": "wrong", "timed out": "timed out"}
"""The verdict on a run that put nothing out to compare; `crashed` where a limit, or a signal, ended it."""
FORMATS = (
    'give {"inputs": [...], "outputs": [...], "fn_name": a name where it is a function}, or a list of {"input": text, '
    '"output": text, "testtype": "stdin" or "functional"}, which {"tests": list, "func_name": name} may hold'
)


@dataclass(frozen=True)
class Case:
    """One test: stdin and its accepted stdout, or, of a function, its arguments and the accepted values."""

    given: Any
    accepted: tuple[Any, ...]
    function: str | None = None

    def run(self, sandbox: Sandbox, wall: float) -> Outcome:
        """What a program makes of it."""
        if self.function is None:
            return sandbox.run(self.given, wall)
        return sandbox.call(self.function, self.given, wall)

    def accepts(self, output: bytes) -> bool:
        """Whether this output, stdout or a result as JSON text, is right."""
        same = same_text if self.function is None else same_value
        return any(same(output, value) for value in self.accepted)


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
        program = last_block(response)
        if program is None:
            return Verdict("unanswered", detail="no fenced block of Python")
        try:
            sandbox = Sandbox(program, self.limits, self.mode, stop)
        except ValueError as error:
            return Verdict("wrong", detail=str(error)[:200])
        end = time.monotonic() + self.limits.total
        with sandbox:
            for number, case in enumerate(cases, 1):
                at, left = f"test {number} of {len(cases)}: ", end - time.monotonic()
                if left <= 0:
                    return Verdict("timed out", detail=f"{at}more than {self.limits.total:.3g} seconds in all")
                outcome = case.run(sandbox, min(left, self.limits.wall))
                if outcome.end != "done":
                    status = STATUS.get(outcome.end, "crashed")
                    return Verdict(status, detail=f"{at}{outcome.end} ({outcome.detail})")
                if not case.accepts(outcome.output):
                    return Verdict("wrong", detail=f"{at}wrong answer")
        return Verdict("right", detail=f"passed {len(cases)} test{'s' if len(cases) > 1 else ''}")


def last_block(response: str) -> str | None:
    """The last closed block of a text that is fenced as ```python or ```, or None."""
    block = opened = None
    for fence in FENCE.finditer(response):
        if opened is None or fence[1]:  # a language always opens a block: a program has no such line
            opened = fence
        else:
            if opened[1].lower() in PYTHON:
                block = opened.end() + 1, fence.start()
            opened = None
    return response[slice(*block)] if block else None


def same_text(output: bytes, expected: str) -> bool:
    """Whether a stdout is the expected one: line by line, but for space at the end, or as decimal numbers."""
    try:
        text = output.decode().rstrip()
    except UnicodeDecodeError:
        return False
    expected = expected.rstrip()
    if text.count("\n") != expected.count("\n"):
        return False
    return all(
        line == wanted or _same_numbers(line, wanted)
        for line, wanted in zip(map(str.rstrip, text.split("\n")), map(str.rstrip, expected.split("\n")), strict=True)
    )


def same_value(output: bytes, expected: Any) -> bool:
    """Whether a result, one JSON text, has the expected value; numbers of equal value are equal."""
    if len(output) > 4 * len(json.dumps(expected)) + 64:  # no way to write it is that long; a bomb is not read
        return False
    try:
        return bool(json.loads(output) == expected)
    except (ValueError, RecursionError):
        return False


def parse_tests(reference: str) -> list[Case]:
    """The tests that a JSON text holds, in APPS' or LiveCodeBench's format.

    APPS: {"inputs": [...], "outputs": [...]}, with "fn_name" where inputs are lists of arguments; a result may be
    the output or, where that is a list, its first item, as in APPS' own harness. LiveCodeBench: a list of {"input",
    "output", "testtype"}; a functional input has one JSON value a line, its function is named by "func_name" of the
    test, of its "metadata", or of the object {"tests": list, "func_name": name} around the list. Raises SteerError.
    """
    try:
        tests = json.loads(reference)
    except (ValueError, TypeError, RecursionError) as error:
        raise _malformed("tests", reference, f"no JSON ({error}); {FORMATS}") from None
    if isinstance(tests, dict) and "inputs" in tests:
        return _apps(tests)
    around = tests if isinstance(tests, dict) else {}
    items = around.get("tests") if isinstance(tests, dict) else tests
    if not isinstance(items, list) or not items:
        raise _malformed("tests", tests, f"no tests; {FORMATS}")
    return [_livecodebench(f"tests[{number}]", item, around) for number, item in enumerate(items)]


def _apps(tests: dict[str, Any]) -> list[Case]:
    inputs, outputs, function = tests["inputs"], tests.get("outputs"), tests.get("fn_name")
    for field, value in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(value, list) or not value:
            raise _malformed(field, value, "give a list with one entry a test")
    if len(inputs) != len(outputs):
        raise _malformed("outputs", outputs, f"{len(outputs)} for {len(inputs)} inputs; give one for each")
    if function is not None:
        _check_name("fn_name", function)
    cases = []
    for number, (given, output) in enumerate(zip(inputs, outputs, strict=True)):
        if function is None:
            given, output = (
                _text(f"{field}[{number}]", value) for field, value in (("inputs", given), ("outputs", output))
            )
            cases.append(Case(given, (output,)))
        else:
            if not isinstance(given, list):
                raise _malformed(f"inputs[{number}]", given, "give the list of the function's arguments")
            accepted = (output, output[0]) if isinstance(output, list) and output else (output,)
            cases.append(Case(given, accepted, function))
    return cases


def _livecodebench(field: str, item: Any, around: dict[str, Any]) -> Case:
    if not isinstance(item, dict):
        raise _malformed(field, item, FORMATS)
    given, output = (_text(f"{field}.{name}", item.get(name)) for name in ("input", "output"))
    kind = item.get("testtype")
    if kind == "stdin":
        return Case(given, (output,))
    if kind != "functional":
        raise _malformed(f"{field}.testtype", kind, "give 'stdin' or 'functional'")
    holders = (item, item.get("metadata"), around, around.get("metadata"))
    names = [holder["func_name"] for holder in holders if isinstance(holder, dict) and holder.get("func_name")]
    function = _check_name(f"{field}.func_name", names[0] if names else None)
    arguments = [_value(f"{field}.input", line) for line in given.split("\n") if line.strip()]
    return Case(arguments, (_value(f"{field}.output", output),), function)


def _text(field: str, value: Any) -> str:
    """A test's text, of which APPS writes some as lists of lines; it must be possible to put it on stdin."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise _malformed(field, value, "give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _malformed(field, value, "it has half a surrogate pair; give characters that UTF-8 has") from None
    return value


def _value(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _malformed(field, text, "give JSON: one value a line of input, one value as output") from None


def _check_name(field: str, name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise _malformed(field, name, "give the name of the function that the tests call")
    return name


def _malformed(field: str, value: Any, remedy: str) -> SteerError:
    shown = repr(value)
    return SteerError(f"{field}: {shown if len(shown) <= 80 else shown[:77] + '...'}: {remedy}")


def _same_numbers(line: str, wanted: str) -> bool:
    """Whether two lines hold the same decimal numbers, word by word."""
    words, others = line.split(), wanted.split()
    try:
        return len(words) == len(others) and all(Decimal(a) == Decimal(b) for a, b in zip(words, others, strict=True))
    except ArithmeticError:
        return False
