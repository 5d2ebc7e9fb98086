"""Clip-Cov and KL-Cov: hold back the tokens whose log-prob and advantage covary most."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT
from steer_core.formulas.entropy_change import covariance_entropy_change
from steer_core.formulas.loss import ClipRange, clip_indicator, importance_ratio, log_ratio
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Intervention, Tokens


def covariance(tokens: Tokens) -> Tensor:
    """(A - mean A)(ln p - mean ln p), means over all tokens given (Cui et al., arXiv 2505.22617, eq. 10)."""
    return -covariance_entropy_change(tokens.new, tokens.old, tokens.advantages, tokens.clip)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ClipCov(Intervention):
    """A few tokens of high covariance, drawn at random, do not count (Cui et al., arXiv 2505.22617, eq. 11).

    They stay in the loss's denominator. Candidates lie between the bounds and are not clipped already.
    The clip range is the configured one; the authors' scripts set it to 1 / 1 and the dual clip to 10.
    """

    name: str = "clip-cov"
    share: float = Field(default=0.0002, ge=0, le=1)
    """Share of all tokens that is drawn, at least one where there is a candidate; 0 draws none."""
    low: float = 1.0
    """A candidate's covariance is above this."""
    high: float = 5.0
    """A candidate's covariance is below this."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SteerError(f"intervention.low: {self.low} is not below high ({self.high}); lower it")

    @property
    def scope(self) -> Literal["step"]:
        """Means and the number drawn are the step's."""
        return "step"

    def mask(self, tokens: Tokens) -> Tensor:
        """All but the tokens that are drawn."""
        ratio = importance_ratio(tokens.new.logprob, tokens.old.logprob)
        passes = clip_indicator(ratio, tokens.advantages, tokens.clip) > 0
        value = covariance(tokens)
        candidates = ((value > self.low) & (value < self.high) & passes).nonzero().squeeze(-1)
        count = max(1, int(self.share * len(value))) if self.share else 0
        kept = torch.ones_like(passes)
        kept[candidates[tokens.draws[candidates].argsort()[:count]]] = False
        return kept


@dataclass(config=STRICT, kw_only=True, frozen=True)
class KLCov(Intervention):
    """No clip, and coefficient |ln p - ln p_old| on the tokens of highest covariance (arXiv 2505.22617, eq. 12).

    At ratio 1, as in the first mini-batch of a rollout, the penalty has no gradient. `share` is a
    fraction, as in verl; the authors' scripts write it in per cent. In a step whose advantages are all
    equal every covariance is 0 and some tokens are penalised all the same, as in verl.
    """

    name: str = "kl-cov"
    share: float = Field(default=0.0002, ge=0, le=1)
    """Share of the tokens that is penalised, at least one; 0 penalises none."""
    coefficient: float = Field(default=1.0, ge=0)
    """Of the penalty."""

    @property
    def scope(self) -> Literal["step"]:
        """Means and ranks are the step's."""
        return "step"

    def clip_range(self, clip: ClipRange) -> ClipRange:
        """None."""
        return ClipRange(low=1.0, high=float("inf"), dual=None)

    @property
    def learns_without_advantage(self) -> bool:
        """The penalty looks at covariance, which a token without an advantage may have."""
        return self.share > 0 and self.coefficient > 0

    def extra_loss(self, stats: TokenStats, old: TokenStats) -> Tensor:
        """|ln p - ln p_old|."""
        return log_ratio(stats.logprob, old.logprob).abs()

    def extra_factors(self, tokens: Tokens) -> Tensor:
        """The coefficient on the tokens of highest covariance."""
        value = covariance(tokens)
        count = max(1, int(self.share * len(value))) if self.share else 0
        factors = torch.zeros_like(value)
        factors[value.topk(min(count, len(value))).indices] = self.coefficient
        return factors
