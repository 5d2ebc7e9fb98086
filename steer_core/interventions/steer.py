"""STEER: damp the tokens whose update is estimated to change entropy most."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT
from steer_core.formulas.entropy_change import entropy_change_form
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.formulas.weights import normaliser, steer_weights
from steer_core.interventions.base import Intervention, Memory, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Steer(Intervention):
    """lambda falls with |Omega|, the estimated entropy change (STEER, arXiv 2510.10150, section 4)."""

    name: str = "steer"
    form: Literal["paper", "released", "exact", "covariance"] = "paper"
    """Estimate of the entropy change."""
    map: Literal["exponential", "linear", "binary"] = "exponential"
    """From the size of the estimate to lambda; linear from 0 on; binary: lambda_min from the normaliser on."""
    lambda_min: float = Field(default=0.7, gt=0)
    """Weight of the token at the normaliser; 1 is plain GRPO bit for bit."""
    lambda_max: float = Field(default=1.0, gt=0)
    """Weight of a token that would change nothing."""
    sides: Literal["both", "lowering"] = "both"
    """`lowering`: only tokens estimated to lower entropy are damped (asymmetric)."""
    normaliser: Literal["max", "quantile"] = "max"
    """What |Omega| is divided by: its maximum (the paper) or a quantile."""
    quantile: float = Field(default=0.9, gt=0, le=1)
    """Which quantile of the non-zero |Omega|, where normaliser is `quantile`; tokens above get lambda_min."""
    smallest_normaliser: float = Field(default=0.0, ge=0)
    """The normaliser is at least this (0.02 in the authors' release)."""
    scope: Literal["step", "rollout", "micro"] = "step"
    """Tokens the normaliser is taken over: an optimiser step, a rollout as the old policy saw it, or a micro-batch."""

    def __post_init__(self) -> None:
        if self.lambda_min > self.lambda_max:
            raise SteerError(
                f"intervention.lambda_min: {self.lambda_min} is above lambda_max ({self.lambda_max}); "
                f"choose one within (0, {self.lambda_max:g}]"
            )
        if self.form == "covariance" and self.scope == "rollout":
            raise SteerError(
                "intervention.scope: rollout is not for form covariance, whose means are taken over an optimiser step; "
                "use step"
            )

    @property
    def logged_form(self) -> str:
        """The form that sets its weights."""
        return self.form

    @property
    def sees_rollouts(self) -> bool:
        """With scope `rollout` alone."""
        return self.scope == "rollout"

    @property
    def sees_without_advantage(self) -> bool:
        """Omega is 0 there, which moves no maximum and no quantile; but the means of `covariance` are over all."""
        return self.form == "covariance"

    def weights(self, tokens: Tokens) -> Tensor:
        """lambda of every token."""
        change = self.change(tokens.new, tokens.old, tokens.advantages, tokens.clip)
        if not change.isfinite().all():
            raise SteerError(
                f"intervention.form: {self.form} estimates entropy changes that are not finite, because log-probs, "
                "entropies or advantages are not; lower optimizer.learning_rate"
            )
        scale = change.new_tensor(tokens.memory["normaliser"]) if self.scope == "rollout" else self.scale(change)
        return self.lambdas(change, scale)

    def begin_rollout(self, memory: Memory, tokens: Tokens) -> Memory:
        """With scope `rollout`, keeps the normaliser of the whole rollout."""
        if not self.sees_rollouts:
            return memory
        change = self.change(tokens.new, tokens.old, tokens.advantages, tokens.clip)
        return {**memory, "normaliser": float(self.scale(change))}

    def change(self, new: TokenStats, old: TokenStats, advantages: Tensor, clip: ClipRange) -> Tensor:
        """The estimate of each token's entropy change, minus what is not to be damped; shape of the inputs."""
        change = entropy_change_form(self.form)(new, old, advantages, clip)
        return change.clamp(max=0) if self.sides == "lowering" else change

    def scale(self, change: Tensor) -> Tensor:
        """The normaliser over some tokens (N,): a scalar."""
        quantile = self.quantile if self.normaliser == "quantile" else 1.0
        return normaliser(change, torch.ones_like(change), quantile).clamp(min=self.smallest_normaliser)

    def lambdas(self, change: Tensor, scale: Tensor) -> Tensor:
        """lambda of some tokens (N,), given the normaliser."""
        return steer_weights(change, torch.ones_like(change), self.lambda_min, scale, self.map, self.lambda_max)
