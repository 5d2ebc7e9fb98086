"""A reward of one's own: a function of (prompt, response, row), called in processes that can be killed.

The function is named `module:function` by the user's settings, and found where Python finds it; nothing is read from
a model's folder. It returns a number, or a dict of numbers by name (the parts), whose weighted sum is the reward:

    R = sum over parts of weight x part

A call that raises, returns anything else (text, NaN, infinity), hangs or dies has no verdict: the response gets the
lowest reward of its problem's other responses, and at most 0, so that no response gains by breaking the function. The
reason is told, and the worker is replaced. The function runs as its user; one that runs what a model wrote should have
`steer_core.rewards.code` do it, in a sandbox.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from steer_core.common.errors import SteerError, one_line
from steer_core.rewards.base import UNJUDGED, Verdict
from steer_core.rewards.workers import Failure, WorkerPool

WAITS = 12
"""Times the processor time of a response that a call may take by the wall clock: for what sleeps or waits."""
_loaded: list[Callable[[str, str, dict[str, Any]], Any]] = []


class OwnReward:
    """The grader that calls a function. name: what its verdicts are called; a reference is `Problem.whole`.

    function: `module:function`. weights: of parts, by name; 1 where there is none. seconds: most processor time of a
    response. memory_gib: most address space of a worker. right_from: the reward from which on a response is right.
    Raises SteerError where the function is not found or takes other arguments.
    """

    name = "own"
    reads_whole_problems = True

    def __init__(
        self,
        function: str,
        weights: Mapping[str, float] | None = None,
        seconds: int = 5,
        memory_gib: float = 8.0,
        right_from: float = 1.0,
    ) -> None:
        self.function, self.weights, self.right_from = function, dict(weights or {}), right_from
        memory = int(memory_gib * 2**30)
        self._pool = WorkerPool(judge, None, WAITS * seconds, seconds, memory, prepare=[function])
        try:
            self._pool.map([None])
        except RuntimeError as error:
            raise self._not_imported(error) from error

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Grader.grade`. Raises SteerError where the function can no longer be imported."""
        pairs = zip(references, responses, strict=True)
        items = [[prompt, response, row] for (prompt, row), response in ((json.loads(r), text) for r, text in pairs)]
        try:
            verdicts = [self._verdict(found) for found in self._pool.map(items)]
        except RuntimeError as error:
            raise self._not_imported(error) from error
        lowest: dict[str, float] = {}
        for reference, verdict in zip(references, verdicts, strict=True):
            if verdict.status not in UNJUDGED:
                lowest[reference] = min(lowest.get(reference, 0.0), verdict.score)
        return [
            replace(verdict, reward=lowest.get(reference, 0.0)) if verdict.status in UNJUDGED else verdict
            for reference, verdict in zip(references, verdicts, strict=True)
        ]

    def _not_imported(self, error: RuntimeError) -> SteerError:
        return SteerError(
            f"task.reward: {self.function} is not imported ({one_line(error)}); check module and function, what they "
            f"import and task.reward_gib, and have Python find the module: PYTHONPATH=FOLDER steer train ..."
        )

    def _verdict(self, found: dict[str, float] | Failure) -> Verdict:
        if isinstance(found, Failure):
            return Verdict(found.status, detail=f"task.reward {self.function}: {found.detail}")
        lost = sorted(self.weights.keys() - found.keys())
        if lost:
            named = ", ".join(name for name in found if name) or "none, only a number"
            return Verdict("crashed", detail=f"task.reward_weights.{lost[0]}: {self.function} returns {named}")
        reward = sum(self.weights.get(name, 1.0) * value for name, value in found.items())
        if not math.isfinite(reward):
            return Verdict("crashed", detail=f"task.reward_weights: the parts of {self.function} sum to {reward}")
        parts = {name: value for name, value in found.items() if name}
        return Verdict("right" if reward >= self.right_from else "wrong", reward=reward, parts=parts)


def judge(item: list[Any] | None) -> dict[str, float]:
    """The parts that the function gives a (prompt, response, row), one without a name for a plain number.

    Runs in a worker: it may raise, hang or die. None asks only whether the worker is there.
    """
    if item is None:
        return {}
    found = _loaded[0](*item)
    if isinstance(found, Mapping):
        if not found:
            raise ValueError("returned an empty dict; return at least one part")
        return {str(name): number(value, f"part {name!r}: ") for name, value in found.items()}
    return {"": number(found)}


def number(value: Any, where: str = "") -> float:
    """A returned value as a float. Raises TypeError where it is no number, ValueError where it is not finite."""
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) != 0 else value
    if not isinstance(value, int | float):
        raise TypeError(f"{where}returned {one_line(repr(value), 60)}, which is no number")
    if not math.isfinite(value):
        raise ValueError(f"{where}returned {value}, which is no finite number")
    return float(value)


def warm_up(function: str) -> None:
    """Import the function, which no response should be charged for. Raises what the import does, or TypeError."""
    path, _, name = function.partition(":")
    found = reduce(getattr, name.split("."), importlib.import_module(path))
    if not callable(found):
        raise TypeError(f"{function} is no function")
    _loaded[:] = [found]
