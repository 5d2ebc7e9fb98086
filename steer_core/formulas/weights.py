"""STEER's token weights: the larger the estimated entropy change, the smaller the token's loss."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from steer_core.common.errors import nearest

ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001 in floating point
MAPS = ("exponential", "linear", "binary")


@torch.no_grad()
def normaliser(
    change: Float[Tensor, "*shape"], mask: Shaped[Tensor, "*shape"], quantile: float = 1.0
) -> Float[Tensor, ""]:
    """The |entropy change| that gets lambda_min: a quantile over unmasked tokens, 1.0 for their maximum.

    0 where nothing would change. What the tokens are decides the scope: an optimiser step, a rollout
    or a micro-batch. The quantile is the smallest value with at least that share at or below it, over
    tokens whose change is not 0: those of groups with equal rewards, whose number varies from step to
    step, do not move it.
    Raises ValueError for a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: {quantile} is not within (0, 1]")
    size = change[mask.bool()].abs()
    size = size[size != 0]  # NaN stays, for `steer_weights` to refuse
    if not len(size):
        return change.new_zeros(())
    return size.kthvalue(max(1, math.ceil(quantile * len(size) - ROUNDING))).values


@torch.no_grad()
def steer_weights(
    change: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, "*shape"],
    lambda_min: float,
    scale: Float[Tensor, ""],
    map: str = "exponential",
    lambda_max: float = 1.0,
    smallest: Float[Tensor, ""] | float = 0.0,
) -> Float[Tensor, "*shape"]:
    """lambda by the size of the entropy change. STEER, arXiv 2510.10150, section 4.

    exponential: lambda_max exp(-alpha |change| / scale), alpha = ln(lambda_max / lambda_min).
    linear: lambda_max - (|change| - smallest) / (scale - smallest) (lambda_max - lambda_min), where
    `smallest` gets lambda_max (0 unless given). binary: lambda_min at the scale and above, else lambda_max.
    In each, |change| is bounded by the scale: within [lambda_min, lambda_max], exactly lambda_min at
    the scale and above. Masked tokens get 1; where the scale is 0, nothing would change entropy and
    unmasked tokens get lambda_max. Raises ValueError for lambda_min outside (0, lambda_max], an
    unknown map, and a non-finite change under the mask.
    """
    if not 0 < lambda_min <= lambda_max < math.inf:
        bound = "1" if lambda_max == 1 else f"lambda_max = {lambda_max}"
        raise ValueError(f"lambda_min: {lambda_min} is not within (0, {bound}]")
    if map not in MAPS:
        raise ValueError(f"map: {map!r} is none of STEER's; {nearest(map, MAPS)}")
    valid = mask.bool()
    if not change[valid].isfinite().all():
        raise ValueError("change: not finite at an unmasked token; check the logits for NaN")
    size, lowest = change.abs(), smallest if map == "linear" else 0.0
    share = ((size - lowest) / (scale - lowest)).clamp(0.0, 1.0)
    share = torch.where(size >= scale, 1.0, share)
    share = torch.where(valid & (scale > 0), share, 0.0)
    if map == "exponential":
        weights = lambda_max * torch.exp(math.log(lambda_min / lambda_max) * share)
    elif map == "linear":
        weights = lambda_max - share * (lambda_max - lambda_min)
    else:
        weights = torch.full_like(share, lambda_max)
    weights = torch.where(share == 1, lambda_min, weights).clamp(lambda_min, lambda_max)
    return torch.where(valid, weights, 1.0)
