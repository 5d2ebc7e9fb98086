"""Controls for STEER: the same weights, on average or in distribution, without its choice of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT
from steer_core.interventions.base import Tokens
from steer_core.interventions.steer import Steer


@dataclass(config=STRICT, kw_only=True, frozen=True)
class SteerControl(Steer):
    """STEER's weights shuffled among the tokens that have one, or their mean on each of them."""

    name: str = "steer-control"
    control: Literal["shuffled", "uniform"] = "shuffled"
    """`shuffled`: the same weights on tokens drawn at random; `uniform`: their mean on every token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "rollout":
            raise SteerError(
                "intervention.scope: rollout is not for steer-control, which deals weights out within an optimiser "
                "step; use step"
            )

    def weights(self, tokens: Tokens) -> Tensor:
        """lambda as STEER gives it, dealt out anew among the tokens whose update it estimates to change entropy."""
        weights = super().weights(tokens)
        moving = self.change(tokens.new, tokens.old, tokens.advantages, tokens.clip) != 0
        if self.control == "uniform":
            return torch.where(moving, weights[moving].mean(), weights) if moving.any() else weights
        dealt = weights.clone()
        dealt[moving] = weights[moving][tokens.draws[moving].argsort()]
        return dealt
