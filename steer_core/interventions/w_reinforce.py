"""W-REINFORCE: let failures count for more than successes."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class WReinforce(Intervention):
    """Tokens with A > 0 weigh less than those with A < 0 (Zhu et al., arXiv 2506.01347, eq. 8).

    The paper weights samples by the sign of their reward; here it is that of the advantage.
    """

    name: str = "w-reinforce"
    positive: float = Field(default=0.1, ge=0)
    """Weight where A > 0; 1 elsewhere."""

    def weights(self, tokens: Tokens) -> Tensor:
        """`positive` where A > 0."""
        weights = torch.ones_like(tokens.advantages)
        return weights.masked_fill(tokens.advantages > 0, self.positive)
