"""The last rung: an optimiser step really taken, looked at, and put back bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.ladder.passes import Direction


@dataclass(frozen=True)
class RealStep:
    """One optimiser step that was taken. All three are directions; update = preconditioner * ascent + carried.

    update: new parameters minus old ones. preconditioner: what each entry of this batch's ascent
    direction was multiplied by. carried: what the step did besides (momentum of earlier batches, decay;
    and, relative to the parameters, the rounding of their precision).
    """

    update: Direction
    preconditioner: Direction
    carried: Direction


@contextmanager
def taken_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ascent: Direction) -> Iterator[RealStep]:
    """Take the optimiser's real step along `ascent`, and put everything back bit for bit at the end.

    ascent: minus the gradient of the loss (`gradient` with the tokens' pushes), for every trainable
    parameter. Inside, the model stands where the step led; outside, parameters, gradients and the
    optimiser's state are what they were. Raises SteerError for an optimiser other than Adam, AdamW or SGD.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _check_optimizer(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in parameters.items():
        if id(p) not in held or name not in ascent:
            lacking = "the optimiser" if id(p) not in held else "the ascent direction"
            raise SteerError(f"optimizer: {lacking} lacks the trainable parameter {name}; make it from all of them")
    before = {name: p.detach().clone() for name, p in parameters.items()}
    gradients = {name: p.grad for name, p in parameters.items()}
    state = copy.deepcopy(optimizer.state_dict())
    try:
        for name, p in parameters.items():
            p.grad = -ascent[name]
        optimizer.step()
        with torch.no_grad():
            update = {name: p - before[name] for name, p in parameters.items()}
            scale = {
                name: _preconditioner(p, group, optimizer.state[p])
                for group in optimizer.param_groups
                for name, p in parameters.items()
                if any(p is q for q in group["params"])
            }
            carried = {name: update[name] - scale[name] * ascent[name] for name in parameters}
        yield RealStep(update, scale, carried)
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(before[name])
                p.grad = gradients[name]
        optimizer.load_state_dict(state)


def _preconditioner(p: Tensor, group: dict, state: dict) -> Tensor:
    """d update / d ascent at fixed second moments, of the step just taken: eta for SGD, eta (1 - b1) / ... for Adam."""
    if "betas" not in group:
        return torch.full_like(p, group["lr"])
    (beta1, beta2), step = group["betas"], float(state["step"])
    root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
    return group["lr"] * (1 - beta1) / (1 - beta1**step) / root


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    kind = type(optimizer)
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        raise SteerError(f"optimizer: {kind.__name__} is not known here; use torch.optim's SGD, Adam or AdamW")
    for group in optimizer.param_groups:
        if not group["lr"] > 0:
            raise SteerError(f"optimizer.learning_rate: {group['lr']} is not above 0; give a positive step size")
        for name in ("nesterov", "amsgrad", "maximize", "dampening"):
            if group.get(name):
                raise SteerError(f"optimizer.{name}: {group[name]} is not accounted for here; switch it off")
