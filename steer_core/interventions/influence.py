"""Influence weights: plan the step's effect on entropy from every token's first-order share in it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.common.schedules import Scheduled
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
    near as the bound lets it. With a target every step is planned, up or down, so that the mean entropy of its
    tokens goes `strength` of its distance to the target. Costs one backward and one forward-mode pass a step.
    """

    name: str = "influence"
    strength: float = Field(default=0.5, ge=0)
    """Share of the predicted fall that is taken away: 1 plans for no change, above 1 for a rise. With a target: share
    of the distance to it that a step is planned to go."""
    target: Scheduled | None = None
    """Entropy to head for, nats a token; a number or a schedule. `null`: none."""
    bound: float = Field(default=1.0, gt=0, le=1)
    """Weights stay within 1 - bound and 1 + bound."""

    @property
    def scope(self) -> Literal["step"]:
        """The whole step is planned."""
        return "step"

    @property
    def differentiates(self) -> bool:
        """It reads how much each token's loss moves the mean entropy."""
        return True

    def weights(self, tokens: Tokens) -> Tensor:
        """The planned weights; all 1 where no fall is predicted. Raises SteerError without a step to differentiate."""
        step = tokens.step
        if step is None:
            raise SteerError(
                "intervention.name: influence differentiates an optimiser step, and none is given here; "
                "train with steer_core's own trainer, or take another method"
            )
        slope = step.coefficients * surrogate_slope(tokens.new, tokens.old, tokens.advantages, tokens.clip)
        influence = slope * step.entropy_influence()
        if self.target is None:
            return planned_weights(influence, self.strength, self.bound)
        if step.step_size == 0:  # the first step of a warm-up moves nothing
            return torch.ones_like(influence)
        distance = self.in_force("target", tokens.memory) - float(tokens.new.entropy.mean())
        return weights_towards(influence, self.strength * distance / step.step_size, self.bound)


def planned_weights(influence: Tensor, strength: float, bound: float) -> Tensor:
    """clip(1 + mu I, 1 - bound, 1 + bound), mu >= 0 so that sum lambda I = (1 - strength) sum I where sum I < 0.

    influence: I (N,), each token's share.
    """
    if not influence.any():
        return torch.ones_like(influence)
    share = influence.double() / influence.abs().max()
    total = share.sum()
    if total >= 0:
        return torch.ones_like(influence)
    return _raised(share, (1 - strength) * total, bound).to(influence.dtype)


def weights_towards(influence: Tensor, change: float, bound: float) -> Tensor:
    """clip(1 + mu I, 1 - bound, 1 + bound), mu of either sign so that sum lambda I = change, or as near as may be.

    influence: I (N,), each token's share, in the unit of the change.
    """
    if not influence.any():
        return torch.ones_like(influence)
    largest = influence.double().abs().max()
    share, goal = influence.double() / largest, change / largest
    if share.sum() > goal:
        share, goal = -share, -goal
    return _raised(share, goal, bound).to(influence.dtype)


def _raised(share: Tensor, target: Tensor, bound: float) -> Tensor:
    """clip(1 + mu I, 1 - bound, 1 + bound), mu >= 0 so that sum lambda I = target, which is not below sum I.

    share: I (N,) float64, the largest of size 1. sum lambda I grows with mu, so bisection finds it; where the bound
    keeps it from the target, mu is as large as makes a difference.
    """
    size = share.abs()
    smallest = size[~(size <= _NEGLIGIBLE)].min()  # NaN stays, for `loss_terms` to refuse

    def weights(mu: Tensor) -> Tensor:
        return (1 + mu * share).clamp(1 - bound, 1 + bound)

    low, high = torch.zeros_like(smallest), bound / smallest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (weights(middle) * share).sum() >= target
        low, high = (low, middle) if reached else (middle, high)
    return weights(high)
