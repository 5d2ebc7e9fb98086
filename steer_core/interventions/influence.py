"""Influence weights: plan the step's effect on entropy from every token's first-order share in it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common import ranks
from steer_core.common.settings import STRICT
from steer_core.formulas.entropy_change import surrogate_slope
from steer_core.interventions.base import Intervention, Step, Tokens
from steer_core.ladder.passes import derivative, gradient

_NEGLIGIBLE = torch.finfo(torch.float64).eps
_HALVINGS = 110  # from 1 / _NEGLIGIBLE down to the precision of a mu near 0


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Influence(Intervention):
    """The weights nearest to 1 that take a share of the step's predicted fall of entropy away.

    To first order a step changes the mean entropy of its tokens by sum_s w_s D_s (see
    `attribution.py`, momentum apart). Where that sum is negative, lambda_s = clip(1 + mu w_s D_s, 1 -
    bound, 1 + bound), mu by bisection so that sum_s lambda_s w_s D_s is (1 - strength) of it, or as
    near as the bound lets it. Costs one backward and one forward-mode pass a step.
    """

    name: str = "influence"
    strength: float = Field(0.5, ge=0)
    """Share of the predicted fall that is taken away: 1 plans for no change, above 1 for a rise."""
    bound: float = Field(1.0, gt=0, le=1)
    """Weights stay within 1 - bound and 1 + bound."""

    @property
    def scope(self) -> Literal["step"]:
        """The whole step is planned."""
        return "step"

    def weights(self, tokens: Tokens) -> Tensor:
        """The planned weights; all 1 where no fall is predicted."""
        pushed = tokens.step.coefficients * surrogate_slope(tokens.new, tokens.old, tokens.advantages, tokens.clip)
        return planned_weights(pushed * per_unit_of_push(tokens.step, len(pushed)), self.strength, self.bound)


def per_unit_of_push(step: Step, states: int) -> Tensor:
    """D (N,): derivative of each token's log-prob along the preconditioned gradient of the mean entropy.

    The preconditioner is that of the optimiser before the step, 1 / (sqrt(v) + eps) for Adam without
    its bias correction; 1 for SGD and before Adam's first step. The step's own differs by this
    batch's gradient in v, by how the correction weighs against eps, and by a factor all tokens share.
    """
    total: dict[str, Tensor] = {}
    for lens in step.lenses:
        on_entropy = torch.full((len(lens.labels_N),), 1 / states, device=lens.model.device, dtype=lens.model.dtype)
        for name, g in gradient(lens, on_entropy_N=on_entropy).items():
            total[name] = total[name] + g if name in total else g
    held = dict(step.lenses[0].model.named_parameters())
    for name, g in total.items():
        ranks.all_reduce_sum_(g)
        second_moment = step.optimizer.state.get(held[name], {}).get("exp_avg_sq")
        if second_moment is not None:
            g.div_(second_moment.sqrt() + step.optimizer.param_groups[0]["eps"])
    return ranks.all_gather_rows(torch.cat([derivative(lens, total)[0] for lens in step.lenses]))


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
    smallest = size[~(size <= _NEGLIGIBLE)].min()  # NaN stays, for `treat` to refuse

    def weights(mu: Tensor) -> Tensor:
        return (1 + mu * share).clamp(1 - bound, 1 + bound)

    low, high = torch.zeros_like(total), bound / smallest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = (weights(middle) * share).sum() >= target
        low, high = (low, middle) if reached else (middle, high)
    return weights(high).to(influence.dtype)
