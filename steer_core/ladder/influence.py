"""How much each token of a step moves the mean entropy, through the parameters that all tokens share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steer_core.common import ranks
from steer_core.ladder.passes import Lens, derivative, gradient


def step_size(optimizer: torch.optim.Optimizer) -> float:
    """What a weighted sum of influences is multiplied by in a step's change of the mean entropy, to first order.

    The learning rate; under Adam times sqrt(1 - beta2^t), t steps taken, because `entropy_influence` leaves the
    correction of v's bias out. Momentum spreads the change over later steps, and clipping of gradients shortens it.
    """
    group = optimizer.param_groups[0]
    state = optimizer.state.get(group["params"][0], {})
    if "exp_avg_sq" not in state:
        return float(group["lr"])
    return float(group["lr"] * math.sqrt(1 - group["betas"][1] ** float(state["step"])))


def entropy_influence(lenses: Sequence[Lens], optimizer: torch.optim.Optimizer, tokens: int) -> Tensor:
    """D (N,): derivative of each token's log-prob along the preconditioned gradient of the mean entropy.

    lenses: one a micro-batch of this rank. tokens: how many the mean is over, those of all ranks, which
    is N too: every rank gets the tokens of all, rank by rank.

    The preconditioner is that of the optimiser before the step, 1 / (sqrt(v) + eps) for Adam without
    its bias correction; 1 for SGD and before Adam's first step. The step's own differs by this
    batch's gradient in v, by how the correction weighs against eps, and by a factor all tokens share.
    """
    total: dict[str, Tensor] = {}
    for lens in lenses:
        on_entropy = torch.full((len(lens.labels_N),), 1 / tokens, device=lens.model.device, dtype=lens.model.dtype)
        for name, g in gradient(lens, on_entropy_N=on_entropy).items():
            total[name] = total[name] + g if name in total else g
    held = dict(lenses[0].model.named_parameters())
    for name, g in total.items():
        ranks.all_reduce_sum_(g)
        second_moment = optimizer.state.get(held[name], {}).get("exp_avg_sq")
        if second_moment is not None:
            g.div_(second_moment.sqrt() + optimizer.param_groups[0]["eps"])
    return ranks.all_gather_rows(torch.cat([derivative(lens, total)[0] for lens in lenses]))
