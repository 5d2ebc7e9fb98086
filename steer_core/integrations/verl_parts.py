"""A method in force in verl's actor: tokens of its data-parallel ranks, and the micro-batch as this package has it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from steer_core.common.seeding import derive_seed
from steer_core.formulas.loss import LOG_RATIO_BOUND, ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.integrations.support import Missing, as_verl_tells
from steer_core.interventions.base import UNLOGGED, Intervention, PlannedStep, Tokens
from steer_core.interventions.steer import Steer
from steer_core.policy.sequences import Sequences
from steer_core.training.batch import MicroBatch, flatten
from steer_core.training.in_force import MethodInForce

if TYPE_CHECKING:
    from verl.workers.config import ActorConfig
    from verl.workers.engine.base import BaseEngine

_NO_DUAL = 2 * torch.tensor(LOG_RATIO_BOUND, dtype=torch.float64).exp().item()
"""Beyond any ratio that verl's vanilla loss lets through, which cannot go without a dual clip."""


class InVerl(MethodInForce):
    """A method in the actor of an engine. seed: of the draws for methods that choose at random."""

    def __init__(self, method: Intervention, clip: ClipRange, engine: BaseEngine, seed: int) -> None:
        super().__init__(method, clip)
        self.engine, self.seed, self.drawn = engine, seed, 0
        self.normaliser: float | None = None
        self.in_force = method.settings_at(1)
        self.memory = dict(self.in_force)

    @property
    def remembers(self) -> bool:
        """Whether the method is a closed loop over optimiser steps."""
        return type(self.method).next_memory is not Intervention.next_memory

    @property
    def _group(self) -> Any:
        return self.engine.get_data_parallel_group() if dist.is_initialized() else None

    @property
    def several_ranks(self) -> bool:
        """Whether other data-parallel ranks hold tokens of the same steps."""
        return self._group is not None and dist.get_world_size(self._group) > 1

    def gathered(self, values: Tensor) -> Tensor:
        """The rows of every data-parallel rank behind one another."""
        parts: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(parts, values.cpu(), self._group)
        self._sizes = [len(part) for part in parts]
        return torch.cat(parts).to(values.device)

    def own_rows(self, gathered: Tensor, values: Tensor) -> Tensor:
        """This rank's rows of what was gathered last."""
        if not self.several_ranks:
            return gathered
        start = sum(self._sizes[: dist.get_rank(self._group)])
        return gathered[start : start + len(values)]

    def told(self, old: TokenStats) -> Missing:
        """Statistics of the policy that sampled, as far as verl tells them."""
        return as_verl_tells(old, self.method.name)

    def tokens(
        self,
        stats: list[TokenStats],
        parts: list[MicroBatch],
        step: PlannedStep | None = None,
        of_all_ranks: bool = True,
    ) -> Tokens:
        """The response tokens of some micro-batches as a rule sees them; STEER's normaliser over them is kept."""
        seen = super().tokens(stats, parts, step, of_all_ranks)
        seen = Tokens(seen.new, self.told(seen.old), seen.advantages, seen.clip, seen.draws, seen.memory)
        if isinstance(self.method, Steer):
            change = self.method.change(seen.new, seen.old, seen.advantages, seen.clip)
            self.normaliser = float(self.method.scale(change))
        return seen

    def end_step(self, stats: list[TokenStats], batch: list[MicroBatch]) -> None:
        """Let a closed loop see the mean entropy that the policy had in an optimiser step, before it."""
        entropy = flatten(stats, batch)[0].entropy
        sums = torch.stack([entropy.sum(dtype=torch.float64), entropy.new_tensor(len(entropy), dtype=torch.float64)])
        total, count = (self.gathered(sums[None]) if self.several_ranks else sums[None]).sum(0).tolist()
        if count:
            self.memory = self.method.next_memory(self.memory, total / count) | self.in_force

    def draws(self, like_BT: Tensor) -> Tensor:
        """Uniform draws (B, T) of this data-parallel rank's own, others at every call."""
        self.drawn += 1
        rank = 0 if self._group is None else dist.get_rank(self._group)  # those that share its tokens draw alike
        source = torch.Generator().manual_seed(derive_seed(self.seed, f"intervention/{rank}", self.drawn))
        return torch.rand(like_BT.shape, generator=source).to(like_BT.device)

    def metrics(self) -> dict[str, float]:
        """STEER's normaliser, and what the method remembers."""
        known = {name: value for name, value in self.memory.items() if not name.startswith(UNLOGGED)}
        told = {f"actor/intervention/{name}": value for name, value in known.items()}
        return told if self.normaliser is None else {**told, "actor/entropy_change/normaliser": self.normaliser}


def part_of(
    log_prob: Tensor, entropy: Tensor, old_log_prob: Tensor, advantages: Tensor, mask: Tensor, draws: Tensor
) -> tuple[TokenStats, MicroBatch]:
    """A micro-batch of verl as this package has it, in float32 or more: (statistics with gradient, the rest)."""
    logprob, old = real(log_prob), real(old_log_prob)
    unknown = torch.full_like(old, torch.nan)
    ids = mask.long()  # the rules see no ids
    sequences = Sequences(ids[:, :0], ids[:, :0], ids, mask)
    stats = TokenStats(logprob, real(entropy), unknown, unknown)
    return stats, MicroBatch(sequences, TokenStats(old, *[unknown] * 3), real(advantages), draws.to(old))


def real(values: Tensor) -> Tensor:
    """Values in float32 or more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def clip_range_of(config: ActorConfig) -> ClipRange:
    """verl's three bounds; clip_ratio where one side is null, as in verl."""
    low, high = (config.clip_ratio if x is None else x for x in (config.clip_ratio_low, config.clip_ratio_high))
    return ClipRange(low, high, config.clip_ratio_c)


def clipping_as(config: ActorConfig, clip: ClipRange) -> ActorConfig:
    """verl's settings of the actor with a method's clip range."""
    if clip == clip_range_of(config):
        return config
    changed = copy.copy(config)
    dual = _NO_DUAL if clip.dual is None else clip.dual
    for name, value in (("clip_ratio_low", clip.low), ("clip_ratio_high", clip.high), ("clip_ratio_c", dual)):
        object.__setattr__(changed, name, value)  # the section is frozen
    return changed


def weight_metrics(weights: Tensor) -> dict[str, float]:
    """Mean, smallest and share near 1 of a micro-batch's weights; where all is masked, those of a weight of 1."""
    weights = weights if len(weights) else weights.new_ones(1)  # verl wants the same metrics of every micro-batch
    return {
        "actor/lambda/mean": float(weights.mean()),
        "actor/lambda/q0": float(weights.min()),
        "actor/lambda/share_within_1pct_of_1": float(((weights - 1).abs() <= 0.01).float().mean()),
    }
