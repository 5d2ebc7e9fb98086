"""The micro-batches of an optimiser step: sequences with what the loss needs, and flat views of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer_core.common import ranks
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.policy.score import Sequences


@dataclass(frozen=True)
class Batch:
    """Some sequences of a rollout, ready for the loss, with the statistics of the policy that sampled.

    advantages_BT: of each token, times its truncated importance ratio where that is asked for. draws_BT: uniform
    within [0, 1), for interventions that choose tokens at random. rows: which responses of the rollout.
    """

    sequences: Sequences
    old: TokenStats
    advantages_BT: Tensor
    draws_BT: Tensor
    rows: list[int] = field(default_factory=list)

    @property
    def mask_BT(self) -> Tensor:
        """True at response tokens."""
        return self.sequences.response_mask_BT.bool()

    def lengths(self) -> dict[int, int]:
        """Response tokens of each of its rows, in their order."""
        return dict(zip(self.rows, self.mask_BT.sum(-1).tolist(), strict=True))


def padding(batches: list[list[Batch]], packed: bool) -> float:
    """Share of padding among the tokens that the micro-batches' forward passes read."""
    masks = [
        torch.cat([part.sequences.prompt_mask_BP.bool(), part.mask_BT], dim=1) for parts in batches for part in parts
    ]
    read, held = (
        ranks.all_reduce_sum(sum(map(count, masks))) for count in (torch.Tensor.numel, lambda mask: int(mask.sum()))
    )
    return 0.0 if packed else 1 - held / read


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
    ranks.all_reduce_sum_(sums)
    return float(sums[0] / sums[1])
