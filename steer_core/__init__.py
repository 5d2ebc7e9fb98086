"""Entropy dynamics in RLVR: entropy change, STEER's weights, and the training loop they act in.

The names a trainer of another project needs are here; the loop itself is `steer_core.trainer`.
"""

from steer_core.advantages import grpo_advantages
from steer_core.entropy_change import (
    ENTROPY_CHANGE,
    exact_entropy_change,
    paper_entropy_change,
    quadrants,
    released_entropy_change,
)
from steer_core.errors import SteerError
from steer_core.loss import ClipRange, clip_indicator, clipped_surrogate, denominator, importance_ratio, reduce_loss
from steer_core.token_stats import TokenStats, token_stats
from steer_core.weights import normaliser, steer_weights

__all__ = [
    "ENTROPY_CHANGE",
    "ClipRange",
    "SteerError",
    "TokenStats",
    "clip_indicator",
    "clipped_surrogate",
    "denominator",
    "exact_entropy_change",
    "grpo_advantages",
    "importance_ratio",
    "normaliser",
    "paper_entropy_change",
    "quadrants",
    "reduce_loss",
    "released_entropy_change",
    "steer_weights",
    "token_stats",
]
