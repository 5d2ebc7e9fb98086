"""What n responses a problem tell of a model: avg@k, pass@k, maj@k, and whether one model is above another.

Axes: Q problems, N samples of a problem. The unit that varies is the problem: 32 samples of 30 problems are 30
draws, not 960, so every standard error and interval is taken over problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from steer_core.common.errors import SteerError
from steer_core.stats.intervals import Interval, bootstrap_over_problems

POWER = 0.8
"""The chance of finding a difference of the observed size that `what_would_decide` plans for."""
_MAJORITY_DRAWS = 1000


def pass_at_k(correct: ArrayLike, samples: int, k: int) -> np.ndarray:
    """1 - C(n - c, k) / C(n, k) for each problem's c of n = `samples` (Chen et al. 2021, eq. 1).

    correct: (..., ) counts. Raises SteerError for k outside 1..n and ValueError for counts outside 0..n.
    """
    counts = np.asarray(correct)
    if not 1 <= k <= samples:
        raise SteerError(f"pass@{k}: k is not within 1 and the {samples} samples of a problem; sample more or lower k")
    if counts.size and (counts.min() < 0 or counts.max() > samples):
        raise ValueError(f"correct: a count lies outside 0..{samples}")
    drawn = np.arange(k)
    wrong = (samples - counts)[..., None] - drawn
    return 1.0 - np.prod(np.clip(wrong, 0, None) / (samples - drawn), axis=-1)


def maj_at_k(answers_N: Sequence[str | None], correct_N: Sequence[bool], k: int, seed: int = 0) -> float:
    """The chance that the commonest answer among k of a problem's n samples is right (Wang et al. 2022).

    A sample without an answer (None) does not vote; of equally common answers each is as likely; no vote at all is
    wrong. Exact for k = 1 and k = n, else the mean over 1,000 subsets drawn with `seed`. Raises SteerError for k
    outside 1..n.
    """
    samples = len(answers_N)
    if not 1 <= k <= samples:
        raise SteerError(f"maj@{k}: k is not within 1 and the {samples} samples of a problem; sample more or lower k")
    known = {answer: i for i, answer in enumerate(sorted({a for a in answers_N if a is not None}))}
    if not known:
        return 0.0
    votes_NA = np.zeros((samples, len(known)))
    for i, answer in enumerate(answers_N):
        if answer is not None:
            votes_NA[i, known[answer]] = 1
    right_NA = votes_NA * np.asarray(correct_N, dtype=float)[:, None]
    value_A = right_NA.sum(0) / votes_NA.sum(0)  # 0 or 1, unless the grader was of two minds about one answer
    if k == 1:
        return float(right_NA.sum() / samples)
    if k == samples:
        return float(_majority(votes_NA.sum(0), value_A))
    random = np.random.default_rng(seed)
    picks = [random.choice(samples, k, replace=False) for _ in range(_MAJORITY_DRAWS)]
    return float(np.mean([_majority(votes_NA[pick].sum(0), value_A) for pick in picks]))


def _majority(votes_A: np.ndarray, value_A: np.ndarray) -> float:
    most = votes_A.max()
    return float(value_A[votes_A == most].mean()) if most else 0.0


@dataclass(frozen=True)
class Average:
    """avg@k: the mean over problems of the share of right samples, and its standard error over problems.

    between, within: the variance of a problem's true accuracy over problems, and the variance of one sample at a
    problem, mean over problems; `error` squared is (between + within / samples) / problems. Both are NaN where one
    sample a problem cannot tell them apart; error is NaN for one problem.
    """

    mean: float
    error: float
    problems: int
    samples: int
    between: float
    within: float


def average(correct_Q: Sequence[float], samples: int) -> Average:
    """avg@k of each problem's count of right samples out of k = `samples`. Raises SteerError without a problem."""
    correct = np.asarray(correct_Q, dtype=float)
    if not correct.size:
        raise SteerError("avg@k: no problem to take a mean over; name a benchmark that has some")
    mean_Q = correct / samples
    variance = float(mean_Q.var(ddof=1)) if len(correct) > 1 else float("nan")
    within = float(_sample_variance(mean_Q, samples).mean())
    between = max(variance - within / samples, 0.0) if variance == variance else variance
    between = between if samples > 1 else float("nan")
    error = math.sqrt(variance / len(correct))
    return Average(float(mean_Q.mean()), error, len(correct), samples, between, within)


def _sample_variance(mean_Q: np.ndarray, samples: int) -> np.ndarray:
    """Unbiased variance of one sample at each problem; NaN where there is one sample."""
    return mean_Q * (1 - mean_Q) * samples / (samples - 1) if samples > 1 else np.full(len(mean_Q), np.nan)


def pass_interval(correct_Q: Sequence[int], samples: int, k: int) -> Interval:
    """pass@k with its expanded bootstrap interval over problems."""
    return bootstrap_over_problems([pass_at_k(correct_Q, samples, k)], expanded=True)


@dataclass(frozen=True)
class Decision:
    """Whether model A is above model B on the problems both were given, and what would settle it.

    difference: A minus B with its 95% paired bootstrap interval over problems. p: of the paired t test. problems and
    samples: how many problems (at these samples), and how many samples of each of these problems, a test at 5% would
    need to find a difference of this size with probability POWER; None where no number would do, or where there are
    too few data to tell (one sample a problem, a difference of 0).
    """

    difference: Interval
    p: float
    problems: int | None
    samples: int | None


def paired(first_Q: Sequence[int], second_Q: Sequence[int], first_samples: int, second_samples: int) -> Decision:
    """Two models' counts of right samples at the same problems, compared in avg@k.

    Raises SteerError where they differ in the number of problems.
    """
    if len(first_Q) != len(second_Q):
        raise SteerError(f"paired: {len(first_Q)} and {len(second_Q)} problems; evaluate both on the same")
    counts = (first_samples, second_samples)
    means = [np.asarray(values, dtype=float) / n for values, n in zip((first_Q, second_Q), counts, strict=True)]
    gap_Q = means[0] - means[1]
    interval, problems = bootstrap_over_problems([gap_Q], expanded=True), len(gap_Q)
    if problems < 2 or np.ptp(gap_Q) == 0:
        return Decision(interval, float("nan"), None, None)
    within = [float(_sample_variance(mean, n).mean()) for mean, n in zip(means, counts, strict=True)]
    noise = sum(value / n for value, n in zip(within, counts, strict=True))
    return Decision(
        interval,
        float(stats.ttest_1samp(gap_Q, 0).pvalue),
        *what_would_decide(interval.mean, float(gap_Q.var(ddof=1)), noise, sum(within), problems),
    )


def what_would_decide(
    difference: float, variance: float, noise: float, within: float, problems: int
) -> tuple[int | None, int | None]:
    """(problems, samples a problem) that would decide a difference; see `Decision`.

    variance: of the difference at a problem, over problems; noise: the part of it that sampling made; within: the
    variance of one sample of each model, added up.
    """
    if difference == 0:
        return None, None
    error = abs(difference) / (stats.norm.ppf(0.975) + stats.norm.ppf(POWER))
    most = math.ceil(variance / error**2)
    room = problems * error**2 - max(variance - noise, 0.0)  # what is left for the noise of sampling
    if room != room or room <= 0 or within != within:
        return most, None
    return most, max(math.ceil(within / room), 1)
