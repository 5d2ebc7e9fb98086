"""What is measured of the laptop runs, and what a claim of the paper comes to by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.catalogue import Claim
from pipeline.rows import curve
from steer_core import SteerError
from steer_core.stats.intervals import (
    Interval,
    digits_of,
    interval_over_seeds,
    interval_over_seeds_and_problems,
)
from steer_core.stats.pass_at_k import pass_at_k

Rows = list[dict[str, Any]]
"""Raw rows of one arm's finished runs, a run each, in order of their seeds."""
MEASURES = ("pass@1", "pass@32", "entropy", "fall of entropy", "mean pass@1", "final pass@K")
LEAST_SEEDS = 2


def values(rows: Rows, measure: str, base: dict[str, Any]) -> np.ndarray:
    """A measure of every run: (seeds, problems) of pass@k at the end, (seeds, 1) of the others.

    `entropy`: nats a token at the last evaluation; `fall of entropy`: the base model's minus that; `mean pass@1`: over
    the evaluations; `final pass@K`: of the evaluation after the last rollout. Raises SteerError for another measure.
    """
    if measure.startswith("final pass@"):
        return np.array([_passes(row["final"], int(measure.removeprefix("final pass@"))) for row in rows])
    if measure.startswith("pass@"):
        return np.array([_passes(row["evaluations"][-1], int(measure.removeprefix("pass@"))) for row in rows])
    ends = np.array([[row["evaluations"][-1]["entropy"]] for row in rows])
    if measure == "entropy":
        return ends
    if measure == "fall of entropy":
        return base["policy_entropy"] - ends
    if measure == "mean pass@1":
        return np.array([[curve(row, 1).mean()] for row in rows])
    raise SteerError(f"measure: {measure!r} is not known; choose from {', '.join(MEASURES)}")


def _passes(evaluation: dict[str, Any], k: int) -> np.ndarray:
    return pass_at_k(evaluation["correct"], evaluation["samples"], k)


def interval(values_SQ: np.ndarray) -> Interval:
    """Mean and 95% interval over what there is of seeds and problems; one seed of a single number has no bounds."""
    if values_SQ.shape[1] == 1:
        return interval_over_seeds(values_SQ[:, 0].tolist())
    return interval_over_seeds_and_problems(values_SQ)


@dataclass(frozen=True)
class Verdict:
    """What a claim comes to: the number that decides and the seeds behind it; None and 0 where nothing ran."""

    claim: Claim
    found: Interval | None
    seeds: int

    @property
    def word(self) -> str:
        """`holds`, `fails`, `undecided` or `not run`; one seed decides nothing, for it says nothing of training."""
        if self.found is None:
            return "not run"
        if self.seeds < LEAST_SEEDS:
            return "undecided"
        return {"higher": "holds", "lower": "fails", "undecided": "undecided"}[self.found.verdict]

    def told(self) -> str:
        """The verdict in words, with what an undecided one excludes."""
        if self.found is None:
            return "not run"
        if self.seeds < LEAST_SEEDS:
            return "undecided (one seed decides nothing)"
        if self.word != "undecided" or np.isnan(self.found.low):
            return self.word
        digits = digits_of(self.found.low, self.found.high)
        return f"undecided; below {self.found.low:+.{digits}f} and above {self.found.high:+.{digits}f} are excluded"


def judge(claim: Claim, runs: dict[str, Rows], base: dict[str, Any]) -> Verdict:
    """The claim's weighted sum over the seeds that all its arms have finished."""
    known = [{r["seed"] for r in runs.get(arm, []) if measured(r, claim.measure)} for arm in claim.weights]
    seeds = set.intersection(*known)
    if not seeds:
        return Verdict(claim, None, 0)
    parts = [
        weight * values([row for row in runs[arm] if row["seed"] in seeds], claim.measure, base)
        for arm, weight in claim.weights.items()
    ]
    return Verdict(claim, interval(np.sum(parts, axis=0)), len(seeds))


def measured(row: dict[str, Any], measure: str) -> bool:
    """Whether a run has what a measure reads."""
    if measure.startswith("final pass@"):
        return bool(row["final"]) and row["final"]["samples"] >= int(measure.removeprefix("final pass@"))
    return bool(row["evaluations"])
