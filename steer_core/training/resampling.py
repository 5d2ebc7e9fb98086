"""Dynamic sampling: groups without signal give their places to the next problems (DAPO, Yu et al. 2025, section 3.2).

DAPO keeps a group where its number of right responses is neither 0 nor all of them (arXiv 2503.14476, eq. 11), and
samples on until a batch is full. Here a group has signal where its rewards, the grader's, are not all equal; only the
places that lack it are sampled again, and not without end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from steer_core.common import ranks
from steer_core.evaluation.sample_and_grade import GradedRollout
from steer_core.rollout.rollout import join

_PADDING = 0  # a token that masks hide


def with_signal(
    sample: Callable[[int, list[int]], GradedRollout], places: list[int], tries: int
) -> tuple[GradedRollout, dict[str, float]]:
    """(a rank's groups, with signal as far as so many tries find them; what it cost on all ranks, as metrics).

    sample: samples and grades some places in an attempt, from 0. Ranks go on until none lacks a group or the tries
    are over. Metrics: tries made; responses and tokens that were sampled and thrown away, groups that lacked signal at
    first and that still do. Without tries there are none.
    """
    found = sample(0, places)
    if not tries:
        return found, {}
    lacking = without_signal(found, len(places))
    at_first, made, thrown = ranks.all_reduce_sum(len(lacking)), 0, [0, 0]
    while made < tries and ranks.all_reduce_sum(len(lacking)):
        made += 1
        if lacking:
            again = sample(made, [places[i] for i in lacking])
            thrown = [old + new for old, new in zip(thrown, size_of(found, lacking, len(places)), strict=True)]
            found = replaced(found, lacking, again, len(places))
            lacking = without_signal(found, len(places))
    return found, {
        "resampled/tries": float(made),
        "resampled/responses": float(ranks.all_reduce_sum(thrown[0])),
        "resampled/tokens": float(ranks.all_reduce_sum(thrown[1])),
        "resampled/groups_without_signal/before": float(at_first),
        "resampled/groups_without_signal/after": float(ranks.all_reduce_sum(len(lacking))),
    }


def without_signal(graded: GradedRollout, groups: int) -> list[int]:
    """Which groups, from 0, have one reward only."""
    rewards, size = graded.rewards, len(graded.problems) // groups
    return [i for i in range(groups) if len(set(rewards[i * size : (i + 1) * size])) == 1]


def size_of(graded: GradedRollout, chosen: Sequence[int], groups: int) -> tuple[int, int]:
    """(responses, their tokens) of some groups."""
    rows = rows_of(chosen, len(graded.problems) // groups)
    return len(rows), int(graded.rollout.response_mask_BT[rows].sum())


def rows_of(chosen: Sequence[int], size: int) -> list[int]:
    """The rows of some groups, all of one size."""
    return [i * size + j for i in chosen for j in range(size)]


def replaced(graded: GradedRollout, chosen: Sequence[int], by: GradedRollout, groups: int) -> GradedRollout:
    """The rollout with some of its groups replaced by those of another, in their order; the times add up."""
    size = len(graded.problems) // groups
    order = list(range(groups * size))
    for k, row in enumerate(rows_of(chosen, size)):
        order[row] = groups * size + k
    problems = [*graded.problems, *by.problems]
    return replace(
        graded,
        problems=[problems[i] for i in order],
        rollout=join([graded.rollout, by.rollout], _PADDING).take(order),
        graded={name: [[*verdicts, *by.graded[name]][i] for i in order] for name, verdicts in graded.graded.items()},
        sampling_seconds=graded.sampling_seconds + by.sampling_seconds,
        grading_seconds=graded.grading_seconds + by.grading_seconds,
    )
