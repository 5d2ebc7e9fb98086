"""How the tournament compares two methods: run by run, seed by seed, at equal steps and at equal pass@1.

Two runs are compared at equal pass@1 where both, seed by seed, first reach the highest pass@1 that both reach at some
evaluation (the pair's own level, not one level for all runs as in `steer report`); values between evaluations are
interpolated, problem by problem. A seed in which one of the two never rose above the base model is left out and
counted. Each difference carries two 95% intervals: Student t over the training seeds, and a bootstrap over seeds and
problems together, in which every drawn set of problems is matched anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from steer_core import pass_at_k
from steer_core.compare.comparison import Comparison
from steer_core.stats.intervals import (
    Interval,
    at_first_crossing,
    bootstrap_over_seeds_and_problems,
    interval_over_seeds,
    paired_p_value,
)

DRAWS = 2000


def measures(comparison: Comparison) -> dict[str, str]:
    """What arms are compared in beside pass@1: entropy, and pass@k for each larger k."""
    return {"entropy": "policy_entropy", **{f"pass@{k}": f"pass@{k}" for k in comparison.ks if k > 1}}


def runs_of(comparison: Comparison, arm: str) -> dict[int, pd.DataFrame]:
    """By seed, the evaluations of an arm's finished runs in the order of training, the base model first."""
    done, curves = comparison.final(), comparison.curves()
    return {
        int(seed): curves[(curves.arm == arm) & (curves.seed == seed)].sort_values("step")
        for seed in sorted(done[done.arm == arm].seed)
    }


def by_problem(run: pd.DataFrame, k: int) -> np.ndarray:
    """pass@k of every evaluation (rows) at every problem (columns)."""
    return np.stack([pass_at_k(row.correct, row.samples, k) for row in run.itertuples(index=False)])


def shared_level(a: pd.DataFrame, b: pd.DataFrame) -> float | None:
    """The highest pass@1 that two runs both reach; None where it is no higher than where they began."""
    level = min(a["pass@1"].max(), b["pass@1"].max())
    return level if level > max(a["pass@1"].iloc[0], b["pass@1"].iloc[0]) else None


def at_shared_pass1(comparison: Comparison, arm: str, against: str) -> list[dict[str, Any]]:
    """Arm minus another at each seed's shared level: one entry a seed that has one, with pass@k by problem.

    `drawn`: by measure, the same difference on DRAWS redrawn sets of problems, each matched anew, so that it
    carries the noise of the matching too; NaN where the redrawn set leaves no shared level.
    """
    mine, theirs = runs_of(comparison, arm), runs_of(comparison, against)
    gaps = []
    for seed in sorted(mine.keys() & theirs.keys()):
        pair = mine[seed], theirs[seed]
        level = shared_level(*pair)
        if level is None:
            continue
        gap: dict[str, Any] = {"seed": seed, "level": level, "drawn": {}}
        pass1 = [by_problem(run, 1) for run in pair]
        picks = redrawn(pass1[0].shape[1])
        redrawn_pass1 = [values @ picks for values in pass1]  # (evaluations, draws)
        levels = np.minimum(*(values.max(0) for values in redrawn_pass1))
        levels[levels <= np.maximum(*(values[0] for values in redrawn_pass1))] = np.nan
        for name, column in measures(comparison).items():
            values = [
                by_problem(r, int(name[5:])) if name != "entropy" else r[column].to_numpy()[:, None] for r in pair
            ]
            there = [at_first_crossing(r["pass@1"], v, level) for r, v in zip(pair, values, strict=True)]
            gap[name] = there[0] - there[1] if column == name else float((there[0] - there[1])[0])
            anew = [
                at_levels(x, v @ picks if v.shape[1] > 1 else np.broadcast_to(v, x.shape), levels)
                for x, v in zip(redrawn_pass1, values, strict=True)
            ]
            gap["drawn"][name] = anew[0] - anew[1]
        gaps.append(gap)
    return gaps


def redrawn(problems: int) -> np.ndarray:
    """Weights (problems, DRAWS) of problems drawn with replacement, the same for every pair of runs."""
    picks = np.random.default_rng(0).integers(problems, size=(DRAWS, problems))
    return np.stack([np.bincount(pick, minlength=problems) for pick in picks], axis=1) / problems


def at_levels(x_ED: np.ndarray, y_ED: np.ndarray, level_D: np.ndarray) -> np.ndarray:
    """`at_first_crossing` for many draws at once: y where x first reaches each draw's level, NaN for a NaN level."""
    known = np.nan_to_num(level_D, nan=-np.inf)
    first, draws = (x_ED >= known).argmax(0), np.arange(x_ED.shape[1])
    before = np.maximum(first - 1, 0)
    low, high = x_ED[before, draws], x_ED[first, draws]
    share = np.where(high > low, (level_D - low) / np.where(high > low, high - low, 1.0), 1.0)
    value = y_ED[before, draws] + share * (y_ED[first, draws] - y_ED[before, draws])
    return np.where(np.isnan(level_D), np.nan, value)


def at_equal_steps(comparison: Comparison, arm: str, against: str) -> list[dict[str, Any]]:
    """Arm minus another at the last evaluation, one entry a seed: entropy, and pass@k by problem, pass@1 among them."""
    mine, theirs = runs_of(comparison, arm), runs_of(comparison, against)
    gaps = []
    for seed in sorted(mine.keys() & theirs.keys()):
        ends = [run.tail(1) for run in (mine[seed], theirs[seed])]
        gap = {"seed": seed, "entropy": float(ends[0].policy_entropy.iloc[0] - ends[1].policy_entropy.iloc[0])}
        gap |= {f"pass@{k}": by_problem(ends[0], k)[0] - by_problem(ends[1], k)[0] for k in comparison.ks}
        gap["area"] = area(mine[seed]) - area(theirs[seed])
        gaps.append(gap)
    return gaps


def area(run: pd.DataFrame) -> float:
    """Mean pass@1 over training."""
    return float(np.trapezoid(run["pass@1"], run.step) / (run.step.iloc[-1] - run.step.iloc[0]))


def differences(gaps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By measure: the mean difference, its intervals, its p value, and which side of 0 all its intervals lie on."""
    table = {}
    for name in [key for key in (gaps[0] if gaps else ()) if key not in ("seed", "level", "drawn")]:
        values = [np.asarray(gap[name]) for gap in gaps]
        means = [float(value.mean()) for value in values]
        over_seeds, found = interval_over_seeds(means), [interval_over_seeds(means)]
        row = {"mean": over_seeds.mean, "over_seeds": bounds(over_seeds), "by_seed": means}
        if "drawn" in gaps[0]:
            found.append(matched_anew(np.stack([gap["drawn"][name] for gap in gaps]), over_seeds.mean))
        elif values[0].ndim:
            found.append(bootstrap_over_seeds_and_problems(values))
        if len(found) > 1:
            row["over_seeds_and_problems"] = bounds(found[1])
        verdicts = {interval.verdict for interval in found}
        row["verdict"] = verdicts.pop() if len(verdicts) == 1 else "undecided"
        table[name] = row | {"p": paired_p_value(means)}
    return table


def matched_anew(drawn_SD: np.ndarray, mean: float) -> Interval:
    """Percentile interval over seeds and problems of differences matched anew on each drawn set of problems."""
    seeds = np.random.default_rng(1).integers(len(drawn_SD), size=drawn_SD.shape)
    drawn = np.take_along_axis(drawn_SD, seeds, axis=0)
    counted = (~np.isnan(drawn)).sum(0)
    means = np.nansum(drawn, axis=0)[counted > 0] / counted[counted > 0]
    low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (np.nan, np.nan)
    return Interval(mean, float(low), float(high))


def bounds(interval: Interval) -> list[float] | None:
    """[low, high], or None where there is none."""
    return [interval.low, interval.high] if np.isfinite(interval.low) else None


def is_decided(found: dict[str, Any], primary: bool) -> bool:
    """Whether a difference is decided: in the primary measure, by both intervals, with Holm's p below 0.05."""
    p = found.get("p_holm")
    return primary and found["verdict"] != "undecided" and p is not None and p < 0.05
