"""Estimates of the entropy change against the measured one, where a dump holds the same states at two steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from steer_core.diagnose import rules
from steer_core.diagnose.states import States
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.runs.dumps import Dump
from steer_core.stats.agreement import agreement_intervals
from steer_core.stats.intervals import Interval

FORMS = tuple(name for name in ENTROPY_CHANGE if name != "exact")
"""The estimates that a dump allows: `exact` needs the sums over p² of every state."""
SCORES = ("pearson", "spearman", "sign")
_DRAWS = 500


@dataclass(frozen=True)
class Measured:
    """Tokens whose state came at two steps. pairs: responses that did; tokens: theirs.

    change: mean measured change of entropy from one step to the next, nats. by_form: by estimate its agreement with the
    measured changes, with bootstrap intervals over responses, and its sign on the whole: whether it says that the mean
    rises. why_not: why there is none.
    """

    pairs: int = 0
    tokens: int = 0
    change: float = math.nan
    by_form: dict[str, dict[str, Interval]] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    why_not: str = ""


def measured(dump: Dump, states: States) -> Measured:
    """The comparison, over all pairs of a response's step with the next step that it comes at."""
    if not states.knows_entropy:
        return Measured(why_not="the entropies of states are not known")
    pairs = _pairs(dump)
    if not pairs:
        return Measured(why_not="no response comes at two steps")
    starts = np.concatenate([[0], np.cumsum(dump.responses.length)])
    before, after, group = (
        np.concatenate(part)
        for part in zip(
            *(
                (np.arange(starts[a], starts[a + 1]), np.arange(starts[b], starts[b + 1]), np.full(length, n))
                for n, (a, b, length) in enumerate(pairs)
            ),
            strict=True,
        )
    )
    entropy = states.new.entropy.numpy()
    change = entropy[after] - entropy[before]
    if len(change) < rules.FEWEST_TOKENS:
        return Measured(len(pairs), len(change), float(change.mean()), why_not=f"{len(change)} tokens are too few")
    scores, means = {}, {}
    for form in FORMS:
        predicted = np.zeros(len(states))
        for step in dump.steps:
            inside = states.step == step
            part = states.at(inside)
            predicted[inside.numpy()] = ENTROPY_CHANGE[form](part.new, part.old, part.advantages, part.clip).numpy()
        told = agreement_intervals(predicted[before], change, group, draws=_DRAWS)
        scores[form] = {name: told[name] for name in SCORES}
        means[form] = float(predicted[before].mean())
    return Measured(len(pairs), len(change), float(change.mean()), scores, means)


def _pairs(dump: Dump) -> list[tuple[int, int, int]]:
    """(row, row of the same response at the next step that has it, its tokens), by prompt and tokens."""
    frame = dump.responses
    name = next((name for name in ("token_ids", "tokens") if name in dump.tokens), None)
    if name is None and "response" not in frame:
        return []
    starts = np.concatenate([[0], np.cumsum(frame.length)])
    last: dict[tuple, tuple[int, int]] = {}
    found = []
    for row in np.argsort(frame.step.to_numpy(), kind="stable").tolist():
        span = slice(starts[row], starts[row + 1])
        said = tuple(dump.tokens[name][span]) if name else (frame.response.iloc[row],)
        who = tuple(str(frame[key].iloc[row]) for key in ("group", "prompt") if key in frame)
        key, step = (who, said), int(frame.step.iloc[row])
        earlier = last.get(key)
        if earlier and earlier[1] < step and frame.length.iloc[earlier[0]] == frame.length.iloc[row]:
            found.append((earlier[0], row, int(frame.length.iloc[row])))
        last[key] = (row, step)
    return found
