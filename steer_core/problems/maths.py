r"""Mathematics problems with a final answer, read from a parquet file in verl's format, judged by `rewards/maths.py`.

The `ground_truth` of a row is the right answer. Files ask for the answer in different words (`\boxed{...}`,
`Answer: ...`, or nothing at all), so the verifier takes any of them; see `Maths.grade_all`.
"""

from __future__ import annotations

from collections.abc import Sequence

from steer_core.problems.files import FileTask
from steer_core.problems.task import Problem
from steer_core.rewards.base import Verdict
from steer_core.rewards.maths import MathsGrader


class Maths(FileTask):
    """The problems of one file; see `FileTask`."""

    name = "maths"

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the response ends with the right answer; see `grade_all`."""
        return self.verify_all([problem], [response])[0]

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """Whether each response ends with the right answer, by the strict grader's idea of what agrees.

        Unlike that grader it takes the last formula or number where a response marks no answer: a policy that
        begins to learn rarely does, and would get no reward to learn from. What cannot be judged in time is wrong.
        """
        references = [problem.answer for problem in problems]
        return MathsGrader(anywhere=True).grade(references, responses)
