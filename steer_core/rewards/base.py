"""What every grader answers, whatever it grades: a verdict on each response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

Thinking = Literal["skip", "read"]
"""What a grader does with `<think>...</think>`: `skip` reads only what follows, `read` takes it for the response."""
THINKING: tuple[Thinking, ...] = get_args(Thinking)
_THINKING = re.compile(r"<(/?)think(?:ing)?>")
Status = Literal["right", "wrong", "unanswered", "timed out", "crashed"]

UNJUDGED: tuple[Status, ...] = ("timed out", "crashed")
"""Where judging itself came to no end, or, of code, its program did; the response counts as wrong."""


@dataclass(frozen=True)
class Verdict:
    """A grader's judgement of one response.

    status: `unanswered` where the grader found nothing to judge, `timed out` and `crashed` where judging itself, or
    the program that is judged, came to no end. answer: the answer it judged, written so that equal answers are equal
    text (what a majority vote counts), or None. detail: one line for people, such as the first test that failed.
    reward, parts: of a grader that gives more than right or wrong, its number, and by name what that is made of.
    """

    status: Status
    answer: str | None = None
    detail: str = ""
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """Whether the response solves the problem."""
        return self.status == "right"

    @property
    def score(self) -> float:
        """What training is rewarded with: the grader's number, or 1 where the response is right and 0 where not."""
        return float(self.correct) if self.reward is None else self.reward


def after_thinking(response: str) -> str:
    """What follows the last `</think>`; nothing where a `<think>` does not close; all of it without such marks.

    What a model only thinks is no answer.
    """
    marks = list(_THINKING.finditer(response))
    if not marks:
        return response
    return response[marks[-1].end() :] if marks[-1][1] else ""


class Grader(Protocol):
    """Judges responses. Never raises on any text, and always comes to an end."""

    name: str

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """The verdict on each response, given each problem's reference: its right answer, prompt or tests.

        Raises ValueError where the two differ in length.
        """
        ...
