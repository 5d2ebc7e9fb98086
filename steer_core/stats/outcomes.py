"""Any table of (problem, correct): pass@k, two tables paired by problem, and who is ahead how often over many of them.

    Outcomes.of(frame.problem, frame.correct).pass_at(8)
    Outcomes.of(problems, right_a).against(Outcomes.of(problems, right_b))

A row of the table is one sample of one problem. Axes: Q problems, N samples of a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from steer_core.common.errors import SteerError
from steer_core.stats.improvement import probability_of_improvement
from steer_core.stats.intervals import Interval, bootstrap_over_problems
from steer_core.stats.pass_at_k import Decision, paired, pass_at_k

_RIGHT = {"true": True, "1": True, "1.0": True, "right": True, "correct": True, "pass": True, "passed": True}
_WRONG = {"false": False, "0": False, "0.0": False, "wrong": False, "incorrect": False, "fail": False, "failed": False}
_WORDS = _RIGHT | _WRONG


@dataclass(frozen=True)
class Outcomes:
    """By problem how many samples there are, and how many of them are right."""

    problems: tuple[str, ...]
    right_Q: tuple[int, ...]
    samples_Q: tuple[int, ...]

    @classmethod
    def of(cls, problems: Iterable[object], correct: Iterable[object]) -> Outcomes:
        """Those of a table's two columns, a row a sample, problems in order of first appearance.

        correct: true or false, 1 or 0, or a word for them. Raises SteerError naming the row of anything else, for
        columns of different length, and for an empty table.
        """
        names, values = [str(name) for name in problems], list(correct)
        if len(names) != len(values):
            raise SteerError(f"correct: has {len(values)} rows and the column of problems {len(names)}; give one each")
        if not names:
            raise SteerError("problems: the table has no row; give one a sample")
        counts: dict[str, list[int]] = {}
        for number, (name, value) in enumerate(zip(names, values, strict=True), 1):
            own = counts.setdefault(name, [0, 0])
            own[0] += is_right(value, f"correct, row {number}")
            own[1] += 1
        return cls(tuple(counts), tuple(n for n, _ in counts.values()), tuple(n for _, n in counts.values()))

    @property
    def samples(self) -> int:
        """Samples a problem. Raises SteerError where they differ."""
        fewest, most = min(self.samples_Q), max(self.samples_Q)
        if fewest != most:
            raise SteerError(f"problems: {fewest} to {most} samples each; give each problem as many")
        return fewest

    @property
    def share_Q(self) -> np.ndarray:
        """The share of right samples of each problem."""
        return np.array(self.right_Q, dtype=float) / np.array(self.samples_Q)

    def pass_at(self, k: int) -> Interval:
        """pass@k (Chen et al. 2021, eq. 1), mean over problems with its 95% bootstrap interval over them.

        Problems may have different numbers of samples. Raises SteerError for a k above the fewest.
        """
        counts = zip(self.right_Q, self.samples_Q, strict=True)
        return bootstrap_over_problems([[float(pass_at_k([c], n, k)[0]) for c, n in counts]], expanded=True)

    def against(self, other: Outcomes) -> Decision:
        """Whether this is above another in avg@n, paired by problem, and what would decide it; see `paired`.

        Raises SteerError where the problems differ, or the samples a problem within one of them.
        """
        return paired(self.right_Q, other.among(self.problems).right_Q, self.samples, other.samples)

    def among(self, problems: Sequence[str]) -> Outcomes:
        """The same in the order of other problems. Raises SteerError where they are not the same problems."""
        place = {name: i for i, name in enumerate(self.problems)}
        if place.keys() != set(problems):
            odd = next(iter(sorted(place.keys() ^ set(problems))))
            raise SteerError(f"problems: {odd!r} is in one table and not in the other; give both the same problems")
        order = [place[name] for name in problems]
        right, samples = (tuple(values[i] for i in order) for values in (self.right_Q, self.samples_Q))
        return Outcomes(tuple(problems), right, samples)


def is_right(value: object, where: str) -> bool:
    """Whether a verdict says right. Raises SteerError, beginning with `where`, for what is no verdict."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else None
    if word not in _WORDS:
        raise SteerError(f"{where}: {str(value)[:40]!r} is neither right nor wrong; write 1 or 0")
    return _WORDS[word]


def improvement(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> Interval:
    """Chance that a run of the first method beats one of the second at a problem; see `probability_of_improvement`.

    first, second: a table of each seed, of the same problems. Raises SteerError where there is none, or they differ.
    """
    if not first or not second:
        raise SteerError("seeds: a method has no table; give one a seed")
    problems = first[0].problems
    one, other = (np.array([table.among(problems).share_Q for table in tables]) for tables in (first, second))
    return probability_of_improvement(one, other)
