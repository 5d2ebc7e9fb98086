"""CE-GPPO: tokens outside the clip keep a bounded gradient."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.formulas.loss import clipped_by, importance_ratio
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Intervention, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class CEGPPO(Intervention):
    """Tokens that the clip removes keep the gradient they had at its bound, times a factor (arXiv 2509.20712).

    The surrogate of such a token is beta (1 -+ clip) r / sg(r) A, sg without gradient: its gradient is that of
    beta (1 -+ clip) A ln p, however far r lies outside. The value of the loss stays PPO's. The dual clip removes what
    it did, as in the authors' code. The factors are those of the authors' 7B run; at 1.5B they took 0.5 and 1, and a
    clip of 0.2 on both sides.
    """

    name: str = "ce-gppo"
    low: float = Field(default=0.75, ge=0)
    """beta1, where A < 0 and the ratio is below 1 - clip_low; 0 is PPO's clip."""
    high: float = Field(default=1.0, ge=0)
    """beta2, where A > 0 and the ratio is above 1 + clip_high; 0 is PPO's clip."""

    @property
    def learns_without_advantage(self) -> bool:
        """The term's factor has A in it."""
        return False

    def extra_loss(self, stats: TokenStats, old: TokenStats) -> Tensor:
        """1 - r / sg(r): 0, with the gradient of -ln p."""
        ratio = importance_ratio(stats.logprob, old.logprob)
        return 1 - ratio / ratio.detach()

    def extra_factors(self, tokens: Tokens) -> Tensor:
        """beta (1 -+ clip) A at tokens outside the clip, else 0."""
        ratio, clip = importance_ratio(tokens.new.logprob, tokens.old.logprob), tokens.clip
        high, low, _ = clipped_by(ratio, tokens.advantages, clip)
        factors = torch.where(high, self.high * (1 + clip.high) * tokens.advantages, 0.0)
        return torch.where(low, self.low * (1 - clip.low) * tokens.advantages, factors)
