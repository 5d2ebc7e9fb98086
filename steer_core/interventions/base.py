"""What a method changes in a training step of GRPO: the one interface that every intervention fills in.

A method is a frozen dataclass: its fields are its settings (`intervention.KEY=VALUE`), the methods it
overrides are the parts of the step it touches. `README.md` beside this file says how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field, model_serializer
from pydantic.dataclasses import dataclass as settings

from steer_core.common.errors import SteerError
from steer_core.common.schedules import may_be_scheduled, value_at
from steer_core.common.settings import STRICT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from steer_core.formulas.loss import ClipRange
    from steer_core.formulas.token_stats import TokenStats

PARTS = ("credit", "clip_range", "advantages", "weights", "mask", "extra_loss")
"""The parts of a step that an intervention can touch; the first of them once a rollout."""
STEP_NUMBERS, ROLLOUT_NUMBERS = 10, 6
"""Numbers that cross ranks for each token that a rule sees: two `TokenStats` of four, the advantage and the draw; of a
rollout, which the policy that sampled sees, one `TokenStats` and these."""
_RENAMED = {"next_state": "next_memory", "treat": "loss_terms"}
Memory = dict[str, float]
"""What a closed loop remembers from one optimiser step to the next; it is part of every checkpoint, and logged but for
the names that begin with `UNLOGGED`."""
UNLOGGED = "_"
"""Begins the names of what is remembered of single problems: too many to log."""


class PlannedStep(Protocol):
    """The optimiser step that a rule plans, for rules that differentiate.

    coefficients: factor (N,) of each token's loss in the mini-batch's loss (`loss.token_coefficients`).
    """

    @property
    def coefficients(self) -> Tensor: ...

    @property
    def step_size(self) -> float:
        """What sum w D is multiplied by in the change of entropy, in nats (`ladder.influence.step_size`)."""
        ...

    def entropy_influence(self) -> Tensor:
        """D (N,): the change of the mean entropy, in nats, per unit of each token's log-prob in the loss.

        The trainer takes it through the shared parameters, by the optimiser's own preconditioner
        (`ladder.influence.entropy_influence`): one backward pass and one forward-mode pass.
        """
        ...


@dataclass(frozen=True)
class Tokens:
    """The response tokens that a rule sees at once, flat (N,); nothing here carries gradient.

    new: statistics of the policy being updated. old: of the policy that sampled. clip: the clip
    range in force. draws: uniform within [0, 1), one a token, from the run's seed: for rules that
    choose at random. memory: see `Intervention.next_memory`. step: for rules that differentiate.
    """

    new: TokenStats
    old: TokenStats
    advantages: Tensor
    clip: ClipRange
    draws: Tensor
    memory: Memory
    step: PlannedStep | None = None


@dataclass(frozen=True)
class Responses:
    """The responses of a rollout, of all ranks, (prompts, group) each; nothing here carries gradient.

    rewards_PG: the grader's. advantages_PG: what the estimator of `algorithm.advantage` made of them. logprobs_PG:
    ln p of the whole response under the policy that sampled, in nats, the sum over its tokens. problems: the id of each
    prompt's problem. memory: see `Intervention.remember`.
    """

    rewards_PG: Tensor
    advantages_PG: Tensor
    logprobs_PG: Tensor
    problems: Sequence[str]
    memory: Memory


@dataclass(frozen=True)
class LossTerms:
    """How each token enters the loss: weights x surrogate(advantages) + extra x extra term; flat (N,).

    weights: 0 where masked. extra: factor on the extra term, None without one.
    """

    advantages: Tensor
    weights: Tensor
    extra: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> LossTerms:
        """The terms with `function` applied to each tensor."""
        extra = None if self.extra is None else function(self.extra)
        return LossTerms(function(self.advantages), function(self.weights), extra)


@settings(config=STRICT, kw_only=True, frozen=True)
class Intervention:
    """Nothing is changed: plain GRPO, as the other settings define it."""

    name: str = "none"
    """Which method: `none`, one of the methods below, or `module:Class` for your own."""

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        for old, new in _RENAMED.items():
            if old in vars(cls):
                raise SteerError(
                    f"{cls.__name__}.{old}: is called {new} now; rename it (tokens.state is tokens.memory)"
                )

    @property
    def scope(self) -> Literal["token", "micro", "rollout", "step"]:
        """The tokens a rule must see at once.

        `token`: its own alone. `step`: a whole optimiser step; over several micro-batches the
        trainer then takes a values pass first, so that a memory setting changes nothing. `rollout`:
        its own, and what `begin_rollout` kept. `micro`: a micro-batch, so the method changes with it.
        """
        return "token"

    @property
    def logged_form(self) -> str:
        """The estimate of the entropy change whose values are logged as `omega` and by quadrant."""
        return "paper"

    @property
    def reads_square_sums(self) -> bool:
        """Whether the rules read `sum_p2` or `sum_p2_logp`, which are NaN where nothing in a run does."""
        return self.logged_form == "exact"

    @property
    def differentiates(self) -> bool:
        """Whether the rules read `tokens.step`, which this package's trainer alone gives."""
        return False

    @property
    def sees_rollouts(self) -> bool:
        """Whether the method looks at a whole rollout before its steps: it overrides `begin_rollout`."""
        return type(self).begin_rollout is not Intervention.begin_rollout

    @property
    def sees_responses(self) -> bool:
        """Whether the method looks at a rollout's responses: it overrides `credit` or `remember`."""
        kind = type(self)
        return kind.credit is not Intervention.credit or kind.remember is not Intervention.remember

    @property
    def touches(self) -> tuple[str, ...]:
        """The parts of the step that this method changes: those it overrides."""
        return tuple(part for part in PARTS if getattr(type(self), part) is not getattr(Intervention, part))

    @property
    def learns_without_advantage(self) -> bool:
        """Whether a token of advantage 0 may have a gradient: the method makes other advantages, or adds a loss."""
        return not {"advantages", "extra_loss"}.isdisjoint(self.touches)

    @property
    def sees_without_advantage(self) -> bool:
        """Whether anything that steps depend on looks at tokens of advantage 0 as the policy being updated has them.

        Where not, a response without an advantage is not scored again in its step: it keeps the statistics of the
        policy that sampled it, in the log too.
        """
        closed_loop = type(self).next_memory is not Intervention.next_memory
        return self.learns_without_advantage or closed_loop or self.scope in ("step", "micro")

    def settings_at(self, rollout: int) -> Memory:
        """By name the values in force at a rollout, from 1, of the settings that may follow a schedule.

        The trainer has them in the memory throughout that rollout, so that they are logged; `in_force` reads them.
        """
        fields = type(self).__pydantic_fields__  # type: ignore[attr-defined]
        named = {name: getattr(self, name) for name, field in fields.items() if may_be_scheduled(field.annotation)}
        return {name: value_at(setting, rollout) for name, setting in named.items() if setting is not None}

    def in_force(self, name: str, memory: Memory) -> float:
        """The value in force of a setting that may follow a schedule: the memory's, or where it has none, the first."""
        return memory[name] if name in memory else self.settings_at(1)[name]

    def credit(self, responses: Responses) -> Tensor:
        """The advantage (prompts, group) that all tokens of a response share, once a rollout, before its steps."""
        return responses.advantages_PG

    def remember(self, memory: Memory, responses: Responses) -> Memory:
        """The memory after a rollout's responses were given their credit."""
        return memory

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

    def begin_rollout(self, memory: Memory, tokens: Tokens) -> Memory:
        """The memory for a rollout, given its tokens as the policy that sampled saw them (new is old)."""
        return memory

    def next_memory(self, memory: Memory, entropy: float) -> Memory:
        """The memory after an optimiser step, given the mean entropy of its tokens before it, in nats."""
        return memory

    def loss_terms(self, tokens: Tokens) -> LossTerms:
        """Every rule applied to some tokens. Raises SteerError where one gives NaN, infinity or a negative weight."""
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
        return LossTerms(advantages, weights, extra)


@settings(config=STRICT, kw_only=True, frozen=True)
class Outside(Intervention):
    """A method of another package, by its name and its settings as they are written: nothing of it is imported."""

    written: dict[str, Any] = Field(default_factory=dict)
    """Its settings."""

    @model_serializer
    def as_written(self) -> dict[str, Any]:
        """The section of a configuration."""
        return {"name": self.name, **self.written}
