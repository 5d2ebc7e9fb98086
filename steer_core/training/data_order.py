"""Which problems a rollout samples: a fresh shuffle each epoch, shared out among ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from steer_core.common import ranks
from steer_core.common.seeding import derive_seed
from steer_core.config.config import Config

T = TypeVar("T")


def rollout_problems(problems: Sequence[T], rollout_index: int, config: Config, attempt: int = 0) -> list[T]:
    """The `rollout.prompts` problems of a rollout (counted from 1), those of all ranks.

    Epochs follow one another without a gap; the order of each follows from `train.seed` and its number
    alone, so it is the same for every method. With `rollout.resample` a rollout has so many more lots of problems in
    that order, one for each further attempt, whether they are sampled or not: so nothing has to be remembered.
    """
    count, size = config.rollout.prompts, len(problems)
    rollout_index = (rollout_index - 1) * (config.rollout.resample + 1) + attempt + 1
    chosen: list[T] = []
    order = torch.empty(0, dtype=torch.long)
    for position in range((rollout_index - 1) * count, rollout_index * count):
        epoch, index = divmod(position, size)
        if not chosen or index == 0:
            seed = derive_seed(config.train.seed, "epoch", epoch)
            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        chosen.append(problems[int(order[index])])
    return chosen


def rollout_seed(config: Config, rollout_index: int, attempt: int = 0) -> int:
    """What a rollout's responses are drawn from, with the prompts' places; it follows from `train.seed` alone.

    attempt: which one, with `rollout.resample`, from 0.
    """
    purpose = f"rollout, attempt {attempt}" if attempt else "rollout"
    return derive_seed(config.train.seed, purpose, rollout_index)


def local_places(config: Config, rank: int | None = None) -> list[int]:
    """Which prompts of a rollout are this rank's, or another's, from 0: an equal share of every mini-batch."""
    mini = config.optimizer.mini_batch_prompts
    share = mini // ranks.world_size()
    first = (ranks.rank() if rank is None else rank) * share
    return [i for i in range(config.rollout.prompts) if first <= i % mini < first + share]


def gathered_places(config: Config) -> list[int]:
    """Which prompts of a rollout the rows are that ranks gather, rank behind rank."""
    return [place for rank in range(ranks.world_size()) for place in local_places(config, rank)]
