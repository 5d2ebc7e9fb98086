"""Mini-batches and micro-batches of a rollout, and flat views of their response tokens.

A mini-batch is what one optimiser step sees: a list of micro-batches, each one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steer_core.common import ranks
from steer_core.common.seeding import derive_seed
from steer_core.config.config import Config
from steer_core.formulas.loss import importance_ratio
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.policy.micro_batches import forward_passes
from steer_core.policy.score import PLAIN, Scoring, score, tokens_read
from steer_core.policy.sequences import Sequences
from steer_core.rollout.rollout import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """Some sequences of a rollout, ready for the loss, with the statistics of the policy that sampled.

    advantages_BT: of each token, times its truncated importance ratio where that is asked for. draws_BT: uniform
    within [0, 1), for interventions that choose tokens at random. rows: which responses of the rollout. reference_BT:
    ln p under the reference of a KL term in the loss, None without one.
    """

    sequences: Sequences
    old: TokenStats
    advantages_BT: Tensor
    draws_BT: Tensor
    rows: list[int] = field(default_factory=list)
    reference_BT: Tensor | None = None

    @property
    def mask_BT(self) -> Tensor:
        """True at response tokens."""
        return self.sequences.response_mask_BT.bool()

    def lengths(self) -> dict[int, int]:
        """Response tokens of each of its rows, in their order."""
        return dict(zip(self.rows, self.mask_BT.sum(-1).tolist(), strict=True))


def micro_batch_rows(
    rows: Sequence[int], rollout: Sequences, config: Config, scoring: Scoring = PLAIN
) -> list[list[int]]:
    """Rows of a rollout in micro-batches, by number of sequences or by number of tokens as configured."""
    settings = config.optimizer
    return forward_passes(rows, rollout, settings.micro_batch_sequences, settings.micro_batch_tokens, scoring.layout)


@torch.no_grad()
def score_rollout(model: PreTrainedModel, rollout: Rollout, config: Config, scoring: Scoring = PLAIN) -> TokenStats:
    """Statistics of the policy that sampled, at every response token; (B, T), without meaning at padding.

    Those that the sampler kept (`rollout.old=sampler`), or from scoring passes.
    """
    if rollout.stats is not None:
        return rollout.stats
    width = rollout.response_ids_BT.shape[1]
    parts, order = [], []
    for rows in micro_batch_rows(range(len(rollout.texts)), rollout, config, scoring):
        stats = score(model, rollout.rows(rows), config.rollout.temperature, scoring)
        parts.append(stats.map(lambda x: torch.nn.functional.pad(x, (0, width - x.shape[1]))))
        order += rows
    places = torch.tensor(order).argsort()
    return concatenate(parts)[places]


def mini_batches(
    rollout: Rollout,
    old: TokenStats,
    advantages_B: Tensor,
    config: Config,
    rollout_index: int = 1,
    places: Sequence[int] | None = None,
    scoring: Scoring = PLAIN,
    reference_BT: Tensor | None = None,
    epoch: int = 0,
) -> Iterator[list[MicroBatch]]:
    """The mini-batches of a rollout, one an optimiser step, each as a list of micro-batches.

    old: statistics (B, T) of the policy that sampled. places: where this rank's prompts stand among those of
    all ranks; without it they are all there are. reference_BT: see `MicroBatch`. epoch: how often the rollout has been
    learnt from, which gives rules that choose at random other draws.
    """
    group, longest = config.rollout.responses, max(config.rollout.max_new_tokens, rollout.response_ids_BT.shape[1])
    count, rows = 1, list(range(len(advantages_B)))
    if places is not None:
        count, rows = ranks.world_size(), [place * group + i for place in places for i in range(group)]
    purpose = f"intervention, epoch {epoch}" if epoch else "intervention"
    source = torch.Generator().manual_seed(derive_seed(config.train.seed, purpose, rollout_index))
    draws_BT = torch.rand((len(advantages_B) * count, longest), generator=source).to(advantages_B)[rows]
    advantages_BT = importance_corrected(advantages_B, rollout, old, config.algorithm.importance_cap)
    size = config.optimizer.mini_batch_prompts * group // count
    for first in range(0, len(advantages_B), size):
        inside = range(first, min(first + size, len(advantages_B)))
        batch = []
        for own in micro_batch_rows(inside, rollout, config, scoring):
            sequences = rollout.rows(own)
            width = sequences.response_ids_BT.shape[1]
            of_part = (old[own, :width], advantages_BT[own, :width], draws_BT[own, :width], own)
            batch.append(MicroBatch(sequences, *of_part, None if reference_BT is None else reference_BT[own, :width]))
        yield batch


def importance_corrected(advantages_B: Tensor, rollout: Rollout, old: TokenStats, cap: float | None) -> Tensor:
    """The advantage of every token (B, T): its response's, times its truncated importance ratio if asked for.

    min(p_policy / p_sampler, cap) weighs the gap between sampler and policy (Ionides 2008). It is above 0 and
    takes A's place in every rule: loss, clip, estimated entropy change, interventions. cap: None without it.
    """
    advantages_BT = advantages_B[:, None].expand_as(old.logprob)
    if cap is None:
        return advantages_BT
    return advantages_BT * importance_ratio(old.logprob, rollout.sampler_logprobs()).clamp_max(cap)


def padding(batches: list[list[MicroBatch]], scoring: Scoring = PLAIN) -> float:
    """Share of padding among the tokens that the micro-batches' forward passes read, over all ranks."""
    counts = [tokens_read(part.sequences, scoring.layout) for batch in batches for part in batch]
    read, held = (ranks.all_reduce_sum(sum(column)) for column in zip(*counts, strict=True))
    return 1 - held / read


def flatten(stats: list[TokenStats], parts: list[MicroBatch]) -> tuple[TokenStats, TokenStats, Tensor]:
    """(new, old, advantages) of the response tokens of some micro-batches, flat: what a form takes."""
    new = [values[part.mask_BT] for values, part in zip(stats, parts, strict=True)]
    old = [part.old[part.mask_BT] for part in parts]
    advantages = torch.cat([part.advantages_BT[part.mask_BT] for part in parts])
    return concatenate(new), concatenate(old), advantages


def spread(values: Tensor, part: MicroBatch, fill: float) -> Tensor:
    """Values of a micro-batch's response tokens, flat, at their places in (B, T); `fill` at padding."""
    return torch.full_like(part.old.entropy, fill).masked_scatter_(part.mask_BT, values)


def mean_entropy(stats: list[TokenStats], parts: list[MicroBatch]) -> float:
    """Mean entropy over the response tokens of some micro-batches, of all ranks, in nats."""
    flat = torch.cat([values.entropy[part.mask_BT] for values, part in zip(stats, parts, strict=True)])
    sums = torch.stack([flat.sum(dtype=torch.float64), flat.new_tensor(len(flat), dtype=torch.float64)])
    ranks.all_reduce_sum_(sums)
    return float(sums[0] / sums[1])
