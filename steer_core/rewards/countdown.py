"""Countdown's grader; it is exact, bounded and quick, and needs no process to be killed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from steer_core.rewards.base import Verdict

LARGEST_WRITTEN = 999_999
"""Values have at most six digits."""
_PROMPT = re.compile(r"([0-9]{1,6}(?:,[0-9]{1,6})*)=([0-9]{1,6}):")
_STEP = re.compile(r"(0|[1-9][0-9]{0,5})([+\-*/])(0|[1-9][0-9]{0,5})=(0|[1-9][0-9]{0,5})")


class CountdownGrader:
    """Right where the response is a valid trace. A reference is a problem's prompt, such as `3,7,8,21=24:`.

    The answer is the set of steps, sorted: two traces that take them in another order are one solution to a vote.
    """

    name = "countdown"

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Grader.grade`. Raises ValueError for a reference that is no prompt of Countdown."""
        return [_judge(prompt, response) for prompt, response in zip(references, responses, strict=True)]


def _judge(prompt: str, response: str) -> Verdict:
    right = is_solution(prompt, response)
    if not response.strip():
        return Verdict("unanswered")
    return Verdict("right" if right else "wrong", ",".join(sorted(response.split(","))))


def is_prompt(text: str) -> bool:
    """Whether a text is a prompt of Countdown, which is what its responses are judged by."""
    return _PROMPT.fullmatch(text) is not None


def is_solution(prompt: str, response: str) -> bool:
    """Whether the trace uses each number exactly once, computes right, and ends at the target.

    Values are positive whole numbers of at most six digits, without leading zeros. Raises ValueError for a prompt that
    is none of Countdown's.
    """
    found = _PROMPT.fullmatch(prompt)
    if found is None:
        raise ValueError(f"reference: {prompt[:80]!r} is no prompt of Countdown, such as '3,7,8,21=24:'")
    numbers = Counter(map(int, found[1].split(",")))
    steps = response.split(",")
    if len(steps) != numbers.total() - 1:
        return False
    result = None
    for step in steps:
        match = _STEP.fullmatch(step)
        if match is None:
            return False
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        numbers.subtract((left, right))
        if min(numbers.values()) < 0 or apply(left, match[2], right) != result:
            return False
        numbers[result] += 1
    return result == int(found[2])


def apply(left: int, operator: str, right: int) -> int | None:
    """The value of `left operator right`, or None where it is no positive whole number."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right if left > right else None
    if operator == "*":
        return left * right
    if operator == "/":
        return left // right if right and left and left % right == 0 else None
    raise ValueError(f"operator {operator!r} is none of + - * /")
