"""Advantages from the rewards of groups of responses, by estimator.

Every estimator takes the reward of each response and its number of tokens, two of them a setting too, and returns the
advantage that all tokens of the response share. Rewards that leave nothing to compare (all equal within a group;
for the estimators that whiten, everywhere) give exactly 0, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from steer_core.formulas.weights import ROUNDING

Estimator = Callable[..., Float[Tensor, "prompts group"]]
"""From (rewards, lengths) and, by name, the settings that `AlgorithmConfig.advantage_settings` gives it."""
GRPO_EPSILON = 1e-6
WHITEN_EPSILON = 1e-8
PASS_K, QUANTILE = 4, 0.4


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


def pass_at_k_advantages(
    rewards_PG: Float[Tensor, "prompts group"], lengths_PG: Real[Tensor, "prompts group"] | None = None, k: int = PASS_K
) -> Float[Tensor, "prompts group"]:
    """The mean advantage of the k-subsets that a response is in (Pass@k training, Chen et al., arXiv 2508.10751).

    A subset's reward is 1 where one of it is right (a reward above 0), whitened over all k-subsets of the group: of c
    right responses among n, rho = 1 - C(n-c, k) / C(n, k) subsets succeed, with deviation s = sqrt(rho (1 - rho)). So
    a right response gets (1 - rho) / s, a wrong one (1 - rho - C(n-c-1, k-1) / C(n-1, k-1)) / s; all get 0 where s is
    0. This is the paper's analytic form, without the 1e-6 beside s in its code. Raises ValueError where k is not within
    1 and n.
    """
    group = _checked(rewards_PG).shape[1]
    if not 1 <= k <= group:
        raise ValueError(f"k: {k} is not within 1 and the {group} responses of a group")
    right_PG = rewards_PG > 0
    by_count = rewards_PG.new_tensor([_of_right_and_wrong(group, right, k) for right in range(group + 1)])
    of_right_P, of_wrong_P = by_count[right_PG.sum(-1)].unbind(-1)
    return torch.where(right_PG, of_right_P[:, None], of_wrong_P[:, None])


def quantile_advantages(
    rewards_PG: Float[Tensor, "prompts group"],
    lengths_PG: Real[Tensor, "prompts group"] | None = None,
    quantile: float = QUANTILE,
) -> Float[Tensor, "prompts group"]:
    """(R - the group's quantile) / (std + 1e-6) (QAE, Wu et al., arXiv 2509.22611).

    The quantile is the smallest reward that at least this share of the group's does not exceed. So with rewards 0 and
    1, a share p of them 1, wrong responses get 0 if p <= 1 - quantile, and right ones if p is more. The standard
    deviation is GRPO's, the unbiased one.
    """
    zero_variance, group = _centred(rewards_PG)[1], rewards_PG.shape[1]
    if group < 2:
        return torch.zeros_like(rewards_PG)
    place = max(math.ceil(quantile * group - ROUNDING), 1) - 1
    baseline = rewards_PG.sort(-1).values[:, place : place + 1]
    scale = rewards_PG.std(-1, keepdim=True) + GRPO_EPSILON
    return torch.where(zero_variance, 0.0, (rewards_PG - baseline) / scale)


ADVANTAGES: dict[str, Estimator] = {
    "grpo": grpo_advantages,
    "dr-grpo": dr_grpo_advantages,
    "rloo": rloo_advantages,
    "opo": opo_advantages,
    "reinforce++": reinforce_plus_plus_advantages,
    "reinforce++-baseline": reinforce_plus_plus_baseline_advantages,
    "pass-at-k": pass_at_k_advantages,
    "quantile": quantile_advantages,
}


def _of_right_and_wrong(group: int, right: int, k: int) -> tuple[float, float]:
    """(advantage of a right response, of a wrong one) in a group, by `pass_at_k_advantages`."""
    wrong = group - right
    failing = math.comb(wrong, k) / math.comb(group, k)
    deviation = math.sqrt(failing * (1 - failing))
    if deviation == 0:
        return 0.0, 0.0
    beside_a_wrong_one = math.comb(wrong - 1, k - 1) / math.comb(group - 1, k - 1)
    return failing / deviation, (failing - beside_a_wrong_one) / deviation


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
