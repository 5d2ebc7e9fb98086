"""Intervals that say what they cover, paired differences, and comparison at an equal level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

NO_WIDTH = 1e-9
"""Intervals narrower than this come from values that agree."""
Verdict = Literal["higher", "lower", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% interval; the bounds are NaN where there is too little data for one."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Of a difference: which side of 0 the whole interval lies on.

        An interval of no width decides nothing: seeds whose counts happen to agree say nothing of the spread.
        """
        if self.high - self.low <= NO_WIDTH:
            return "undecided"
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "undecided"


def bootstrap_over_problems(values_SQ: ArrayLike, draws: int = 2000, seed: int = 0, expanded: bool = False) -> Interval:
    """Mean over seeds and problems, and its percentile bootstrap interval over problems.

    values_SQ: one row a seed, one column a problem. It covers the choice of held-out problems, not
    the choice of training seeds. expanded: take the quantiles further out, as far as Student's t lies
    outside the normal and n outside n - 1 (Hesterberg 2015, section 3.2): a plain percentile interval
    over 30 problems is too narrow. With one problem it has no bounds. Raises ValueError where there is no value.
    """
    values_Q = np.asarray(values_SQ, dtype=float).mean(0)
    if not len(values_Q):
        raise ValueError("values: no problem to take a mean over")
    problems, mean, tail = len(values_Q), float(values_Q.mean()), 0.025
    if problems == 1:
        bound = float("nan") if expanded else mean
        return Interval(mean, bound, bound)
    if expanded:
        tail = stats.norm.cdf(np.sqrt(problems / (problems - 1)) * stats.t.ppf(tail, problems - 1))
    return Interval(mean, *_percentile_bounds([values_Q], np.mean, draws, seed, tail))


def _percentile_bounds(
    samples: Sequence[np.ndarray], statistic: Callable, draws: int, seed: int, tail: float = 0.025
) -> tuple[float, float]:
    """Percentile bootstrap bounds of a statistic of independent samples, each of two values or more."""
    random, level = np.random.default_rng(seed), 1 - 2 * tail
    found = stats.bootstrap(
        samples, statistic, n_resamples=draws, method="percentile", confidence_level=level, vectorized=True, rng=random
    ).confidence_interval
    return float(found.low), float(found.high)


def interval_over_seeds(values_S: Sequence[float]) -> Interval:
    """Mean over seeds and its Student-t interval; of paired differences, the paired t interval.

    It covers the choice of training seeds, at these held-out problems. One seed has no interval;
    equal values have one of no width.
    """
    values = np.asarray(values_S, dtype=float)
    if not values.size:
        raise ValueError("values: no seed to take a mean over")
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    if np.ptp(values) <= NO_WIDTH:
        return Interval(mean, mean, mean)
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return Interval(mean, float(found.low), float(found.high))


def bootstrap_over_seeds_and_problems(values_SQ: ArrayLike, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of (seeds, problems), and its percentile bootstrap interval over both, drawn independently.

    It covers the choice of seeds and of problems; with few seeds it is somewhat narrow.
    Raises ValueError where there is no value.
    """
    values = np.asarray(values_SQ, dtype=float)
    if not values.size:
        raise ValueError("values: no seed or no problem to take a mean over")
    if 1 in values.shape:  # what there is one of is not drawn
        return bootstrap_over_problems(values.reshape(1, -1), draws, seed)

    def mean(seeds_DS: np.ndarray, problems_DQ: np.ndarray, axis: int = -1) -> np.ndarray:
        return values[seeds_DS[..., :, None], problems_DQ[..., None, :]].mean((-2, -1))

    indices = [np.arange(size) for size in values.shape]
    return Interval(float(values.mean()), *_percentile_bounds(indices, mean, draws, seed))


def paired_p_value(differences_S: Sequence[float]) -> float:
    """Two-sided p of Student's t for paired differences; NaN for one seed or equal values."""
    values = np.asarray(differences_S, dtype=float)
    if len(values) < 2 or np.ptp(values) <= NO_WIDTH:
        return float("nan")
    return float(stats.ttest_1samp(values, 0).pvalue)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """p values corrected for their number (Holm 1979); NaN stays and does not count."""
    known = sorted((p, name) for name, p in p_values.items() if p == p)
    corrected, largest = dict.fromkeys(p_values, float("nan")), 0.0
    for i, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - i) * p))
        corrected[name] = largest
    return corrected


def at_first_crossing(x: ArrayLike, y: ArrayLike, level: float) -> Any:
    """y where x first reaches `level` along the sequence, by linear interpolation; NaN where it never does.

    y: one value, or one array, for each x.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    reached = np.flatnonzero(xs >= level)
    if not len(reached):
        return np.full(ys.shape[1:], np.nan)[()]
    i = reached[0]
    if i == 0 or xs[i] == xs[i - 1]:
        return ys[i]
    share = (level - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])
