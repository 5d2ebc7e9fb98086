"""Advantages from the rewards of a group of responses to one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

GRPO_EPSILON = 1e-6


def grpo_advantages(rewards_PG: Tensor) -> Tensor:
    """(R - mean) / (std + 1e-6) within each group; shape (prompts, group) in and out.

    The standard deviation is the unbiased one. A group of equal rewards gets exactly 0, and so
    does a group of one, which has nothing to compare with (Shao et al. 2024, DeepSeekMath, 4.1.2).
    """
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards: shape {tuple(rewards_PG.shape)} is not (prompts, group)")
    if rewards_PG.shape[1] < 2:
        return torch.zeros_like(rewards_PG)
    centred = rewards_PG - rewards_PG.mean(-1, keepdim=True)
    constant = (rewards_PG == rewards_PG[:, :1]).all(-1, keepdim=True)
    return torch.where(constant, 0.0, centred / (rewards_PG.std(-1, keepdim=True) + GRPO_EPSILON))


ADVANTAGES = {"grpo": grpo_advantages}
