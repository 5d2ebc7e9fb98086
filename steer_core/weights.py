"""STEER's token weights: the larger the estimated entropy change, the smaller the token's loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001 in floating point


@torch.no_grad()
def normaliser(change: Tensor, mask: Tensor, quantile: float = 1.0) -> Tensor:
    """The |entropy change| that gets lambda_min: a quantile over unmasked tokens, 1.0 for their maximum.

    `change` and `mask` share a shape; the result is a scalar, 0 where nothing would change. What the
    tokens are decides the scope: an optimiser step, a rollout or a micro-batch. The quantile is the
    smallest value with at least that share at or below it, over tokens whose change is not 0: those
    of groups with equal rewards, whose number varies from step to step, do not move it.
    Raises ValueError for a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: {quantile} is not within (0, 1]")
    size = change[mask.bool()].abs()
    size = size[size != 0]  # NaN stays, for `steer_weights` to refuse
    if not len(size):
        return change.new_zeros(())
    return size.kthvalue(max(1, math.ceil(quantile * len(size) - _ROUNDING))).values


@torch.no_grad()
def steer_weights(change: Tensor, mask: Tensor, lambda_min: float, scale: Tensor) -> Tensor:
    """lambda = exp(-alpha min(|change| / scale, 1)), alpha = -ln lambda_min; shape of `change`.

    Within [lambda_min, 1]; 1 for masked tokens and where the scale is 0 (nothing would change
    entropy); exactly lambda_min at the scale and above. STEER, arXiv 2510.10150, section 4.
    Raises ValueError for lambda_min outside (0, 1] and for a non-finite change under the mask.
    """
    if not 0 < lambda_min <= 1:
        raise ValueError(f"lambda_min: {lambda_min} is not within (0, 1]")
    valid = mask.bool()
    if not change[valid].isfinite().all():
        raise ValueError("change: not finite at an unmasked token; check the logits for NaN")
    share = torch.where(valid & (scale > 0), change.abs() / scale, 0.0).clamp(max=1.0)
    weights = torch.exp(math.log(lambda_min) * share)
    return torch.where(share == 1, lambda_min, weights).clamp(lambda_min, 1.0)
