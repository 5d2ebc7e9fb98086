"""REPO-R: rescale advantages by surprise, so that entropy stays where it was."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, where

from steer_core.common.errors import SteerError
from steer_core.common.schedules import Scheduled
from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Memory, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class RepoR(Intervention):
    """A (1 - zeta ln p) where A > 0 and A (1 + zeta ln p) where A < 0 (REPO-R, arXiv 2603.11682, appendix D.2).

    No sign of A turns: beyond 0 it is 0. Above 0, zeta credits rare tokens of good responses with more and blames rare
    tokens of bad ones less, which raises entropy; below 0 it is the other way round. Each rollout whose entropy is
    below the target moves zeta up, by doubling it above 0 and halving it below, each other rollout down; where half
    would be closer to 0 than `smallest`, the sign changes. Bounds and first value are those of SkyRL (pull request
    1896).
    """

    name: str = "repo-r"
    zeta: float = 0.01
    """Its first value; within `largest` on either side of 0."""
    target: Scheduled | None = None
    """Entropy to keep, nats a token, a number or a schedule; `null`: that of the first rollout."""
    adapts: bool = True
    """Whether zeta follows the target; else it stays what it is."""
    smallest: float = Field(default=0.0001, gt=0)
    """Least size of a zeta that follows the target."""
    largest: float = Field(default=1.0, gt=0)
    """Largest size of zeta."""

    def __post_init__(self) -> None:
        if self.smallest > self.largest:
            raise SteerError(f"intervention.smallest: {self.smallest} is above largest ({self.largest}); lower it")
        if abs(self.zeta) > self.largest:
            raise SteerError(f"intervention.zeta: {self.zeta} is further from 0 than largest ({self.largest})")

    @property
    def scope(self) -> Literal["rollout"]:
        """zeta is the rollout's."""
        return "rollout"

    @property
    def learns_without_advantage(self) -> bool:
        """A is scaled, so 0 stays 0."""
        return False

    def advantages(self, tokens: Tokens) -> Tensor:
        """The rescaled advantages."""
        shift = tokens.memory.get("zeta", self.zeta) * tokens.new.logprob
        praised, blamed = tokens.advantages * (1 - shift), tokens.advantages * (1 + shift)
        return where(tokens.advantages > 0, praised.clamp_min(0), blamed.clamp_max(0))

    def begin_rollout(self, memory: Memory, tokens: Tokens) -> Memory:
        """zeta for the rollout, and the target that it follows."""
        zeta = memory.get("zeta", self.zeta)
        if not self.adapts:
            return {"zeta": zeta}
        entropy = float(tokens.old.entropy.mean())
        target = memory.get("target", entropy) if self.target is None else self.in_force("target", memory)
        return {"zeta": zeta if entropy == target else self.moved(zeta, up=entropy < target), "target": target}

    def moved(self, zeta: float, up: bool) -> float:
        """zeta, one step up or down."""
        side = 1.0 if up else -1.0
        if side * zeta > 0:
            return side * min(2 * abs(zeta), self.largest)
        return zeta / 2 if abs(zeta) / 2 >= self.smallest else side * self.smallest
