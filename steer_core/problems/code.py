"""Programming problems with tests, read from a parquet file in verl's format, judged by `rewards/code.py`.

The `ground_truth` of a row holds the problem's tests as JSON, in APPS' or LiveCodeBench's form. A response solves the
problem where its last fenced block of Python passes every test in a sandbox.
"""

from __future__ import annotations

import json
import warnings
from functools import cached_property

from steer_core.common.errors import SteerError
from steer_core.config.sections import CodeConfig
from steer_core.problems.files import FileTask
from steer_core.problems.problem import Row
from steer_core.problems.rows import code_tests
from steer_core.rewards.code import CodeGrader, parse_tests


class Code(FileTask[CodeConfig]):
    """The problems of one file; see `FileTask`. Programs run in `task.sandbox`, several at a time."""

    name = "code"

    def usable(self, rows: dict[str, Row]) -> dict[str, Row]:
        """The rows whose tests can be run, cut to `task.tests` each; a warning tells how many are left out.

        Raises SteerError where none is left.
        """
        found, reason = {}, ""
        for text, (messages, truth) in rows.items():
            try:
                tests = first_tests(code_tests(truth, f"task.file: {self.config.file}"), self.config.tests)
                parse_tests(tests)
            except SteerError as error:
                reason = reason or str(error)
                continue
            found[text] = messages, tests
        if not found:
            raise SteerError(f"task.file: {self.config.file} holds no problem with tests that can be run ({reason})")
        if len(found) < len(rows):
            warnings.warn(
                f"task.file: {self.config.file}: left out {len(rows) - len(found)} of {len(rows)} problems, whose "
                f"tests cannot be run (the first: {reason})",
                stacklevel=2,
            )
        return found

    @cached_property
    def grader(self) -> CodeGrader:
        """The grader, with its workers. Raises SteerError where this machine has no such sandbox.

        A program that a limit of time, memory or output ended was judged as any other: it is wrong.
        """
        return CodeGrader(mode=self.config.sandbox, ended_is_wrong=True)


def first_tests(reference: str, count: int | None) -> str:
    """The tests of `code_tests` cut to the first `count`; None leaves them whole."""
    tests = json.loads(reference)
    if count is None or "inputs" not in tests:
        return reference
    return json.dumps({**tests, "inputs": tests["inputs"][:count], "outputs": tests["outputs"][:count]})
