"""Programming problems with tests, read from a parquet file in verl's format, judged by `rewards/code.py`.

The `ground_truth` of a row holds the problem's tests as JSON, in APPS' or LiveCodeBench's form. A response solves the
problem where its fenced block of Python passes every test in a sandbox.
"""

from __future__ import annotations

from functools import cached_property

from steer_core.config.tasks import CodeConfig
from steer_core.problems.files import FileTask
from steer_core.problems.problem import Row
from steer_core.problems.sets import runnable
from steer_core.rewards.code import CodeGrader


class Code(FileTask[CodeConfig]):
    """The problems of one file; see `FileTask`. Programs run in `task.sandbox`, several at a time."""

    name = "code"

    def usable(self, rows: dict[str, Row], file: str, field: str) -> dict[str, Row]:
        """The rows whose tests can be run, cut to `task.tests` each; a warning tells how many are left out.

        Raises SteerError where none is left.
        """
        return runnable(rows, file, self.config.tests, field)

    @cached_property
    def grader(self) -> CodeGrader:
        """The grader, with its workers. Raises SteerError where this machine has no such sandbox.

        A program that a limit of time, memory or output ended was judged as any other: it is wrong.
        """
        return CodeGrader(mode=self.config.sandbox, ended_is_wrong=True)
