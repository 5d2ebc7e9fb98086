"""What a method changes in a training step of GRPO: the one interface that every intervention fills in.

A method is a frozen dataclass: its fields are its settings (`intervention.KEY=VALUE`), the methods it
overrides are the parts of the step it touches. `README.md` beside this file says how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass as settings

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from steer_core.formulas.loss import ClipRange
    from steer_core.formulas.token_stats import TokenStats
    from steer_core.ladder.passes import Lens

PARTS = ("clip_range", "advantages", "weights", "mask", "extra_loss")
"""The parts of a step that an intervention can touch."""
State = dict[str, float]
"""What a closed loop remembers from step to step; it is logged and part of every checkpoint."""


@dataclass(frozen=True)
class Tokens:
    """The response tokens that a rule sees at once, flat (N,); nothing here carries gradient.

    new: statistics of the policy being updated. old: of the policy that sampled. clip: the clip
    range in force. draws: uniform within [0, 1), one a token, from the run's seed: for rules that
    choose at random. state: see `Intervention.next_state`. step: for rules that differentiate.
    """

    new: TokenStats
    old: TokenStats
    advantages: Tensor
    clip: ClipRange
    draws: Tensor
    state: State
    step: Step | None = None


@dataclass(frozen=True)
class Step:
    """The optimiser step that a rule plans: its sequences, one lens a micro-batch, and its optimiser.

    coefficients: factor (N,) of each token's loss in the mini-batch's loss (`loss.token_coefficients`).
    """

    lenses: list[Lens]
    optimizer: torch.optim.Optimizer
    coefficients: Tensor


@dataclass(frozen=True)
class Treatment:
    """What an intervention makes of some tokens, flat (N,): how each enters the loss.

    advantages: in the clipped surrogate. weights: factor on it, 0 where masked. extra: factor on the
    extra term, None without one.
    """

    advantages: Tensor
    weights: Tensor
    extra: Tensor | None


@settings(config=STRICT, kw_only=True, frozen=True)
class Intervention:
    """Nothing is changed: plain GRPO, as the other settings define it."""

    name: str = "none"
    """Which method: `none`, one of the methods below, or `module:Class` for your own."""

    @property
    def scope(self) -> Literal["token", "micro", "rollout", "step"]:
        """The tokens a rule must see at once.

        `token`: its own alone. `step`: a whole optimiser step; over several micro-batches the
        trainer then takes a values pass first, so that a memory setting changes nothing. `rollout`:
        its own, and what `begin_rollout` kept. `micro`: a micro-batch, so the method changes with it.
        """
        return "token"

    @property
    def touches(self) -> tuple[str, ...]:
        """The parts of the step that this method changes: those it overrides."""
        return tuple(part for part in PARTS if getattr(type(self), part) is not getattr(Intervention, part))

    def clip_range(self, clip: ClipRange) -> ClipRange:
        """The clip range, given the configured one."""
        return clip

    def advantages(self, tokens: Tokens) -> Tensor:
        """The advantages (N,) that enter the surrogate."""
        return tokens.advantages

    def weights(self, tokens: Tokens) -> Tensor:
        """Factor (N,) on each token's clipped surrogate, not negative."""
        return tokens.advantages.new_ones(tokens.advantages.shape)

    def mask(self, tokens: Tokens) -> Tensor:
        """True (N,) at tokens whose surrogate counts; the others stay in the denominator."""
        return tokens.advantages.new_ones(tokens.advantages.shape).bool()

    def extra_loss(self, stats: TokenStats, old: TokenStats) -> Tensor:
        """A term beside the surrogate at each token, of the shape of `stats`, which carry gradient."""
        return stats.logprob.new_zeros(stats.logprob.shape)

    def extra_factors(self, tokens: Tokens) -> Tensor:
        """Factor (N,) on `extra_loss`, where a method has one."""
        return tokens.advantages.new_ones(tokens.advantages.shape)

    def begin_rollout(self, state: State, tokens: Tokens) -> State:
        """The state for a rollout, given its tokens as the policy that sampled saw them (new is old)."""
        return state

    def next_state(self, state: State, entropy: float) -> State:
        """The state after an optimiser step, given the mean entropy of its tokens before it, in nats."""
        return state

    def treat(self, tokens: Tokens) -> Treatment:
        """All rules applied to some tokens. Raises SteerError where one gives NaN, infinity or a negative weight."""
        advantages = self.advantages(tokens)
        tokens = replace(tokens, advantages=advantages)
        weights = (self.weights(tokens) * self.mask(tokens)).to(advantages.dtype)
        extra = self.extra_factors(tokens).to(advantages.dtype) if "extra_loss" in self.touches else None
        for what, values in (("advantages", advantages), ("weights", weights), ("extra factors", extra)):
            if values is not None and not values.isfinite().all():
                raise SteerError(
                    f"intervention.name: {self.name} makes {what} that are not finite; the log-probs or entropies of "
                    "this step are not, or a setting is too extreme: lower optimizer.learning_rate"
                )
        if (weights < 0).any():
            raise SteerError(f"intervention.name: {self.name} makes negative weights; its rule must not")
        return Treatment(advantages, weights, extra)
