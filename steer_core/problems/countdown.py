"""Countdown with a written-out trace: combine every number exactly once to reach a target.

A prompt reads `3,7,8,21=24:` (the numbers, then the target) and a response is a trace of steps,
`21/7=3,3-...`, each of which takes two values that are still on the table and puts their result
back. Orders, groupings and operands can differ, so most problems have many valid traces: there is
something to explore, and a policy that collapses onto one habit loses problems it could solve.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from steer_core.common.errors import SteerError
from steer_core.config.sections import CountdownConfig
from steer_core.problems.problem import Problem
from steer_core.problems.task import Split, Task, split_of
from steer_core.rewards.base import Grader
from steer_core.rewards.coin import CoinGrader
from steer_core.rewards.countdown import CountdownGrader, apply

CHARACTERS = "0123456789+-*/=,:"
LARGEST_VALUE = 999
_DRAWS = 1000
_DRAWS_PER_PROBLEM = 100
_LONGEST_WAIT = 20_000  # draws without a new problem before there is held to be none


class Countdown(Task):
    """The Countdown task; `config` sets how many numbers there are and their ranges."""

    name = "countdown"
    grader = CountdownGrader()

    def __init__(self, config: CountdownConfig | None = None) -> None:
        self.config = config or CountdownConfig()

    def rollout_grader(self, seed: int, places: Sequence[int] | None = None) -> Grader:
        """See `Task.rollout_grader`; with `task.reward=coin` a coin, thrown once a response."""
        return CoinGrader(seed, places) if self.config.reward == "coin" else self.grader

    def solved(self, rng: random.Random) -> Iterator[tuple[Problem, str]]:
        """Endless stream of (problem, one valid trace), from random play; problems can repeat."""
        return filter(None, self._plays(rng))

    def _plays(self, rng: random.Random) -> Iterator[tuple[Problem, str] | None]:
        """Endless stream of plays, with None for each whose target is out of range."""
        config = self.config
        while True:
            numbers = sorted(rng.randint(1, config.largest_number) for _ in range(config.numbers))
            values, steps = list(numbers), []
            while len(values) > 1:
                left, right = rng.sample(range(len(values)), 2)
                operator = rng.choice("+-*/")
                result = apply(values[left], operator, values[right])
                if result is None or result > LARGEST_VALUE:
                    continue
                steps.append(f"{values[left]}{operator}{values[right]}={result}")
                values = [v for i, v in enumerate(values) if i not in (left, right)] + [result]
            target = values[0]
            if config.smallest_target <= target <= config.largest_target:
                prompt = f"{','.join(map(str, numbers))}={target}:"
                yield Problem(id=prompt, prompt=prompt, reference=prompt), ",".join(steps)
            else:
                yield None

    def problems(self, split: Split, count: int) -> list[Problem]:
        """See `Task.problems`. Raises SteerError where the ranges hold too few distinct problems."""
        found: dict[str, Problem] = {}
        stream, waited = self._plays(random.Random(f"countdown-{split}")), 0
        for _ in range(_DRAWS + _DRAWS_PER_PROBLEM * count):
            play, waited = next(stream), waited + 1
            if play is not None and split_of(play[0].id) == split and play[0].id not in found:
                found[play[0].id], waited = play[0], 0
            if len(found) == count:
                return list(found.values())
            if waited > _LONGEST_WAIT + _DRAWS_PER_PROBLEM * len(found):
                break
        raise SteerError(
            f"task: found {len(found)} distinct {split} problems where {count} are asked for; "
            f"ask for fewer, or widen task.largest_number ({self.config.largest_number}) "
            f"or task.largest_target ({self.config.largest_target})"
        )
