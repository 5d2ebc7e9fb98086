"""STEER as a policy loss of verl 0.9. Importing this module registers it; verl does that by its own settings:

    actor_rollout_ref.model.external_lib=steer_core.integrations.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=steer
    actor_rollout_ref.actor.calculate_entropy=True

The settings are those of `steer_core.interventions.steer.Steer`, with its defaults. verl's own section
takes no key that it does not know, so to change one, name the section's class as well:

    actor_rollout_ref.actor.policy_loss._target_=steer_core.integrations.verl.SteerPolicyLossConfig
    +actor_rollout_ref.actor.policy_loss.steer.lambda_min=0.6

Clipping (clip_ratio_low, clip_ratio_high, clip_ratio_c), rollout importance weights, reduction and
metrics are those of verl's `vanilla` loss: lambda multiplies each token's loss after the clip, before
the reduction. With lambda_min=1 it is `vanilla` bit for bit. The estimate of the entropy change sees
the token's whole factor: A times its rollout importance weight, where there is one.

verl hands a registered loss no entropy and no more than a micro-batch. `BaseEngine.train_batch`, which
every engine inherits, is therefore wrapped: for this loss alone it keeps the entropy that the actor
computed within reach, and with scope `step` it first takes a values pass over the mini-batch (one more
forward pass), whose normaliser holds for all micro-batches and data-parallel ranks. Scope `micro` costs
nothing, and the weights depend on the micro-batch. What verl's structure does not allow is refused:
scope `rollout` and form `released` (the actor is not given the entropies of the policy that sampled),
form `exact` (no sum of p^2 ln p), form `covariance` with scope `step` (its means are a micro-batch's).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.common.settings import build
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.steer import Steer

_INSTALL = "pip install -c constraints.txt -e '.[parity]'"
try:
    import verl
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, register_policy_loss
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
"""Settings of `Steer` that verl's structure does not allow: reason and remedy."""

Loss = Callable[..., tuple[Tensor, dict[str, Any]]]


@dataclass
class SteerPolicyLossConfig(PolicyLossConfig):
    """verl's policy_loss section with the settings of `Steer` below `steer`; refused when verl reads them."""

    steer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steer and self.loss_mode != LOSS_MODE:
            raise SteerError(
                f"{ACTOR}.policy_loss.loss_mode: {self.loss_mode!r} takes no settings of STEER; "
                f"set it to {LOSS_MODE}, or drop {SECTION}"
            )
        steer_settings(self)


def steer_settings(policy_loss: PolicyLossConfig) -> Steer:
    """The settings of a policy_loss section; defaults where it has no `steer`. Raises SteerError for what cannot be."""
    try:
        steer = build(Steer, dict(policy_loss.get("steer") or {}), SECTION)
    except SteerError as error:
        raise SteerError(str(error).replace("intervention.", f"{SECTION}.", 1)) from error
    for (key, value), reason in REFUSED.items():
        if getattr(steer, key) == value:
            raise SteerError(f"{SECTION}.{key}: {value} {reason}")
    if (steer.form, steer.scope) == ("covariance", "step"):
        raise SteerError(
            f"{SECTION}.scope: step is not for form covariance, whose means are a micro-batch's; use micro"
        )
    return steer


class _Step:
    """verl's loss for one optimiser step, with what verl does not hand to the registered loss inside it.

    entropy: of the micro-batch in hand, (B, T) nats. changes: while the values pass runs, each
    micro-batch's entropy changes, flat. scale: the step's normaliser, None where each micro-batch has its own.
    """

    def __init__(self, loss: Loss, steer: Steer) -> None:
        self.loss, self.steer = loss, steer
        self.entropy: Tensor | None = None
        self.changes: list[Tensor] | None = None
        self.scale: float | None = None

    def __call__(self, *args, **kwargs) -> tuple[Tensor, dict[str, Any]]:
        """What the loss gives, called as an engine calls it: (model_output, data, dp_group) by keyword."""
        entropy = (kwargs.get("model_output") or {}).get("entropy")
        self.entropy = None if entropy is None else no_padding_2_padding(entropy, kwargs["data"]).detach()
        token = _current.set(self)
        try:
            return self.loss(*args, **kwargs)
        finally:
            _current.reset(token)
            self.entropy = None

    def plan(self, engine: BaseEngine, data: Any) -> None:
        """Take the values pass: the normaliser over the mini-batch, all micro-batches and data-parallel ranks."""
        self.changes = []
        engine.infer_batch(data, self)
        changes, self.changes = self.changes, None
        if changes:  # the last stage of a pipeline; the others see no token
            self.scale = float(self.steer.scale(self._of_all_ranks(torch.cat(changes), engine)))

    def _of_all_ranks(self, change: Tensor, engine: BaseEngine) -> Tensor:
        """The changes of the data-parallel ranks, or as much of them as the normaliser needs."""
        if self.steer.normaliser == "max" and len(change):
            change = change.abs().max()[None]
        group = engine.get_data_parallel_group() if dist.is_initialized() else None
        if group is None or dist.get_world_size(group) == 1:
            return change
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, change.cpu(), group)
        return torch.cat(parts)


_current: ContextVar[_Step | None] = ContextVar("steer_step", default=None)


@register_policy_loss(LOSS_MODE)
def steer_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """(loss, metrics) of a micro-batch: verl's vanilla loss with each token's loss times lambda. All shapes (B, T).

    The metrics are vanilla's, and over the micro-batch's response tokens: mean, smallest and share
    near 1 of lambda, and the normaliser. verl averages them over micro-batches and ranks.
    Raises SteerError where the actor computed no entropy, and where an entropy change is not finite.
    """
    step = _current.get()
    if step is None:
        raise SteerError(
            f"{ACTOR}.policy_loss.loss_mode: {LOSS_MODE} was called outside of an engine's train_batch, where it "
            "gets no entropy; train through verl's TrainingWorker"
        )
    if step.entropy is None:
        raise SteerError(
            f"{ACTOR}.calculate_entropy: {config.calculate_entropy} leaves the loss without entropies; set it to True"
        )
    mask = response_mask.bool()
    factors = advantages if rollout_is_weights is None else advantages * rollout_is_weights
    change = step.steer.change(
        _stats(log_prob.detach()[mask], step.entropy[mask]),
        _stats(old_log_prob[mask]),
        _real(factors[mask]),
        _clip_range(config),
    )
    if not change.isfinite().all():
        raise SteerError(
            f"{ACTOR}.optim.lr: the entropy changes of this step are not finite, because log-probs, entropies or "
            "advantages are not; lower it"
        )
    if step.changes is not None:
        step.changes.append(change)
        return log_prob.new_zeros(()), {}
    scale = step.steer.scale(change) if step.scale is None else change.new_tensor(step.scale)
    lambdas = step.steer.lambdas(change, scale)
    weights = torch.ones_like(log_prob).masked_scatter_(mask, lambdas.to(log_prob.dtype))
    loss, metrics = compute_policy_loss_vanilla(
        old_log_prob,
        log_prob,
        advantages,
        response_mask,
        loss_agg_mode,
        config,
        weights if rollout_is_weights is None else weights * rollout_is_weights,
    )
    return loss, {**metrics, **_lambda_metrics(lambdas, scale)}


def _stats(logprob: Tensor, entropy: Tensor | None = None) -> TokenStats:
    """What verl knows of some tokens, in float32 or more; NaN for what it does not."""
    logprob = _real(logprob)
    unknown = torch.full_like(logprob, torch.nan)
    return TokenStats(logprob, unknown if entropy is None else _real(entropy), unknown, unknown)


def _real(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _clip_range(config: ActorConfig) -> ClipRange:
    """verl's three bounds; clip_ratio where one side is null, as in verl."""
    low, high = (config.clip_ratio if x is None else x for x in (config.clip_ratio_low, config.clip_ratio_high))
    return ClipRange(low, high, config.clip_ratio_c)


def _lambda_metrics(lambdas: Tensor, scale: Tensor) -> dict[str, float]:
    if not len(lambdas):  # all masked; verl wants the same metrics of every micro-batch
        lambdas = lambdas.new_ones(1)
    return {
        "actor/lambda/mean": float(lambdas.mean()),
        "actor/lambda/q0": float(lambdas.min()),
        "actor/lambda/share_within_1pct_of_1": float(((lambdas - 1).abs() <= 0.01).float().mean()),
        "actor/entropy_change/normaliser": float(scale),
    }


def _with_entropy(train_batch: Callable) -> Callable:
    """`BaseEngine.train_batch` that keeps the entropy within reach where the loss is STEER's; else unchanged."""

    @functools.wraps(train_batch)
    def wrapped(engine: BaseEngine, data: Any, loss_function: Loss) -> Any:
        policy_loss = getattr(getattr(loss_function, "keywords", {}).get("config"), "policy_loss", None)
        if policy_loss is None or policy_loss.get("loss_mode") != LOSS_MODE:
            return train_batch(engine, data, loss_function)
        step = _Step(loss_function, steer_settings(policy_loss))
        if step.steer.scope == "step":
            step.plan(engine, data)
        return train_batch(engine, data, step)

    return wrapped


BaseEngine.train_batch = _with_entropy(BaseEngine.train_batch)
