"""Influence weights: plan the step's effect on entropy from every token's first-order share in it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT
from steer_core.formulas.entropy_change import surrogate_slope
from steer_core.interventions.base import Intervention, Tokens

_NEGLIGIBLE = torch.finfo(torch.float64).eps
_HALVINGS = 110  # from 1 / _NEGLIGIBLE down to the precision of a mu near 0


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Influence(Intervention):
    """The weights nearest to 1 that take a share of the step's predicted fall of entropy away.

    To first order a step changes the mean entropy of its tokens by sum_s w_s D_s (see
    `ladder/attribution.py`, momentum apart). Where that sum is negative, lambda_s = clip(1 + mu w_s D_s, 1 -
    bound, 1 + bound), mu by bisection so that sum_s lambda_s w_s D_s is (1 - strength) of it, or as
    near as the bound lets it. Costs one backward and one forward-mode pass a step.
    """

    name: str = "influence"
    strength: float = Field(default=0.5, ge=0)
    """Share of the predicted fall that is taken away: 1 plans for no change, above 1 for a rise."""
    bound: float = Field(default=1.0, gt=0, le=1)
    """Weights stay within 1 - bound and 1 + bound."""

    @property
    def scope(self) -> Literal["step"]:
        """The whole step is planned."""
        return "step"

    def weights(self, tokens: Tokens) -> Tensor:
        """The planned weights; all 1 where no fall is predicted. Raises SteerError without a step to differentiate."""
        step = tokens.step
        if step is None:
            raise SteerError(
                "intervention.name: influence differentiates an optimiser step, and none is given here; "
                "train with steer_core's own trainer, or take another method"
            )
        slope = step.coefficients * surrogate_slope(tokens.new, tokens.old, tokens.advantages, tokens.clip)
        return planned_weights(slope * step.entropy_influence(), self.strength, self.bound)


def planned_weights(influence: Tensor, strength: float, bound: float) -> Tensor:
    """clip(1 + mu I, 1 - bound, 1 + bound), mu >= 0 so that sum lambda I = (1 - strength) sum I where sum I < 0.

    influence: I (N,), each token's share. sum lambda I grows with mu, so bisection finds it; where
    the bound keeps it from the target, mu is as large as makes a difference.
    """
    if not influence.any():
        return torch.ones_like(influence)
    share = influence.double() / influence.abs().max()
    total = share.sum()
    if total >= 0:
        return torch.ones_like(influence)
    target, size = (1 - strength) * total, share.abs()
    smallest = size[~(size <= _NEGLIGIBLE)].min()  # NaN stays, for `loss_terms` to refuse

    def weights(mu: Tensor) -> Tensor:
        return (1 + mu * share).clamp(1 - bound, 1 + bound)

    low, high = torch.zeros_like(total), bound / smallest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (weights(middle) * share).sum() >= target
        low, high = (low, middle) if reached else (middle, high)
    return weights(high).to(influence.dtype)
