"""Any method as a policy loss of verl 0.9. Importing this module registers them; verl does that by its own settings:

    actor_rollout_ref.model.external_lib=steer_core.integrations.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=steer
    actor_rollout_ref.actor.calculate_entropy=True

`loss_mode=steer` is STEER, `loss_mode=steer:kl-cov` another method by its name. The settings are the method's own,
with its defaults. verl's own section takes no key that it does not know, so to change one, or to name a method of
your own (`steer:module:Class`), name the section's class as well:

    actor_rollout_ref.actor.policy_loss._target_=steer_core.integrations.verl.SteerPolicyLossConfig
    +actor_rollout_ref.actor.policy_loss.steer.lambda_min=0.6

Clipping (clip_ratio_low, clip_ratio_high, clip_ratio_c), rollout importance weights, reduction and metrics are those
of verl's `vanilla` loss: a method's weight multiplies each token's loss after the clip, before the reduction; its
advantages and its clip range take the place of verl's, and its extra term is added under the same reduction. With
lambda_min=1 STEER is `vanilla` bit for bit. A method sees the token's whole factor: A times its rollout importance
weight, where there is one.

verl hands a registered loss no entropy and no more than a micro-batch. `BaseEngine.train_batch`, which every engine
inherits, is therefore wrapped: for these losses alone it keeps the entropy that the actor computed within reach, and
with scope `step` it first takes a values pass over the mini-batch (one more forward pass), so that the method sees
all micro-batches and data-parallel ranks. Other scopes cost nothing; with `micro` the weights depend on the
micro-batch. What a closed loop remembers is kept in the actor's process, and not in verl's checkpoints: a run that is
resumed starts it anew. What verl's structure does not allow is refused with the reason (`support.py`): methods that
look at responses, at whole rollouts or at the entropies of the policy that sampled, that differentiate the step, or
follow a schedule.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.common.settings import build
from steer_core.formulas.token_stats import TokenStats
from steer_core.integrations.support import refusal_in_verl
from steer_core.integrations.verl_parts import InVerl, clip_range_of, clipping_as, part_of, weight_metrics
from steer_core.interventions import METHODS, method
from steer_core.interventions.base import Intervention, LossTerms
from steer_core.training.batch import MicroBatch, spread

_INSTALL = "pip install -c constraints.txt -e '.[parity]'"
try:
    import verl
    from verl.trainer.ppo.core_algos import (
        POLICY_LOSS_REGISTRY,
        agg_loss,
        compute_policy_loss_vanilla,
        register_policy_loss,
    )
    from verl.workers.config import ActorConfig, PolicyLossConfig
    from verl.workers.engine.base import BaseEngine
    from verl.workers.utils.padding import no_padding_2_padding
except ModuleNotFoundError as error:
    raise SteerError(f"verl: 0.9 is not installed ({error}); {_INSTALL}") from error

OLDEST_VERL = "0.9"
if Version(verl.__version__) < Version(OLDEST_VERL):
    raise SteerError(f"verl: {verl.__version__} is older than {OLDEST_VERL}; {_INSTALL}")

LOSS_MODE = "steer"
ACTOR = "actor_rollout_ref.actor"
SECTION = f"{ACTOR}.policy_loss.steer"
REFUSED = {
    ("form", "exact"): "needs the sum of p^2 ln p, which verl's actor does not compute; use paper",
    ("form", "released"): "needs the entropies of the policy that sampled, which verl's actor is not given; use paper",
    ("scope", "rollout"): "needs the entropies of the policy that sampled, which verl's actor is not given; use step",
}
"""Settings of STEER that verl's structure does not allow: reason and remedy."""

Loss = Callable[..., tuple[Tensor, dict[str, Any]]]


@dataclass
class SteerPolicyLossConfig(PolicyLossConfig):
    """verl's policy_loss section with the settings of the method below `steer`; refused when verl reads them."""

    steer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if method_name(self.loss_mode) is None:
            if self.steer:
                raise SteerError(
                    f"{ACTOR}.policy_loss.loss_mode: {self.loss_mode!r} takes no settings of STEER; "
                    f"set it to {LOSS_MODE}, or drop {SECTION}"
                )
            return
        steer_settings(self)
        if self.loss_mode not in POLICY_LOSS_REGISTRY:  # a method of another package
            register_policy_loss(self.loss_mode)(steer_policy_loss)


def method_name(loss_mode: Any) -> str | None:
    """The name of the method that a loss mode stands for; None for a loss that is none of ours."""
    first, separator, rest = str(loss_mode).partition(":")
    if first != LOSS_MODE:
        return None
    return rest if separator else LOSS_MODE


def steer_settings(policy_loss: PolicyLossConfig) -> Intervention:
    """The method of a policy_loss section with its settings; defaults where it has no `steer`.

    Raises SteerError for what cannot be.
    """
    mode = policy_loss.get("loss_mode")
    name = method_name(mode)
    try:
        kind = method(LOSS_MODE if name is None else name)
        found = build(kind, {"name": kind.name, **dict(policy_loss.get("steer") or {})}, SECTION)
    except SteerError as error:
        told = str(error).replace("intervention.name:", f"{ACTOR}.policy_loss.loss_mode:", 1)
        raise SteerError(told.replace("intervention.", f"{SECTION}.", 1)) from error
    for (key, value), reason in REFUSED.items():
        if getattr(found, key, None) == value and key in vars(found):
            raise SteerError(f"{SECTION}.{key}: {value} {reason}")
    reason = refusal_in_verl(found)
    if reason is not None:
        raise SteerError(f"{ACTOR}.policy_loss.loss_mode: {mode} {reason}")
    return found


class _Step:
    """verl's loss for one optimiser step, with what verl does not hand to the registered loss inside it.

    entropy: of the micro-batch in hand, (B, T) nats, with gradient. seen: statistics of the micro-batches so far.
    planned: what enters the loss of the micro-batches to come, None where each is seen alone. valuing: whether the
    values pass runs.
    """

    def __init__(self, loss: Loss, active: InVerl) -> None:
        self.loss, self.active = loss, active
        self.entropy: Tensor | None = None
        self.seen: list[tuple[TokenStats, MicroBatch]] = []
        self.planned: deque[tuple[MicroBatch, LossTerms]] | None = None
        self.valuing = False

    def __call__(self, *args, **kwargs) -> tuple[Tensor, dict[str, Any]]:
        """What the loss gives, called as an engine calls it: (model_output, data, dp_group) by keyword."""
        entropy = (kwargs.get("model_output") or {}).get("entropy")
        self.entropy = None if entropy is None else no_padding_2_padding(entropy, kwargs["data"])
        token = _current.set(self)
        try:
            return self.loss(*args, **kwargs)
        finally:
            _current.reset(token)
            self.entropy = None

    def plan(self, engine: BaseEngine, data: Any) -> None:
        """Take the values pass: what enters the loss, given the mini-batch, all micro-batches and ranks."""
        self.valuing = True
        engine.infer_batch(data, self)
        self.valuing = False
        seen, self.seen = self.seen, []
        if seen:  # the last stage of a pipeline; the others see no token
            stats, parts = map(list, zip(*seen, strict=True))
            self.planned = deque(zip(parts, self.active.terms(stats, parts), strict=True))

    def terms(self, new: TokenStats, part: MicroBatch) -> LossTerms:
        """What enters the loss of a micro-batch. Raises SteerError where the values pass came by in another order."""
        self.seen.append((new, part))
        if self.planned is None:
            return self.active.terms([new], [part])[0]
        before, terms = self.planned.popleft()
        if not torch.equal(before.old.logprob, part.old.logprob):
            raise SteerError(
                f"{ACTOR}.policy_loss.loss_mode: this engine takes the micro-batches of a values pass in another order "
                "than it trains on them; use a method of scope token (STEER: scope micro)"
            )
        return terms

    def end(self) -> None:
        """Let a closed loop see the step."""
        if self.seen and self.active.remembers:
            self.active.end_step(*map(list, zip(*self.seen, strict=True)))


_current: ContextVar[_Step | None] = ContextVar("steer_step", default=None)


def steer_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """(loss, metrics) of a micro-batch: verl's vanilla loss as the method in force has it. All shapes (B, T).

    The metrics are vanilla's, and over the micro-batch's response tokens: mean, smallest and share near 1 of the
    weights, STEER's normaliser, and what the method remembers. verl averages them over micro-batches and ranks.
    Raises SteerError where the actor computed no entropy, and where what the method reads is not finite.
    """
    step = _current.get()
    mode = "steer" if config is None else config.policy_loss.get("loss_mode")
    if step is None:
        raise SteerError(
            f"{ACTOR}.policy_loss.loss_mode: {mode} was called outside of an engine's train_batch, where it "
            "gets no entropy; train through verl's TrainingWorker"
        )
    if step.entropy is None:
        raise SteerError(
            f"{ACTOR}.calculate_entropy: {config.calculate_entropy} leaves the loss without entropies; set it to True"
        )
    active, mask = step.active, response_mask.bool()
    factors = advantages if rollout_is_weights is None else advantages * rollout_is_weights
    stats, part = part_of(log_prob, step.entropy, old_log_prob, factors, mask, active.draws(log_prob))
    new = stats.detach()
    if not (new.logprob + new.entropy + part.old.logprob + part.advantages_BT)[mask].isfinite().all():
        raise SteerError(
            f"{ACTOR}.optim.lr: the log-probs, entropies or advantages of this step are not finite; lower it"
        )
    if step.valuing:
        step.seen.append((new, part))
        return log_prob.new_zeros(()), {}
    terms = step.terms(new, part)
    weights = torch.ones_like(log_prob).masked_scatter_(mask, terms.weights.to(log_prob.dtype))
    if "advantages" in active.method.touches:
        advantages, rollout_is_weights = spread(terms.advantages, part, 0.0).to(log_prob.dtype), None
    loss, metrics = compute_policy_loss_vanilla(
        old_log_prob,
        log_prob,
        advantages,
        response_mask,
        loss_agg_mode,
        clipping_as(config, active.clip),
        weights if rollout_is_weights is None else weights * rollout_is_weights,
    )
    if terms.extra is not None:
        extra_BT = spread(terms.extra, part, 0.0) * active.method.extra_loss(stats, active.told(part.old))
        loss = loss + agg_loss(extra_BT, response_mask, loss_agg_mode, **config.global_batch_info)
    return loss, {**metrics, **weight_metrics(terms.weights), **active.metrics()}


for _name in METHODS:
    register_policy_loss(LOSS_MODE if _name == "steer" else f"{LOSS_MODE}:{_name}")(steer_policy_loss)
register_policy_loss(f"{LOSS_MODE}:steer")(steer_policy_loss)


def _with_entropy(train_batch: Callable) -> Callable:
    """`BaseEngine.train_batch` that keeps the entropy within reach where the loss is one of ours; else unchanged."""

    @functools.wraps(train_batch)
    def wrapped(engine: BaseEngine, data: Any, loss_function: Loss) -> Any:
        config = getattr(loss_function, "keywords", {}).get("config")
        policy_loss = getattr(config, "policy_loss", None)
        if policy_loss is None or method_name(policy_loss.get("loss_mode")) is None:
            return train_batch(engine, data, loss_function)
        step = _Step(loss_function, _in_force(engine, config))
        if step.active.method.scope == "step":
            step.plan(engine, data)
        outputs = train_batch(engine, data, step)
        step.end()
        return outputs

    return wrapped


def _in_force(engine: BaseEngine, config: ActorConfig) -> InVerl:
    """The method of an engine's actor, the same from step to step, so that it can remember."""
    found, clip = steer_settings(config.policy_loss), clip_range_of(config)
    active = getattr(engine, "steer_method", None)
    if active is None or active.method != found or active.clip != found.clip_range(clip):
        active = engine.steer_method = InVerl(found, clip, engine, config.data_loader_seed)
    return active


BaseEngine.train_batch = _with_entropy(BaseEngine.train_batch)
