"""Advantages from the rewards of groups of responses, by estimator.

Every estimator takes the reward of each response and its number of tokens, and returns the advantage
that all tokens of the response share. Rewards that leave nothing to compare (all equal within a group;
for the estimators that whiten, everywhere) give exactly 0, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

Estimator = Callable[[Float[Tensor, "prompts group"], Real[Tensor, "prompts group"]], Float[Tensor, "prompts group"]]
GRPO_EPSILON = 1e-6
WHITEN_EPSILON = 1e-8


def grpo_advantages(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"] | None = None
) -> Float[Tensor, "prompts group"]:
    """(R - mean) / (std + 1e-6) within each group.

    The standard deviation is the unbiased one. A group of equal rewards gets exactly 0, and so
    does a group of one, which has nothing to compare with (Shao et al. 2024, DeepSeekMath, 4.1.2).
    """
    centred, zero_variance = _centred(rewards_PG)
    if rewards_PG.shape[1] < 2:
        return centred
    return torch.where(zero_variance, 0.0, centred / (rewards_PG.std(-1, keepdim=True) + GRPO_EPSILON))


def dr_grpo_advantages(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"] | None = None
) -> Float[Tensor, "prompts group"]:
    """R - mean within each group, undivided (Dr. GRPO, Liu et al., arXiv 2503.20783, section 3.1)."""
    return _centred(rewards_PG)[0]


def rloo_advantages(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"] | None = None
) -> Float[Tensor, "prompts group"]:
    """R minus the mean of the other responses of its group (RLOO, Ahmadian et al., arXiv 2402.14740, eq. 8)."""
    centred, group = _centred(rewards_PG)[0], rewards_PG.shape[-1]
    return centred * (group / max(group - 1, 1))


def opo_advantages(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"]
) -> Float[Tensor, "prompts group"]:
    """R minus the group's mean reward weighted by length (OPO, Hao et al., arXiv 2505.23585, eq. 9).

    It is the variance-optimal baseline where gradient norms grow with length; it presumes exact on-policy steps.
    """
    lengths = _lengths(rewards_PG, lengths_PG)
    baseline = (rewards_PG * lengths).sum(-1, keepdim=True) / lengths.sum(-1, keepdim=True)
    return torch.where(_centred(rewards_PG)[1], 0.0, rewards_PG - baseline)


def reinforce_plus_plus_advantages(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"]
) -> Float[Tensor, "prompts group"]:
    """Rewards whitened over all tokens of the rollout (REINFORCE++, Hu, arXiv 2501.03262, eq. 9)."""
    return _whitened(_checked(rewards_PG), _lengths(rewards_PG, lengths_PG))


def reinforce_plus_plus_baseline_advantages(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"]
) -> Float[Tensor, "prompts group"]:
    """Rewards less their group's mean, whitened over all tokens of the rollout (REINFORCE++-baseline, ibid.)."""
    return _whitened(_centred(rewards_PG)[0], _lengths(rewards_PG, lengths_PG))


ADVANTAGES: dict[str, Estimator] = {
    "grpo": grpo_advantages,
    "dr-grpo": dr_grpo_advantages,
    "rloo": rloo_advantages,
    "opo": opo_advantages,
    "reinforce++": reinforce_plus_plus_advantages,
    "reinforce++-baseline": reinforce_plus_plus_baseline_advantages,
}


def _centred(
    rewards_PG: Float[Tensor, "prompts group"],
) -> tuple[Float[Tensor, "prompts group"], Bool[Tensor, "prompts 1"]]:
    """(rewards less their group's mean, groups of equal rewards); 0 in those groups."""
    zero_variance = (_checked(rewards_PG) == rewards_PG[:, :1]).all(-1, keepdim=True)
    return torch.where(zero_variance, 0.0, rewards_PG - rewards_PG.mean(-1, keepdim=True)), zero_variance


def _whitened(
    values_PG: Float[Tensor, "prompts group"], lengths_PG: Float[Tensor, "prompts group"]
) -> Float[Tensor, "prompts group"]:
    """To mean 0 and unbiased variance 1 over tokens: each response counts as often as it has tokens."""
    tokens = lengths_PG.sum()
    mean = (values_PG * lengths_PG).sum() / tokens
    variance = ((values_PG - mean) ** 2 * lengths_PG).sum() / (tokens - 1).clamp_min(1)
    whitened = (values_PG - mean) * (variance + WHITEN_EPSILON).rsqrt()
    return torch.where((values_PG == values_PG.flatten()[0]).all(), 0.0, whitened)


def _checked(rewards_PG: Float[Tensor, "prompts group"]) -> Float[Tensor, "prompts group"]:
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards: shape {tuple(rewards_PG.shape)} is not (prompts, group)")
    return rewards_PG


def _lengths(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"]
) -> Float[Tensor, "prompts group"]:
    if _checked(rewards_PG).shape != lengths_PG.shape:
        raise ValueError(f"lengths: shape {tuple(lengths_PG.shape)} is not that of rewards {tuple(rewards_PG.shape)}")
    if (lengths_PG < 1).any():
        raise ValueError("lengths: a response has no token; every response has at least its end token")
    return lengths_PG.to(rewards_PG.dtype)
