r"""Mathematics problems with a final answer, read from a parquet file in verl's format, judged by `rewards/maths.py`.

The `ground_truth` of a row is the right answer. Files ask for the answer in different words (`\boxed{...}`,
`Answer: ...`, or nothing at all), so the grader takes any of them.
"""

from __future__ import annotations

from functools import cached_property

from steer_core.config.tasks import MathsConfig
from steer_core.problems.files import FileTask
from steer_core.rewards.maths import MathsGrader


class Maths(FileTask[MathsConfig]):
    """The problems of one file; see `FileTask`."""

    name = "maths"

    @cached_property
    def grader(self) -> MathsGrader:
        """Whether a response ends with the right answer, by the strict grader's idea of what agrees.

        Unlike that grader it takes the last formula or number where a response marks no answer: a policy that
        begins to learn rarely does, and would get no reward to learn from. What cannot be judged in time is wrong.
        """
        return MathsGrader(anywhere=True, thinking=self.config.thinking)
