"""How well predicted changes tell measured ones: correlations, signs and slopes, with intervals over groups."""

from __future__ import annotations

import numpy as np
from scipy import stats

from steer_core.stats.intervals import Interval

_ROUNDING = 1e-12


def agreement(predicted_N: np.ndarray, measured_N: np.ndarray) -> dict[str, float]:
    """How well predicted changes tell measured ones: mse, pearson, spearman, sign and slope; NaN where undefined.

    mse: mean squared error, in the square of the inputs' unit. sign: share of equal signs where
    neither is exactly 0. slope: the factor on the prediction that fits best in least squares, 1 for
    the right scale. Raises ValueError for shapes that differ.
    """
    moments = _moments(predicted_N, measured_N, np.zeros(len(predicted_N), dtype=int))
    return {name: float(value) for name, value in _scores(moments.sum(0)).items()}


def agreement_intervals(
    predicted_N: np.ndarray, measured_N: np.ndarray, group_N: np.ndarray, draws: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """`agreement` with percentile bootstrap intervals over groups, whose members are drawn together.

    Spearman's is the correlation of the ranks within the whole sample. One group has no interval. The draws are made
    here, not by scipy.stats.bootstrap: sums by group are drawn in place of tokens, of which there are many, and a draw
    in which a measure is undefined is left out.
    """
    _, group_N = np.unique(group_N, return_inverse=True)
    moments = _moments(predicted_N, measured_N, group_N)
    values, groups = _scores(moments.sum(0)), len(moments)
    picks = np.random.default_rng(seed).integers(groups, size=(draws, groups))
    counts = np.stack([np.bincount(pick, minlength=groups) for pick in picks])
    drawn = _scores(counts @ moments)
    bounds = {
        name: np.nanquantile(drawn[name], [0.025, 0.975])
        if groups > 1 and np.isfinite(drawn[name]).any()
        else (np.nan, np.nan)
        for name in values
    }
    return {name: Interval(float(values[name]), *map(float, bounds[name])) for name in values}


def _moments(predicted_N: np.ndarray, measured_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """(groups, moments): the sums that `_scores` needs, by group; they add up over groups."""
    x, y = np.asarray(predicted_N, dtype=float), np.asarray(measured_N, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"predicted: shape {x.shape} is not that of measured, {y.shape}, or not flat")
    if not len(x):
        return np.zeros((1, 16))
    told = (x != 0) & (y != 0)
    columns = [np.ones_like(x), (x - y) ** 2, x * x, x * y, told, told & ((x > 0) == (y > 0))]
    for a, b in ((x, y), (stats.rankdata(x), stats.rankdata(y))):
        a, b = a - a.mean(), b - b.mean()
        columns += [a, b, a * a, b * b, a * b]
    sums = np.zeros((group_N.max() + 1, len(columns)))
    np.add.at(sums, group_N, np.stack(columns, axis=1).astype(float))
    return sums


def _scores(moments: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of `agreement` from sums (..., 16); NaN where one is undefined."""
    n, squared_error, xx, xy, told, right, *correlations = np.moveaxis(moments, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "mse": squared_error / n,
            "pearson": _correlation(n, *correlations[:5]),
            "spearman": _correlation(n, *correlations[5:]),
            "sign": right / told,
            "slope": xy / xx,
        }


def _correlation(
    n: np.ndarray, a: np.ndarray, b: np.ndarray, aa: np.ndarray, bb: np.ndarray, ab: np.ndarray
) -> np.ndarray:
    variance_a, variance_b = aa - a * a / n, bb - b * b / n
    flat = (variance_a <= _ROUNDING * aa) | (variance_b <= _ROUNDING * bb)  # one value throughout
    return np.where(flat, np.nan, (ab - a * b / n) / np.sqrt(variance_a * variance_b))
