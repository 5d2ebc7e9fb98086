"""Quadrant weights: one factor for each sign of the advantage and side of the entropy."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.formulas.entropy_change import quadrants
from steer_core.interventions.base import Intervention, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Quadrants(Intervention):
    """Factors on the loss by quadrant: sign of A x likely (ln p > -H) or not (STEER, arXiv 2510.10150, figs. 9-17)."""

    name: str = "quadrants"
    positive_likely: float = Field(default=1.0, ge=0)
    """Tokens with A > 0 and ln p > -H: the theory says they lower entropy."""
    positive_unlikely: float = Field(default=1.0, ge=0)
    """Tokens with A > 0 and ln p <= -H: they raise it."""
    negative_likely: float = Field(default=1.0, ge=0)
    """Tokens with A < 0 and ln p > -H: they raise it."""
    negative_unlikely: float = Field(default=1.0, ge=0)
    """Tokens with A < 0 and ln p <= -H: they lower it."""

    def weights(self, tokens: Tokens) -> Tensor:
        """The factor of each token's quadrant; 1 where A is 0."""
        factors = torch.ones_like(tokens.advantages)
        for name, inside in quadrants(tokens.new, tokens.advantages).items():
            factors[inside] = getattr(self, name)
        return factors
