"""Entrocraft: below an entropy band only failures count, above it only successes."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.schedules import Scheduled
from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Memory, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Entrocraft(Intervention):
    """Below target - margin no token with A > 0 counts, above target + margin none with A < 0 (arXiv 2604.26326).

    The entropy is the mean over a rollout under the policy that sampled it, and decides for the rollout's steps. Tokens
    that do not count stay in the denominator. The authors' bounds fall in a line, from 0.6 and 0.7 to 0.4 and 0.5 over
    their run: target "0.65 to 0.45 over ROLLOUTS". Their code takes the raw rewards, +-1, as advantages of what counts
    outside the band; here they stay those of algorithm.advantage.
    """

    name: str = "entrocraft"
    target: Scheduled = 0.3
    """Middle of the band, nats a token; a number or a schedule."""
    margin: float = Field(default=0.05, ge=0)
    """How far the band reaches below the target and above it, nats."""

    @property
    def scope(self) -> Literal["rollout"]:
        """A rollout's mean entropy decides."""
        return "rollout"

    def mask(self, tokens: Tokens) -> Tensor:
        """All tokens within the band, else those without the sign that moves entropy away from it."""
        dropped = -tokens.memory["sign"]  # 0 drops none
        return ~(tokens.advantages * dropped > 0) if dropped else torch.ones_like(tokens.advantages).bool()

    def begin_rollout(self, memory: Memory, tokens: Tokens) -> Memory:
        """The sign of the advantages that alone count: 0 both, 1 the positive, -1 the negative."""
        entropy, target = float(tokens.old.entropy.mean()), self.in_force("target", memory)
        above, below = entropy > target + self.margin, entropy < target - self.margin
        return {"sign": float(above) - float(below)}
