"""Intervals that say what they cover, paired differences, and comparison at an equal level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

NO_WIDTH = 1e-9
"""Intervals narrower than this come from values that agree."""
MOST_DIGITS = 9
"""Digits behind the point that a bound is printed with at most."""
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


def digits_of(low: float, high: float, least: int = 3) -> int:
    """Digits behind the point that tell each bound of a difference from 0: `least`, or more where one is smaller."""
    digits = least
    for bound in (low, high):
        if bound and abs(bound) < 0.5 * 10.0**-least:
            digits = max(digits, min(-math.floor(math.log10(abs(bound))), MOST_DIGITS))
    return digits


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
    random = np.random.default_rng(seed)
    found = stats.bootstrap(
        [values_Q], np.mean, n_resamples=draws, method="percentile", confidence_level=1 - 2 * tail, rng=random
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


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


def interval_over_seeds_and_problems(values_SQ: ArrayLike) -> Interval:
    """Mean of (seeds, problems) and its 95% interval over both, which are crossed: every seed met every problem.

    A value is mean + seed + problem + rest, each part random (the two-way layout without replicates; Searle et al.
    1992, chapter 4). The mean's variance is that of the seeds' means over S, which holds seeds and rest, plus that of
    the problems over Q, which is 0 where their means vary no more than the rest explains. Student t, degrees of
    freedom by Satterthwaite. `reproduce/intervals.py` simulates its coverage: 95% within 1.1 from 5 seeds on. Drawing
    seeds and problems independently would count the rest three times over. One seed: the bootstrap over problems; one
    problem: `interval_over_seeds`. Raises ValueError where there is no value.
    """
    values = np.asarray(values_SQ, dtype=float)
    if not values.size:
        raise ValueError("values: no seed or no problem to take a mean over")
    seeds, problems = values.shape
    if seeds == 1:
        return bootstrap_over_problems(values)
    if problems == 1:
        return interval_over_seeds(values[:, 0].tolist())
    mean, by_seed, by_problem = float(values.mean()), values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_problem + mean
    rest_share = np.square(rest).sum() / ((seeds - 1) * (problems - 1)) / values.size
    of_seeds = by_seed.var(ddof=1) / seeds
    of_problems = max(by_problem.var(ddof=1) / problems - rest_share, 0.0)
    variance = of_seeds + of_problems
    if variance <= NO_WIDTH**2:
        return Interval(mean, mean, mean)
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_problems**2 / (problems - 1))
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


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
