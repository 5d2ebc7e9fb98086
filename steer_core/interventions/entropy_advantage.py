"""Entropy-aware advantage: favour tokens at uncertain states."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class EntropyAdvantage(Intervention):
    """A + min(alpha H, |A| / kappa), H without gradient (Cheng et al., arXiv 2506.14758, eq. 2)."""

    name: str = "entropy-advantage"
    alpha: float = Field(default=0.4, ge=0)
    """Of the entropy in the bonus."""
    kappa: float = Field(default=2.0, gt=1)
    """The bonus is at most |A| / kappa, so that it never turns the sign of A."""

    @property
    def learns_without_advantage(self) -> bool:
        """The bonus is at most |A| / kappa, so it is 0 where A is."""
        return False

    def advantages(self, tokens: Tokens) -> Tensor:
        """The advantages with their bonus."""
        bonus = torch.minimum(self.alpha * tokens.new.entropy, tokens.advantages.abs() / self.kappa)
        return tokens.advantages + bonus
