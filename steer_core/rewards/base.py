"""What every grader answers, whatever it grades: a verdict on each response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Status = Literal["right", "wrong", "unanswered", "timed out", "crashed"]

UNJUDGED: tuple[Status, ...] = ("timed out", "crashed")
"""Where judging itself came to no end, or, of code, its program did; the response counts as wrong."""


@dataclass(frozen=True)
class Verdict:
    """A grader's judgement of one response.

    status: `unanswered` where the grader found nothing to judge, `timed out` and `crashed` where judging itself, or
    the program that is judged, came to no end. answer: the answer it judged, written so that equal answers are equal
    text (what a majority vote counts), or None. detail: one line for people, such as the first test that failed.
    """

    status: Status
    answer: str | None = None
    detail: str = ""

    @property
    def correct(self) -> bool:
        """Whether the response solves the problem."""
        return self.status == "right"


def after_thinking(response: str) -> str:
    """What a response says behind its last `</think>`: what a model only thinks is no answer."""
    return response.rpartition("</think>")[2]


class Grader(Protocol):
    """Judges responses. Never raises on any text, and always comes to an end."""

    name: str

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """The verdict on each response, given each problem's reference: its right answer, prompt or tests.

        Raises ValueError where the two differ in length.
        """
        ...
