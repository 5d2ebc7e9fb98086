"""What the trainer and the evaluator need to know about a task: its problems, its grader, its splits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from steer_core.config.tasks import RewardedConfig
from steer_core.problems.problem import Problem
from steer_core.rewards.base import Grader, Verdict
from steer_core.rewards.own import OwnReward

Split = Literal["train", "validation", "test"]


class Task(ABC):
    """A verifiable task: where its problems come from, and who grades responses to them."""

    name: str

    @property
    @abstractmethod
    def grader(self) -> Grader:
        """Who grades responses."""

    @abstractmethod
    def problems(self, split: Split, count: int) -> list[Problem]:
        """The first `count` distinct problems of a split, always the same ones in the same order."""

    def rollout_grader(self, seed: int, places: Sequence[int] | None = None) -> Grader:
        """Who grades a rollout that is trained on: an own reward, or else the task's grader.

        seed: the rollout's (`rollout_seed`). places: of its prompts among those of all ranks, as in `Sampler.generate`.
        """
        return self.own_reward or self.grader

    @cached_property
    def own_reward(self) -> OwnReward | None:
        """The function that rewards training, where the settings name one; Python looks for it at the first call.

        Raises SteerError where it is not found.
        """
        return self.make_own_reward()

    def make_own_reward(self) -> OwnReward | None:
        """The function with workers of its own, None where the settings name none. Raises as `own_reward` does."""
        return None

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """The verdict on each pair of problem and response, in order; never raises on any text.

        Raises ValueError where the two differ in length.
        """
        return self.grader.grade([problem.reference for problem in problems], responses)


def own_reward(config: RewardedConfig, function: str | None, right_from: float = 1.0) -> OwnReward | None:
    """An own reward as a task's settings describe it; None where no function is named."""
    if function is None:
        return None
    return OwnReward(function, config.reward_weights, config.reward_seconds, config.reward_gib, right_from)


def split_of(problem_id: str) -> Split:
    """The split a problem belongs to, by the hash of its identity: 80% train, 10% validation, 10% test.

    The split is a property of the problem alone, so no generator, seed or data order can leak a
    held-out problem into training.
    """
    bucket = int.from_bytes(hashlib.sha256(problem_id.encode()).digest()[:8], "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"
