"""STARE: while entropy is below a target, reinforce the surprising tokens of good responses more."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.schedules import Scheduled
from steer_core.common.settings import STRICT
from steer_core.formulas.weights import ROUNDING
from steer_core.interventions.base import Intervention, Memory, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Stare(Intervention):
    """Weights on the most surprising tokens of each sign, gated by a target entropy (arXiv 2606.19236).

    The gate looks at the mean entropy of a rollout under the policy that sampled it and holds for
    the rollout's steps. Quantiles are the optimiser step's; the authors' code takes a micro-batch's.
    """

    name: str = "stare"
    target: Scheduled = 0.3
    """The gate is open while entropy is below this, nats a token; a number or a schedule."""
    share: float = Field(default=0.1, gt=0, le=1)
    """Share of the tokens of a sign that is reweighted: those of lowest probability."""
    positive: float = Field(default=1.1, ge=0)
    """Weight of such tokens with A > 0."""
    negative: float = Field(default=1.0, ge=0)
    """Weight of such tokens with A < 0 (0.9 in the authors' two-sided variant)."""

    @property
    def scope(self) -> Literal["step"]:
        """Quantiles of surprisal are the step's."""
        return "step"

    def weights(self, tokens: Tokens) -> Tensor:
        """The weights while the gate is open, else 1."""
        weights = torch.ones_like(tokens.advantages)
        if not tokens.memory["gate"]:
            return weights
        for side, weight in ((tokens.advantages > 0, self.positive), (tokens.advantages < 0, self.negative)):
            places = side.nonzero().squeeze(-1)
            if len(places):
                count = max(1, math.ceil(self.share * len(places) - ROUNDING))
                weights[places[tokens.new.logprob[places].topk(count, largest=False).indices]] = weight
        return weights

    def begin_rollout(self, memory: Memory, tokens: Tokens) -> Memory:
        """Opens or shuts the gate."""
        return {"gate": float(tokens.old.entropy.mean() < self.in_force("target", memory))}
