"""The micro-batches of an optimiser step: sequences with what the loss needs, and flat views of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steer_core import ranks
from steer_core.policy import Sequences
from steer_core.token_stats import TokenStats, concatenate


@dataclass(frozen=True)
class Batch:
    """Some sequences of a rollout, ready for the loss, with the statistics of the policy that sampled.

    draws_BT: uniform within [0, 1), for interventions that choose tokens at random.
    """

    sequences: Sequences
    old: TokenStats
    advantages_BT: Tensor
    draws_BT: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """True at response tokens."""
        return self.sequences.response_mask_BT.bool()


def flatten(stats: list[TokenStats], parts: list[Batch]) -> tuple[TokenStats, TokenStats, Tensor]:
    """(new, old, advantages) of the response tokens of some micro-batches, flat: what a form takes."""
    new = [values.map(lambda x, part=part: x[part.mask_BT]) for values, part in zip(stats, parts, strict=True)]
    old = [part.old.map(lambda x, part=part: x[part.mask_BT]) for part in parts]
    advantages = torch.cat([part.advantages_BT[part.mask_BT] for part in parts])
    return concatenate(new), concatenate(old), advantages


def spread(values: Tensor, part: Batch, fill: float) -> Tensor:
    """Values of a micro-batch's response tokens, flat, at their places in (B, T); `fill` at padding."""
    return torch.full_like(part.old.entropy, fill).masked_scatter_(part.mask_BT, values)


def mean_entropy(stats: list[TokenStats], parts: list[Batch]) -> float:
    """Mean entropy over the response tokens of some micro-batches, of all ranks, in nats."""
    flat = torch.cat([values.entropy[part.mask_BT] for values, part in zip(stats, parts, strict=True)])
    sums = torch.stack([flat.sum(dtype=torch.float64), flat.new_tensor(len(flat), dtype=torch.float64)])
    ranks.add(sums)
    return float(sums[0] / sums[1])
