"""What the trainer and the evaluator need to know about a task: prompts, verification, splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from steer_core.rewards.base import Verdict

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Problem:
    """One problem. Two problems with the same `id` are the same problem, whatever row they came from."""

    id: str
    prompt: str
    answer: str


class Task(Protocol):
    """A verifiable task."""

    name: str

    def problems(self, split: Split, count: int) -> list[Problem]:
        """The first `count` distinct problems of a split, always the same ones in the same order."""
        ...

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the response text solves the problem; never raises on any text."""
        ...

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """The verdict on each pair, in order; a task whose verification can be slow or fail overrides it.

        Raises ValueError where the two differ in length.
        """
        pairs = zip(problems, responses, strict=True)
        return [Verdict("right" if self.verify(problem, text) else "wrong") for problem, text in pairs]

    def verify_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """Whether each response solves its problem; see `grade_all`."""
        return [verdict.correct for verdict in self.grade_all(problems, responses)]


def split_of(problem_id: str) -> Split:
    """The split a problem belongs to, by the hash of its identity: 80% train, 10% validation, 10% test.

    The split is a property of the problem alone, so no generator, seed or data order can leak a
    held-out problem into training.
    """
    bucket = int.from_bytes(hashlib.sha256(problem_id.encode()).digest()[:8], "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"
