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

import pandas as pd
import torch
from torch import Tensor

from steer_core.entropy_change import ENTROPY_CHANGE, QUADRANTS, push, quadrants
from steer_core.errors import SteerError
from steer_core.ladder import (
    Direction,
    Lens,
    Step,
    derivative,
    gradient,
    require_finite,
    statistics,
    taken_step,
)
from steer_core.loss import ClipRange
from steer_core.token_stats import TokenStats

RUNGS = (*ENTROPY_CHANGE, "output_layer", "first_order")
"""Every estimate of the change at a state, from cheap to exact; columns of the token table."""


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
    seconds: of each rung, and of the training step (forward, backward, step) that they describe.
    """

    tokens: pd.DataFrame
    totals: dict[str, float]
    seconds: dict[str, float]


def attribute(batch: UpdateBatch, optimizer: torch.optim.Optimizer) -> Attribution:
    """Take the optimiser's step on the batch, read every rung of the ladder, put everything back.

    totals: `measured`, `first_order` and `output_layer` (mean over targets), `influence` and
    `output_layer_influence` (sum over sources), `carried`, and what is left: `residual` =
    first_order - influence - carried and `output_layer_residual` (both rounding), `higher_order` =
    measured - first_order. Raises SteerError for logits that are not finite and for a step that does
    not move (every advantage 0).
    """
    lens, clock = batch.lens, _Clock()
    new = clock("values", lambda: require_finite(statistics(lens)))
    old = batch.old or new
    pushed_N = batch.coefficient_N * push(new, old, batch.advantages_N, batch.clip)
    if not pushed_N.any():
        raise SteerError("advantages: 0 at every token that the clip lets through; nothing is learnt from this batch")
    ascent = clock("backward", lambda: gradient(lens, pushed_N))
    scale = _clip_scale(ascent, batch.max_grad_norm)
    ascent, pushed_N = {name: scale * g for name, g in ascent.items()}, scale * pushed_N

    began = time.perf_counter()
    with taken_step(lens.model, optimizer, ascent) as step:
        clock.seconds["step"] = time.perf_counter() - began
        measured_N = clock("measured", lambda: statistics(lens)).entropy - new.entropy
    first_N = clock("first_order", lambda: derivative(lens, step.update)[1])
    influence_N, entropy_gradient = clock("influence", lambda: influence(lens, pushed_N, step))
    head = replace(lens, output_layer=True)
    head_step = step_of_output_layer(head, step, pushed_N)
    head_N = clock("output_layer", lambda: derivative(head, head_step.update)[1])
    head_influence_N, _ = influence(head, pushed_N, head_step)

    forms = {}
    rate = optimizer.param_groups[0]["lr"] * scale * batch.coefficient_N
    for name, form in ENTROPY_CHANGE.items():
        values = clock(name, lambda form=form: form(new, old, batch.advantages_N, batch.clip))
        forms[name] = rate * values
    carried = float(sum((entropy_gradient[name] * step.carried[name]).sum() for name in step.carried))
    columns = {
        **_places(batch, new),
        **forms,
        "output_layer": head_N,
        "first_order": first_N,
        "measured": measured_N,
        "influence": influence_N,
        "output_layer_influence": head_influence_N,
    }
    tokens = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
    tokens["quadrant"] = tokens["quadrant"].map(dict(enumerate(QUADRANTS)) | {-1: "no_signal"})
    totals = {
        "measured": float(measured_N.mean()),
        "first_order": float(first_N.mean()),
        "influence": float(influence_N.sum()),
        "carried": carried,
        "output_layer": float(head_N.mean()),
        "output_layer_influence": float(head_influence_N.sum()),
        "gradient_scale": scale,
    }
    totals["residual"] = totals["first_order"] - totals["influence"] - carried
    totals["output_layer_residual"] = totals["output_layer"] - totals["output_layer_influence"]
    totals["higher_order"] = totals["measured"] - totals["first_order"]
    return Attribution(tokens, totals, clock.seconds)


def influence(lens: Lens, pushed_N: Tensor, step: Step) -> tuple[Tensor, Direction]:
    """(each token's share of the step's first-order effect on the batch's mean entropy (N,); its gradient).

    pushed_N: each token's factor in the ascent direction, gradient clipping included. The shares add
    up to that effect less what the step carried. Cost: one backward and one forward-mode pass.
    """
    states = len(pushed_N)
    uniform_N = torch.full_like(pushed_N, 1 / states)
    entropy_gradient = gradient(lens, on_entropy_N=uniform_N)
    direction = {name: step.preconditioner[name] * g for name, g in entropy_gradient.items()}
    return pushed_N * derivative(lens, direction)[0], entropy_gradient


def step_of_output_layer(head: Lens, step: Step, pushed_N: Tensor) -> Step:
    """The part of a step that the output layer takes by its own gradient, the preconditioner kept (rung b).

    A layer tied to the embedding moves by the output layer's share of the gradient alone.
    """
    names = {id(p): name for name, p in head.model.named_parameters()}
    preconditioner = {name: step.preconditioner[names[id(p)]] for name, p in head.parameters().items()}
    ascent = gradient(head, pushed_N)
    update = {name: preconditioner[name] * g for name, g in ascent.items()}
    return Step(update, preconditioner, {name: torch.zeros_like(g) for name, g in update.items()})


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
    quadrant = torch.full_like(sequence, -1)
    for i, inside in enumerate(quadrants(new, batch.advantages_N).values()):
        quadrant[inside] = i
    return {
        "group": batch.group_N,
        "sequence": sequence,
        "position": position,
        "token": batch.lens.labels_N,
        "advantage": batch.advantages_N,
        "logprob": new.logprob,
        "entropy": new.entropy,
        "quadrant": quadrant,
    }


def _clip_scale(ascent: Direction, max_norm: float | None) -> float:
    """What gradient clipping multiplies the step by; the same small constant as torch's in its denominator."""
    if max_norm is None:
        return 1.0
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in ascent.values()])))
    return min(1.0, max_norm / (norm + 1e-6))


class _Clock:
    """Seconds of each named piece of work, the device waited for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable):
        began = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - began
        return result
