"""Sample and grade: the one way that training, held-out evaluation and estimates come to graded responses.

On problem sets the responses are kept before they are graded: `problem_sets.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from steer_core.config.sections import SamplingConfig
from steer_core.problems import Problem
from steer_core.rewards.base import Grader, Verdict
from steer_core.rollout.rollout import Rollout, Sampler


@dataclass(frozen=True)
class GradedRollout:
    """Sampled responses with their verdicts; row b belongs to problem b // group.

    problems: one a row. graded: the verdict on each row, by grader; the first is the one to go by.
    """

    problems: list[Problem]
    rollout: Rollout
    graded: dict[str, list[Verdict]]
    sampling_seconds: float
    grading_seconds: float

    @property
    def verdicts(self) -> list[Verdict]:
        """The first grader's verdict on each row."""
        return next(iter(self.graded.values()))

    @property
    def correct(self) -> list[bool]:
        """Whether each row solves its problem, by the first grader."""
        return [verdict.correct for verdict in self.verdicts]

    @property
    def rewards(self) -> list[float]:
        """What the first grader rewards each row with; see `Verdict.score`."""
        return [verdict.score for verdict in self.verdicts]


def sample_and_grade(
    sampler: Sampler,
    problems: Sequence[Problem],
    group: int,
    sampling: SamplingConfig,
    seed: int,
    graders: Sequence[Grader],
    places: list[int] | None = None,
) -> GradedRollout:
    """Sample `group` responses to each problem and grade every one by every grader.

    seed, places: see `Sampler.generate`. graders: one or more, each with a name of its own; `[task.grader]` for
    a task's problems. Raises what the sampler and the graders raise.
    """
    began = time.perf_counter()
    rollout = sampler.generate([problem.prompt for problem in problems], group, sampling, seed, places)
    sampled = time.perf_counter()
    rows = [problem for problem in problems for _ in range(group)]
    graded = {grader.name: grader.grade(references(grader, rows), rollout.texts) for grader in graders}
    return GradedRollout(rows, rollout, graded, sampled - began, time.perf_counter() - sampled)


def references(grader: Grader, rows: Sequence[Problem]) -> list[str]:
    """What a grader compares each response with: its problem's reference, or for an own reward all of the problem."""
    whole = getattr(grader, "reads_whole_problems", False)
    return [problem.whole() if whole else problem.reference for problem in rows]
