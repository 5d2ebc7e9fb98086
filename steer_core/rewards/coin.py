"""A grader that throws a fair coin: it teaches nothing, so whatever training does then, the reward did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer_core.common.seeding import derive_seed
from steer_core.rewards.base import Verdict


@dataclass
class CoinGrader:
    """Right or wrong with a chance of 1/2 each, whatever the response (the random reward of arXiv 2509.26114).

    A throw follows from the seed and from where the response stands in its rollout, so that a run which goes on from
    a checkpoint gets the verdicts it would have got, and two equal responses to one prompt get throws of their own.

    seed: a rollout's own (`rollout_seed`). places: where each prompt stands among those of all ranks, as in
    `Sampler.generate` (default: from 0 on); every prompt has equally many responses, one after another.
    """

    seed: int
    places: Sequence[int] | None = None
    name: str = "coin"

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Grader.grade`; neither is read. Raises ValueError where the places do not share out the responses."""
        if len(references) != len(responses):
            raise ValueError(f"responses: {len(responses)} of them for {len(references)} references")
        return [Verdict("right" if self._heads(row) else "wrong") for row in self._rows(len(responses))]

    def _rows(self, count: int) -> list[int]:
        """Where each response stands among those of all ranks."""
        if self.places is None:
            return list(range(count))
        group, left = divmod(count, max(1, len(self.places)))
        if left:
            raise ValueError(f"responses: {count} of them are not equally many for each of {len(self.places)} prompts")
        return [place * group + i for place in self.places for i in range(group)]

    def _heads(self, row: int) -> bool:
        return derive_seed(self.seed, "coin", row) % 2 == 1
