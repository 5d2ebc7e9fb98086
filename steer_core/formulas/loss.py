"""The clipped policy-gradient surrogate, where its gradient passes, and the reductions.

A token's whole loss, weight and extra term included, is put together in `training/loss_terms.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from steer_core.common.errors import nearest

LOG_RATIO_BOUND = 20.0
REDUCTIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


@dataclass(frozen=True)
class ClipRange:
    """Where the surrogate stops: ratios below 1 - low (A < 0), above 1 + high (A > 0), above dual (A < 0)."""

    low: float = 0.2
    high: float = 0.28
    dual: float | None = 10.0


def importance_ratio(logprob: Float[Tensor, "*shape"], old_logprob: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """r = p_theta(a) / p_old(a), the log-ratio clamped to +-20."""
    return log_ratio(logprob, old_logprob).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def log_ratio(logprob: Float[Tensor, "*shape"], old_logprob: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """ln r, unclamped; 0 where both log-probs are -inf, which is a token that neither policy can sample."""
    difference = logprob - old_logprob
    return torch.where((logprob == old_logprob) & difference.isnan(), 0.0, difference)


def clipped_by(
    ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], clip: ClipRange
) -> tuple[Bool[Tensor, "*shape"], Bool[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """Three boolean masks of the tokens whose gradient the clip removes: (high, low, dual)."""
    high = (advantages > 0) & (ratio > 1 + clip.high)
    low = (advantages < 0) & (ratio < 1 - clip.low)
    dual = (advantages < 0) & (ratio > clip.dual) if clip.dual is not None else torch.zeros_like(low)
    return high, low, dual


def clip_indicator(
    ratio: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], clip: ClipRange
) -> Float[Tensor, "*shape"]:
    """I_clip: 1 where the surrogate's gradient passes and 0 where the clip removes it (STEER, section 3)."""
    high, low, dual = clipped_by(ratio, advantages, clip)
    return (~(high | low | dual)).to(ratio.dtype)


def clipped_surrogate(
    logprob: Float[Tensor, "*shape"],
    old_logprob: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    clip: ClipRange,
) -> Float[Tensor, "*shape"]:
    """Per-token PPO loss with asymmetric and dual clip, to be minimised.

    max(-A r, -A clip(r, 1 - low, 1 + high)), and for A < 0 at most -A dual
    (PPO, Schulman et al. 2017, eq. 7; clip-higher, DAPO, Yu et al. 2025; dual clip, Ye et al. 2020).
    """
    ratio = importance_ratio(logprob, old_logprob)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip.low, 1 + clip.high))
    if clip.dual is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * clip.dual), loss)


def denominator(mask_BT: Shaped[Tensor, "batch tokens"], reduction: str, longest: int | None = None) -> int:
    """What a mini-batch's loss is divided by, over the rows given.

    token-mean: its response tokens. seq-mean-token-mean and seq-mean-token-sum: its sequences that
    have any. seq-mean-token-sum-norm: those sequences times `longest`, the most tokens a response
    may have. Add it up over the whole mini-batch, all micro-batches and ranks: then `reduce_loss`
    over the micro-batches adds up to the same number however the mini-batch was split.
    Raises ValueError for an unknown reduction, and for -norm without `longest`.
    """
    _check(reduction)
    if reduction == "token-mean":
        return int(mask_BT.sum())
    sequences = int(mask_BT.any(-1).sum())
    if reduction != "seq-mean-token-sum-norm":
        return sequences
    if longest is None or longest < 1:
        raise ValueError(f"longest: {longest} is no number of tokens; give the most that a response may have")
    return sequences * longest


def token_coefficients(
    mask_BT: Shaped[Tensor, "batch tokens"], reduction: str, denominator: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch tokens"]:
    """What each token's loss is multiplied by in the mini-batch's loss, in the dtype given; 0 where masked.

    token-mean: 1 / response tokens (DAPO, eq. 8). seq-mean-token-mean: 1 / (tokens of the sequence x
    sequences) (GRPO, Shao et al. 2024, eq. 3). seq-mean-token-sum: 1 / sequences.
    seq-mean-token-sum-norm: 1 / (sequences x longest response), a constant (Dr. GRPO, Liu et al.
    2025, arXiv 2503.20783, section 3.1).
    """
    _check(reduction)
    coefficients = mask_BT.to(dtype) / max(denominator, 1)
    if reduction == "seq-mean-token-mean":
        coefficients = coefficients / mask_BT.sum(-1, keepdim=True).clamp_min(1)
    return coefficients


def reduce_loss(
    loss_BT: Float[Tensor, "batch tokens"], mask_BT: Shaped[Tensor, "batch tokens"], reduction: str, denominator: int
) -> Float[Tensor, ""]:
    """The micro-batch's share of the mini-batch's loss; zero where nothing is unmasked."""
    real = torch.promote_types(loss_BT.dtype, torch.float32)
    return (loss_BT * token_coefficients(mask_BT, reduction, denominator, real)).sum()


def _check(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r} is unknown; {nearest(reduction, REDUCTIONS)}")
