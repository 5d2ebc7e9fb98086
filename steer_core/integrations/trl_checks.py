"""Which settings of TRL leave a method without meaning; each is refused with the setting, its value and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer_core.common.errors import SteerError
from steer_core.formulas.loss import ClipRange
from steer_core.integrations.support import refusal_in_trl
from steer_core.interventions.base import Intervention

if TYPE_CHECKING:
    from trl import GRPOConfig

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
"""TRL's `loss_type`s whose per-token loss is the clipped surrogate; they differ in the reduction."""


def check_settings(args: GRPOConfig, method: Intervention, argument: str = "intervention") -> None:
    """Raise SteerError where TRL cannot give what a method needs, or its settings leave it without meaning.

    argument: that of the trainer which names the method.
    """
    if not isinstance(method, Intervention):
        raise SteerError(f"{argument}: {method!r} is no method; give one such as Steer() or KLCov()")
    reason = refusal_in_trl(method)
    if reason is not None:
        raise SteerError(f"{argument}.name: {method.name} {reason}")
    _check_loss(args, method)
    _check_clip(args, method)
    _check_steps(args, method, argument)


def clip_range_of(args: GRPOConfig) -> ClipRange:
    """TRL's three bounds; epsilon on both sides where epsilon_high is None, as in TRL."""
    return ClipRange(args.epsilon, args.epsilon if args.epsilon_high is None else args.epsilon_high, args.delta)


def _check_loss(args: GRPOConfig, method: Intervention) -> None:
    if args.loss_type not in LOSS_TYPES:
        raise SteerError(
            f"loss_type: {args.loss_type!r} has no token-level clipped loss to weight; use {' or '.join(LOSS_TYPES)}"
        )
    if args.importance_sampling_level != "token":
        raise SteerError(
            f"importance_sampling_level: {args.importance_sampling_level!r} gives a sequence one ratio and one clip, "
            f"and {method.name} acts on tokens; use token"
        )
    if args.use_liger_kernel:
        raise SteerError(
            f"use_liger_kernel: True is untested with {method.name} (TRL is giving it up, and Liger's fused loss has "
            "no entropies); use False"
        )
    if args.top_entropy_quantile < 1:
        raise SteerError(
            f"top_entropy_quantile: {args.top_entropy_quantile} leaves tokens out of the loss that {method.name} "
            "would count; use 1.0 (the same rule is the method fork-tokens)"
        )
    if args.off_policy_mask_threshold is not None:
        raise SteerError(
            f"off_policy_mask_threshold: {args.off_policy_mask_threshold} leaves sequences out of the loss that "
            f"{method.name} would count; use None"
        )


def _check_clip(args: GRPOConfig, method: Intervention) -> None:
    clip = method.clip_range(clip_range_of(args))
    if clip.dual is not None and clip.dual < 1 + clip.high:
        high = "epsilon_high" if clip.high == clip_range_of(args).high else f"the upper clip bound of {method.name}"
        raise SteerError(
            f"delta: {args.delta} is below 1 + {high} ({1 + clip.high:g}), where it is no dual clip; raise it, or use "
            "None"
        )


def _check_steps(args: GRPOConfig, method: Intervention, argument: str) -> None:
    sampled = args.steps_per_generation * args.num_iterations
    if method.scope == "step" and sampled % args.gradient_accumulation_steps:
        other = "use scope micro" if "scope" in vars(method) else "take another method"
        raise SteerError(
            f"{argument}.scope: step needs all responses of an optimiser step before it begins, and "
            f"gradient_accumulation_steps ({args.gradient_accumulation_steps}) does not divide steps_per_generation x "
            f"num_iterations ({sampled}); leave steps_per_generation at its default, or {other}"
        )
