"""EntroPIC: a proportional-integral controller steers entropy by the weight of likely tokens."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.schedules import Scheduled
from steer_core.common.settings import STRICT
from steer_core.formulas.loss import importance_ratio
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Intervention, Memory, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class EntroPIC(Intervention):
    """alpha mean(-r |A|) over tokens with p above a threshold (Yang et al., arXiv 2511.15248).

    alpha = clip(kp e + ki sum of past e, -1, 1), e = entropy - target. Below the target alpha is
    negative: successes at likely tokens count for less and failures for more, which raises entropy.
    """

    name: str = "entropic"
    target: Scheduled = 0.3
    """Entropy to keep, nats a token; a number or a schedule."""
    kp: float = Field(default=1.0, ge=0)
    """Proportional gain, per nat."""
    ki: float = Field(default=0.01, ge=0)
    """Integral gain, per nat and optimiser step."""
    threshold: float = Field(default=0.95, ge=0, lt=1)
    """Tokens above this probability carry the control."""

    @property
    def scope(self) -> Literal["step"]:
        """The error is that of the step's mean entropy."""
        return "step"

    @property
    def learns_without_advantage(self) -> bool:
        """The term's factor has |A| in it."""
        return False

    def extra_loss(self, stats: TokenStats, old: TokenStats) -> Tensor:
        """-r, unclipped."""
        return -importance_ratio(stats.logprob, old.logprob)

    def extra_factors(self, tokens: Tokens) -> Tensor:
        """alpha |A| at likely tokens, scaled so that a token-mean over all becomes the mean over them.

        Under another reduction the likely tokens carry the weights of that reduction, times the same scale.
        """
        error = float(tokens.new.entropy.mean()) - self.in_force("target", tokens.memory)
        alpha = min(max(self.kp * error + self.ki * tokens.memory.get("integral", 0.0), -1.0), 1.0)
        likely = tokens.new.logprob.exp() > self.threshold
        share = likely.to(tokens.advantages.dtype).mean().clamp_min(torch.finfo(tokens.advantages.dtype).tiny)
        return torch.where(likely, alpha * tokens.advantages.abs() / share, 0.0)

    def next_memory(self, memory: Memory, entropy: float) -> Memory:
        """The integral of the error."""
        return {"integral": memory.get("integral", 0.0) + entropy - self.in_force("target", memory)}
