"""Which tokens of an update move entropy, and where: every rung of the ladder, token by token.

A token is a target, whose state's entropy changes by dH_t, and a source, whose push moved every
state. To first order the mean entropy of N states changes by

    mean_t dH_t = sum_s influence_s + carried,      influence_s = push_s D_s,

with D_s the derivative of ln p(a_s) along P g, g the gradient of the mean entropy, P the optimiser's
preconditioner, push_s the token's share of the loss's ascent direction, and carried = <g, carried
step> what momentum and decay add. One backward pass (g) and one forward-mode pass (D) give it all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

import pandas as pd
import torch
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.formulas.entropy_change import ENTROPY_CHANGE, QUADRANTS, quadrant_index, surrogate_slope
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.ladder.passes import Direction, Lens, derivative, gradient, length, lens_stats, require_finite
from steer_core.ladder.real_step import RealStep, taken_step

Given = ParamSpec("Given")
T = TypeVar("T")
RUNGS = (*ENTROPY_CHANGE, "output_layer", "first_order")
"""Every estimate of the change at a state, from cheap to exact; columns of the token table."""
RUNG_TITLES = {
    "paper": "paper (STEER)",
    "released": "released code",
    "exact": "exact (one state)",
    "covariance": "covariance",
    "output_layer": "output layer",
    "first_order": "first order",
}
"""What figures and captions call them."""


@dataclass(frozen=True)
class UpdateBatch:
    """The tokens an optimiser step is made of, flat (N,), and how they enter its loss.

    group_N: index of the prompt. old: of the policy that sampled; None where it is the lens's own.
    coefficient_N: factor of each token's surrogate in the loss (`loss.token_coefficients`, times
    lambda where weights are used). max_grad_norm: gradient clipping of the step; None for none.
    """

    lens: Lens
    group_N: Tensor
    old: TokenStats | None
    advantages_N: Tensor
    coefficient_N: Tensor
    clip: ClipRange
    max_grad_norm: float | None = None


@dataclass(frozen=True)
class Attribution:
    """What one step did to the entropies of its own batch.

    tokens: one row a token: group, sequence, position, token, advantage, logprob, entropy, quadrant;
    the predicted change at its state by every rung of RUNGS and the measured one (nats); and, as a
    source, its influence and its output-layer influence on the batch's mean entropy (nats).
    totals: changes of the mean entropy, and the residuals of the sums; see `attribute`.
    seconds: of each piece of work.
    """

    tokens: pd.DataFrame
    totals: dict[str, float]
    seconds: dict[str, float]


def attribute(batch: UpdateBatch, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Attribution]:
    """For each optimiser: take its step on the batch, read every rung of the ladder, put everything back.

    What does not depend on the optimiser (values and gradients at the point of departure) is made once.
    totals: `measured`, `first_order` and `output_layer` (mean over targets), `influence` and
    `output_layer_influence` (sum over sources), `carried`, and what is left: `residual` =
    first_order - influence - carried and `output_layer_residual` (both rounding), `higher_order` =
    measured - first_order. Raises SteerError for logits that are not finite, before a step or after
    it, for a step that moves no weight, and for a batch that teaches nothing (every advantage 0).
    """
    lens, clock = batch.lens, _Clock()
    head = replace(lens, output_layer=True)
    new = clock("values", lambda: require_finite(lens_stats(lens)))
    old = batch.old or new
    slope_N = batch.coefficient_N * surrogate_slope(new, old, batch.advantages_N, batch.clip)
    if not slope_N.any():
        raise SteerError("advantages: 0 at every token that the clip lets through; nothing is learnt from this batch")
    ascent = clock("backward", gradient, lens, slope_N)
    scale = _clip_scale(ascent, batch.max_grad_norm)
    ascent, slope_N = {name: scale * g for name, g in ascent.items()}, scale * slope_N
    entropy_gradient = clock("entropy_gradient", mean_entropy_gradient, lens)
    head_ascent = clock("output_layer_backward", gradient, head, slope_N)
    head_entropy_gradient = mean_entropy_gradient(head)
    forms = {name: clock(name, form, new, old, batch.advantages_N, batch.clip) for name, form in ENTROPY_CHANGE.items()}
    results = {}
    for label, optimizer in optimizers.items():
        own = _Clock(clock.seconds)
        began = time.perf_counter()
        with taken_step(lens.model, optimizer, ascent) as step:
            own.seconds["step"] = _seconds_since(began)
            after = own("measured", lens_stats, lens)
        if not after.entropy.isfinite().all():
            raise SteerError(f"update {label}: its step leads to NaN or infinite logits; take a smaller step size")
        if not any(bool(change.any()) for change in step.update.values()):
            raise SteerError(
                f"update {label}: its step moves no weight, for it is too small for their precision; take a larger "
                "step size, or model.dtype=float64"
            )
        head_step = step_of_output_layer(head, step, head_ascent)
        rate = optimizer.param_groups[0]["lr"] * scale * batch.coefficient_N
        columns = {
            **_places(batch, new),
            **{name: rate * values for name, values in forms.items()},
            "output_layer": own("output_layer", derivative, head, head_step.update)[1],
            "first_order": own("first_order", derivative, lens, step.update)[1],
            "measured": after.entropy - new.entropy,
            "influence": own("influence", influence, lens, slope_N, step, entropy_gradient),
            "output_layer_influence": influence(head, slope_N, head_step, head_entropy_gradient),
        }
        tokens = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
        tokens["quadrant"] = tokens["quadrant"].map(dict(enumerate(QUADRANTS)) | {-1: "no_signal"})
        carried = float(sum((entropy_gradient[name] * g).sum() for name, g in step.carried.items()))
        results[label] = Attribution(tokens, _totals(tokens, carried, scale), own.seconds)
    return results


def _totals(tokens: pd.DataFrame, carried: float, scale: float) -> dict[str, float]:
    means, sums = tokens[["measured", "first_order", "output_layer"]].mean(), tokens.filter(like="influence").sum()
    totals = {**means, **sums, "carried": carried, "gradient_scale": scale}
    totals["residual"] = totals["first_order"] - totals["influence"] - carried
    totals["output_layer_residual"] = totals["output_layer"] - totals["output_layer_influence"]
    totals["higher_order"] = totals["measured"] - totals["first_order"]
    return {name: float(value) for name, value in totals.items()}


def mean_entropy_gradient(lens: Lens) -> Direction:
    """The gradient of the mean entropy over the lens's response tokens, nats per unit of each parameter."""
    count = len(lens.labels_N)
    return gradient(
        lens, on_entropy_N=torch.full((count,), 1 / count, device=lens.model.device, dtype=lens.model.dtype)
    )


def influence(lens: Lens, slope_N: Tensor, step: RealStep, entropy_gradient: Direction) -> Tensor:
    """Each token's share (N,) of the step's first-order effect on the batch's mean entropy, nats.

    slope_N: each token's factor in the ascent direction, gradient clipping included. The shares add
    up to that effect less what the step carried. Cost, beside the gradient: one forward-mode pass.
    """
    direction = {name: step.preconditioner[name] * g for name, g in entropy_gradient.items()}
    return slope_N * derivative(lens, direction)[0]


def step_of_output_layer(head: Lens, step: RealStep, head_ascent: Direction) -> RealStep:
    """The part of a step that the output layer takes by its own gradient, the preconditioner kept (rung b).

    head_ascent: `gradient` of the output layer alone. A layer tied to the embedding moves by this share only.
    """
    names = {id(p): name for name, p in head.model.named_parameters()}
    preconditioner = {name: step.preconditioner[names[id(p)]] for name, p in head.parameters().items()}
    update = {name: preconditioner[name] * g for name, g in head_ascent.items()}
    return RealStep(update, preconditioner, {name: torch.zeros_like(g) for name, g in update.items()})


def contributions(tokens: pd.DataFrame, by: str) -> pd.DataFrame:
    """What each value of a column (quadrant, group, token) adds to the change of the mean entropy, in nats.

    As targets: measured, first_order, output_layer (sum over its states / N). As sources: influence,
    output_layer_influence. Every column adds up to the batch's total. Raises SteerError for another column.
    """
    if by not in tokens:
        raise SteerError(f"by: {by!r} is no column of the token table; known: {', '.join(tokens.columns)}")
    groups, states = tokens.groupby(by), len(tokens)
    targets = groups[["measured", "first_order", "output_layer"]].sum() / states
    sources = groups[["influence", "output_layer_influence"]].sum()
    return pd.concat([groups.size().rename("tokens"), targets, sources], axis=1)


def _places(batch: UpdateBatch, new: TokenStats) -> dict[str, Tensor]:
    """Where each token stands, and the four factors of its own state."""
    mask = batch.lens.sequences.response_mask_BT.bool()
    sequence, position = mask.nonzero(as_tuple=True)
    return {
        "group": batch.group_N,
        "sequence": sequence,
        "position": position,
        "token": batch.lens.labels_N,
        "advantage": batch.advantages_N,
        "logprob": new.logprob,
        "entropy": new.entropy,
        "quadrant": quadrant_index(new, batch.advantages_N),
    }


def _clip_scale(ascent: Direction, max_norm: float | None) -> float:
    """What gradient clipping multiplies the step by; the same small constant as torch's in its denominator."""
    if max_norm is None:
        return 1.0
    return min(1.0, max_norm / (length(ascent) + 1e-6))


class _Clock:
    """Seconds of each named piece of work, the device waited for."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    def __call__(self, name: str, work: Callable[Given, T], *given: Given.args, **named: Given.kwargs) -> T:
        began = time.perf_counter()
        result = work(*given, **named)
        self.seconds[name] = _seconds_since(began)
        return result


def _seconds_since(began: float) -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began
