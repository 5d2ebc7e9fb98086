"""A rollout with its rewards: this rank's responses, and what the groups of all ranks are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer_core.common import ranks
from steer_core.common.errors import NotFiniteError, SteerError
from steer_core.config.config import Config
from steer_core.evaluation.sample_and_grade import GradedRollout, sample_and_grade
from steer_core.problems.problem import Problem
from steer_core.problems.task import Task
from steer_core.rewards.base import UNJUDGED
from steer_core.rollout.rollout import Rollout, Sampler
from steer_core.training.data_order import gathered_places, local_places, rollout_seed
from steer_core.training.resampling import with_signal


@dataclass(frozen=True)
class SampledRollout:
    """A rollout as the updates and the log take it.

    graded, problems, places, rewards_B: of this rank; places are those of its prompts among all ranks'.
    ids_P: of all ranks, the id of each prompt's problem. rewards_PG, lengths_PG, truncated_PG, unjudged_PG: of all
    ranks, (prompts, group), in the same order: the reward of each response, its tokens, whether it was cut off, whether
    the grader came to no verdict. resampled: what dynamic sampling cost, as metrics; nothing without it.
    """

    graded: GradedRollout
    problems: list[Problem]
    places: list[int]
    rewards_B: Tensor
    ids_P: list[str]
    rewards_PG: Tensor
    lengths_PG: Tensor
    truncated_PG: Tensor
    unjudged_PG: Tensor
    resampled: dict[str, float] = field(default_factory=dict)

    @property
    def rollout(self) -> Rollout:
        """The responses of this rank."""
        return self.graded.rollout


def sample_rollout(
    sampler: Sampler,
    task: Task,
    attempts: Sequence[Sequence[Problem]],
    config: Config,
    rollout_index: int,
    how_to_go_on: str,
) -> SampledRollout:
    """Sample and grade this rank's share of a rollout's problems.

    attempts: the problems of all ranks, and those that take the place of groups without signal, attempt by attempt
    (`rollout.resample`). how_to_go_on: for the remedies. Raises SteerError for a response without a token.
    """
    group, places = config.rollout.responses, local_places(config)

    def sample(attempt: int, places: list[int]) -> GradedRollout:
        seed, chosen = rollout_seed(config, rollout_index, attempt), [attempts[attempt][place] for place in places]
        grader = task.rollout_grader(seed, places)
        return sample_and_grade(sampler, chosen, group, config.rollout, seed, [grader], places)

    graded, resampled = with_signal(sample, places, len(attempts) - 1)
    own = graded.problems[::group]
    mask_BT = graded.rollout.response_mask_BT.bool()
    if not mask_BT.any(-1).all():
        raise SteerError(
            f"rollout {rollout_index}: the sampler returned a response without a token; check the model's end token "
            f"and rollout.max_new_tokens ({config.rollout.max_new_tokens}), then {how_to_go_on}"
        )
    device, dtype = mask_BT.device, torch.float64 if config.model.dtype == "float64" else torch.float32
    columns = (
        graded.rewards,
        mask_BT.sum(-1).tolist(),
        [reason == "length" for reason in graded.rollout.finish_reasons],
        [verdict.status in UNJUDGED for verdict in graded.verdicts],
    )
    own_BK = torch.stack([torch.tensor(column, device=device, dtype=dtype) for column in columns], -1)
    rewards, lengths, truncated, unjudged = (c.view(-1, group) for c in ranks.all_gather_rows(own_BK).unbind(-1))
    ids_P = [attempts[0][place].id for place in gathered_places(config)]
    if resampled:
        ids_P = [name for names in ranks.all_gather_objects([problem.id for problem in own]) for name in names]
    of_all = (rewards, lengths, truncated, unjudged)
    return SampledRollout(graded, own, places, own_BK[:, 0], ids_P, *of_all, resampled=resampled)


@contextmanager
def divergence_told(config: Config, rollouts: int) -> Iterator[None]:
    """Say of logits that are not finite that training made them so, where the policy has learnt from some rollouts."""
    try:
        yield
    except NotFiniteError as error:
        if rollouts == 0:
            raise
        raise SteerError(
            f"rollout {rollouts}: training has made the policy's logits NaN or infinite (optimizer.learning_rate "
            f"{config.optimizer.learning_rate:g}); lower the rate and start again in another folder"
        ) from error


def note_of_unjudged(sampled: SampledRollout, rollout_index: int, how_to_go_on: str) -> str | None:
    """How many responses were not judged, in words, for a reward that means nothing; None where all were.

    All ranks make this call. Raises SteerError where the grader crashed on every response, or an own reward came to no
    end on every one: there is no reward to learn from.
    """
    verdicts, unjudged_PG = sampled.graded.verdicts, sampled.unjudged_PG
    told = [verdict for verdict in verdicts if verdict.status in UNJUDGED]
    why = f"{told[0].status}: {told[0].detail}" if told else "other ranks know why"
    own = "own" in sampled.graded.graded
    hopeless, who = (UNJUDGED, "the own reward failed") if own else (("crashed",), "the grader crashed")
    lost_here = sum(verdict.status in hopeless for verdict in verdicts)
    if ranks.all_reduce_sum(lost_here, unjudged_PG.device) == unjudged_PG.numel():
        raise SteerError(
            f"rollout {rollout_index}: {who} on every response ({why}); mend what it says, then {how_to_go_on}"
        )
    lost = int(unjudged_PG.sum())
    reward = "the lowest of their problem, and at most 0" if own else "0"
    return (
        f"{lost} of {unjudged_PG.numel()} responses were not judged, their reward is {reward} ({why})" if lost else None
    )
