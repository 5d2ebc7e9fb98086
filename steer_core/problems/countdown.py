"""Countdown with a written-out trace: combine every number exactly once to reach a target.

A prompt reads `3,7,8,21=24:` (the numbers, then the target) and a response is a trace of steps,
`21/7=3,3-...`, each of which takes two values that are still on the table and puts their result
back. Orders, groupings and operands can differ, so most problems have many valid traces: there is
something to explore, and a policy that collapses onto one habit loses problems it could solve.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product

from steer_core.common.errors import SteerError
from steer_core.config.tasks import CountdownConfig
from steer_core.problems.problem import Problem
from steer_core.problems.task import Split, Task, own_reward, split_of
from steer_core.rewards.base import Grader
from steer_core.rewards.coin import CoinGrader
from steer_core.rewards.countdown import LARGEST_WRITTEN, CountdownGrader, apply
from steer_core.rewards.own import OwnReward

OPERATIONS = "+-*/"
CHARACTERS = f"0123456789{OPERATIONS}=,:"
LARGEST_VALUE = 999
_DRAWS = 1000
_DRAWS_PER_PROBLEM = 100
_DRAWS_FOR_ONE_THAT_NEEDS = 10  # about so many times as rare
_TRIES = 10_000  # operations tried in a play; where few are played at all, some plays are stuck
_LONGEST_WAIT = 20_000  # draws without a new problem before there is held to be none


class Countdown(Task):
    """The Countdown task; `config` sets how many numbers there are, their ranges, and what problems need."""

    name = "countdown"
    grader = CountdownGrader()

    def __init__(self, config: CountdownConfig | None = None) -> None:
        self.config = config or CountdownConfig()

    def rollout_grader(self, seed: int, places: Sequence[int] | None = None) -> Grader:
        """See `Task.rollout_grader`; with `task.reward=coin` a coin, thrown once a response."""
        return CoinGrader(seed, places) if self.config.reward == "coin" else self.own_reward or self.grader

    def make_own_reward(self) -> OwnReward | None:
        """See `Task.make_own_reward`; a row is empty, for the prompt says all of a problem."""
        return own_reward(self.config, self.config.reward if ":" in self.config.reward else None)

    def solved(self, rng: random.Random, weights: Sequence[float] | None = None) -> Iterator[tuple[Problem, str]]:
        """Endless stream of (problem, one valid trace), from random play; problems can repeat.

        weights: how often each of + - * / is played, by default alike.
        """
        return filter(None, self._plays(rng, weights))

    def _plays(
        self, rng: random.Random, weights: Sequence[float] | None = None
    ) -> Iterator[tuple[Problem, str] | None]:
        """Endless stream of plays, with None for each whose target is out of range, or that came to no end."""
        config = self.config
        while True:
            numbers = sorted(rng.randint(1, config.largest_number) for _ in range(config.numbers))
            values, steps, tries = list(numbers), [], 0
            while len(values) > 1 and tries < _TRIES:
                tries += 1
                left, right = rng.sample(range(len(values)), 2)
                operator = rng.choice(OPERATIONS) if weights is None else rng.choices(OPERATIONS, weights)[0]
                result = apply(values[left], operator, values[right])
                if result is None or result > LARGEST_VALUE:
                    continue
                steps.append(f"{values[left]}{operator}{values[right]}={result}")
                values = [v for i, v in enumerate(values) if i not in (left, right)] + [result]
            target = values[0]
            if len(values) == 1 and config.smallest_target <= target <= config.largest_target:
                prompt = f"{','.join(map(str, numbers))}={target}:"
                yield Problem(id=prompt, prompt=prompt, reference=prompt), ",".join(steps)
            else:
                yield None

    def needs(self, problem: Problem) -> bool:
        """Whether no valid trace of a problem does without the operation `task.needed`; True where none is named."""
        if self.config.needed is None:
            return True
        numbers, _, target = problem.prompt.removesuffix(":").partition("=")
        others = OPERATIONS.replace(self.config.needed, "")
        return int(target) not in reachable(tuple(map(int, numbers.split(","))), others)

    def problems(self, split: Split, count: int) -> list[Problem]:
        """See `Task.problems`. Raises SteerError where the settings hold too few distinct problems.

        With `task.needed`, every held-out problem needs the operation, and so does, of the first n training problems,
        the share `task.needed_share`, rounded down.
        """
        share = self.config.needed_share if split == "train" else 1.0
        draws = _DRAWS_PER_PROBLEM * (1 if self.config.needed is None else _DRAWS_FOR_ONE_THAT_NEEDS)
        stream, waited = self._plays(random.Random(f"countdown-{split}")), 0
        found: list[Problem] = []
        seen: set[str] = set()
        kept: dict[bool, deque[Problem]] = {True: deque(), False: deque()}
        for _ in range(_DRAWS + draws * count):
            play, waited = next(stream), waited + 1
            if play is not None and split_of(play[0].id) == split and play[0].id not in seen:
                seen.add(play[0].id)
                kept[self.needs(play[0])].append(play[0])
                while len(found) < count and (queue := kept[_is_needing(len(found), share)]):
                    found.append(queue.popleft())
                    waited = 0
            if len(found) == count:
                return found
            if waited > _LONGEST_WAIT + draws * len(found):
                break
        needing = "" if self.config.needed is None else f" (task.needed {self.config.needed}, needed_share {share:g})"
        raise SteerError(
            f"task: found {len(found)} distinct {split} problems{needing} where {count} are asked for; "
            f"ask for fewer, or widen task.largest_number ({self.config.largest_number}) "
            f"or task.largest_target ({self.config.largest_target})"
        )


def _is_needing(place: int, share: float) -> bool:
    """Whether the problem at a place, from 0, is one of the share that needs an operation: they are spread evenly."""
    return math.floor((place + 1) * share) > math.floor(place * share)


@cache
def reachable(numbers: tuple[int, ...], operations: str = OPERATIONS) -> frozenset[int]:
    """Every value that sorted numbers give by some operations, each number used exactly once, by the grader's rules."""
    if len(numbers) == 1:
        return frozenset(numbers)
    found, places = set(), range(len(numbers))
    for size in range(1, len(numbers)):
        for chosen in combinations(places, size):
            left, right = (tuple(numbers[i] for i in places if (i in chosen) == side) for side in (True, False))
            pairs = product(reachable(left, operations), operations, reachable(right, operations))
            found |= {apply(*pair) for pair in pairs}
    return frozenset(value for value in found if value is not None and value <= LARGEST_WRITTEN)
