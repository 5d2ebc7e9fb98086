"""Entropy loss: reward the policy's entropy in the loss."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Intervention, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class EntropyLoss(Intervention):
    """Adds -coefficient H to every token's loss (A3C, Mnih et al., arXiv 1602.01783, section 4)."""

    name: str = "entropy-loss"
    coefficient: float = Field(default=0.001, ge=0)
    """Of the entropy in the loss."""

    @property
    def learns_without_advantage(self) -> bool:
        """Every token has the term."""
        return self.coefficient > 0

    def extra_loss(self, stats: TokenStats, old: TokenStats) -> Tensor:
        """-H."""
        return -stats.entropy

    def extra_factors(self, tokens: Tokens) -> Tensor:
        """The coefficient on every token."""
        return torch.full_like(tokens.advantages, self.coefficient)
