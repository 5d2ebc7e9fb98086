"""Countdown's own verification as a grader; it is exact, bounded and quick, and needs no process to be killed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steer_core.problems.countdown import Countdown
from steer_core.problems.task import Problem
from steer_core.rewards.base import Verdict

_PROMPT = re.compile(r"[0-9]{1,6}(?:,[0-9]{1,6})*=([0-9]{1,6}):")


class CountdownGrader:
    """Right where the response is a valid trace. A reference is a problem's prompt, such as `3,7,8,21=24:`.

    The answer is the set of steps, sorted: two traces that take them in another order are one solution to a vote.
    """

    name = "countdown"

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Grader.grade`. Raises ValueError for a reference that is no prompt of Countdown."""
        task = Countdown()
        verdicts = []
        for prompt, response in zip(references, responses, strict=True):
            target = _PROMPT.fullmatch(prompt)
            if target is None:
                raise ValueError(f"reference: {prompt[:80]!r} is no prompt of Countdown, such as '3,7,8,21=24:'")
            if not response.strip():
                verdicts.append(Verdict("unanswered"))
                continue
            right = task.verify(Problem(prompt, prompt, target[1]), response)
            verdicts.append(Verdict("right" if right else "wrong", ",".join(sorted(response.split(",")))))
        return verdicts
