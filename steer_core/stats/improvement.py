"""Two methods over many seeds and problems: who is ahead how often, and how high each gets on what share of problems.

Means hide who wins where. Both measures are those of Agarwal et al. 2021 (arXiv 2108.13264), for problems in place of
their tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from steer_core.stats.intervals import Interval


def probability_of_improvement(first_SQ: ArrayLike, second_SQ: ArrayLike, draws: int = 2000, seed: int = 0) -> Interval:
    """Chance that a run of the first method beats one of the second at a problem, ties counting a half.

    first_SQ, second_SQ: a score of each seed (rows) at each problem (columns), the same problems in both. The mean over
    problems and over all pairs of a seed of each (Agarwal et al. 2021, section 4.3; Mann and Whitney's U over its
    largest value). The 95% interval draws seeds anew, those of each method by themselves, all problems together: it
    covers the choice of seeds, at these problems. One seed each has no bounds.
    Raises ValueError where there is no value, or the problems are not equally many.
    """
    first, second = (np.atleast_2d(np.asarray(values, dtype=float)) for values in (first_SQ, second_SQ))
    if not first.size or not second.size or first.shape[1] != second.shape[1]:
        raise ValueError(f"values: shapes {first.shape} and {second.shape} are not (seeds, the same problems)")
    ahead_ST = np.stack([((row > second) + 0.5 * (row == second)).mean(1) for row in first])
    mean = float(ahead_ST.mean())
    if ahead_ST.shape == (1, 1):
        return Interval(mean, float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    rows, columns = (random.integers(0, count, (draws, count)) for count in ahead_ST.shape)
    drawn = np.array([ahead_ST[np.ix_(i, j)].mean() for i, j in zip(rows, columns, strict=True)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def performance_profile(values_SQ: ArrayLike, levels_L: ArrayLike) -> np.ndarray:
    """Share (L,) of seeds and problems whose score is above each level (Agarwal et al. 2021, section 4.3)."""
    values = np.asarray(values_SQ, dtype=float)
    if not values.size:
        raise ValueError("values: no seed or no problem to take a share of")
    return (values.reshape(1, -1) > np.asarray(levels_L, dtype=float).reshape(-1, 1)).mean(1)
