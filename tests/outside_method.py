"""An intervention of another package, named `outside_method:Halved` in a configuration; and things that are none."""

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Memory, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Halved(Intervention):
    """Tokens with A > 0 weigh less, and the rollouts are counted."""

    name: str = "outside_method:Halved"
    factor: float = Field(0.5, ge=0)
    """Weight where A > 0."""

    def weights(self, tokens: Tokens) -> Tensor:
        return torch.where(tokens.advantages > 0, self.factor, 1.0)

    def begin_rollout(self, memory: Memory, tokens: Tokens) -> Memory:
        return {"rollouts": memory.get("rollouts", 0.0) + 1}


class NoMethod:
    """Not derived from Intervention."""


NO_CLASS = 3
