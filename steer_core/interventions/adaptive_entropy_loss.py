"""Adaptive entropy loss: an entropy bonus whose coefficient follows a target."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.schedules import Scheduled, highest
from steer_core.common.settings import STRICT
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Intervention, Memory, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class AdaptiveEntropyLoss(Intervention):
    """-c H on every token; c rises by a step below the target and falls above it (Skywork-OR1, arXiv 2505.22312).

    It acts only while the last step's entropy is at or below the target; at a target that entropy
    never falls to, this is plain GRPO. The defaults are those of the authors' 7B runs.
    """

    name: str = "adaptive-entropy-loss"
    target: Scheduled = 0.2
    """Entropy to keep, nats a token; a number or a schedule."""
    step: float = Field(default=0.0001, gt=0)
    """How much the coefficient moves after an optimiser step."""
    maximum: float = Field(default=0.005, ge=0)
    """The coefficient stays within 0 and this."""

    @property
    def learns_without_advantage(self) -> bool:
        """Every token has the term, while it acts."""
        return self.maximum > 0 and highest(self.target) > 0

    def extra_loss(self, stats: TokenStats, old: TokenStats) -> Tensor:
        """-H."""
        return -stats.entropy

    def extra_factors(self, tokens: Tokens) -> Tensor:
        """The coefficient in force on every token."""
        acts = tokens.memory.get("entropy", float("inf")) <= self.in_force("target", tokens.memory)
        return torch.full_like(tokens.advantages, tokens.memory["coefficient"] if acts else 0.0)

    def next_memory(self, memory: Memory, entropy: float) -> Memory:
        """The coefficient after a step, and the entropy that decides whether it acts."""
        below = entropy < self.in_force("target", memory)
        moved = memory.get("coefficient", 0.0) + (self.step if below else -self.step)
        return {"coefficient": min(max(moved, 0.0), self.maximum), "entropy": entropy}
