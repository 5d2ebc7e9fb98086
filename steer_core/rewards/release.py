r"""The authors' grading as their release does it, to stand beside the strict one. Written from a description of it.

Training: the last whole box within the last 100 characters has to be the reference letter by letter. Evaluation: that,
or a lenient checker on the last 300 characters. The checker reads the last box, else what follows "answer is", else
the last number; numbers match within a relative 1e-4, and so do their hundredths and hundredfolds, for an answer may
or may not be in percent. Where this is right and the strict grader is not, or the other way round, is what
`reproduce/graders.py` tabulates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from steer_core.rewards.answers import last_box
from steer_core.rewards.base import Verdict
from steer_core.rewards.maths import LONGEST, verdicts
from steer_core.rewards.maths import warm_up as warm_up  # for the workers
from steer_core.rewards.notation import brackets, plain, split
from steer_core.rewards.quantities import number
from steer_core.rewards.same_formula import parsed
from steer_core.rewards.workers import WorkerPool, shared_pool

TRAINING_CHARACTERS, EVALUATION_CHARACTERS = 100, 300
_CLOSE = Fraction(1, 10_000)
_PERCENT = (1, 100, Fraction(1, 100))
_BOX = r"\boxed{"
_PHRASE = re.compile(r"answer\s+is\s*:?\s*([^\n]*)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)", re.ASCII)
_DROPPED = re.compile(r"\\text\s*\{[^{}]*\}(?:\^\d)?|\^\\circ|\\?%|\\\$|(?<=\d)\s+[a-z ]+$")
_EQUALS, _COMMA = re.compile("="), re.compile(",")


class ReleaseGrader:
    """The release's evaluation, or with `training` its training reward. Answers are read as that grader reads them."""

    name = "release"

    def __init__(self, training: bool = False, pool: WorkerPool | None = None) -> None:
        self.training = training
        self._pool = pool or shared_pool(f"{__name__}:judge")

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Grader.grade`."""
        pairs = zip(references, responses, strict=True)
        return verdicts(self._pool, [[right, response, self.training] for right, response in pairs])


def judge(item: tuple[str, str, bool]) -> tuple[str, str | None]:
    """(status, the answer it read) of (reference, response, training). Runs in a worker: it may hang or die."""
    reference, response, training = item
    answer = last_box(response[-TRAINING_CHARACTERS:]) if "\\boxed" in response[-TRAINING_CHARACTERS:] else None
    if training or answer == reference:
        return ("unanswered", None) if answer is None else ("right" if answer == reference else "wrong", answer)
    answer = _normal(read(response[-EVALUATION_CHARACTERS:]) or "")
    if not answer:
        return "unanswered", None
    return "right" if matches(_normal(reference), answer) else "wrong", answer


def read(text: str) -> str | None:
    """The last box, else what follows the last "answer is", else the last number; None where there is none of them.

    An empty box is an empty answer, and one that never closes is read to the end.
    """
    if (at := text.rfind(_BOX)) >= 0:
        return _to_its_brace(text[at + len(_BOX) :])
    if phrases := _PHRASE.findall(text):
        return phrases[-1]
    numbers = _LAST_NUMBER.findall(text)
    return numbers[-1] if numbers else None


def matches(right: str, answer: str) -> bool:
    """The lenient checker on two normal texts. May take any time and memory."""
    if right.casefold().replace(" ", "") == answer.casefold().replace(" ", ""):
        return True
    if max(len(right), len(answer)) > LONGEST:
        return False
    exact, given = number(right), number(answer)
    if exact and given:
        return any(_close(exact.value * scale, given.value) for scale in _PERCENT)
    ours, theirs = _entries(right), _entries(answer)
    if len(ours) == len(theirs) > 1:
        return all(map(matches, ours, theirs))
    return _same_value(right, answer)


def _to_its_brace(text: str) -> str:
    """The text up to the brace that closes one opened before it."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return text


def _normal(text: str) -> str:
    """Plain text without units, percent and currency signs, and without a name of a letter or two before `=`."""
    text = plain(_DROPPED.sub(" ", text))  # first of all: `plain` reads words such as `thousand`, as strict does
    text = " ".join(_DROPPED.sub(" ", text).split()).rstrip(" .,")
    sides = split(text, _EQUALS)
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text


def _entries(text: str) -> list[str]:
    """The parts of a list, with or without brackets around it."""
    found = brackets(text)
    return split(found[1] if found else text, _COMMA)


def _same_value(right: str, answer: str) -> bool:
    """Whether sympy finds two formulas equal, in symbols or in numbers."""
    import sympy

    ours, theirs = parsed(right), parsed(answer)
    if not ours or not theirs:
        return False
    try:
        gap = sympy.simplify(ours[0] - theirs[0])
        return bool(gap == 0) or _close(float(ours[0]), float(theirs[0]))
    except MemoryError:
        raise
    except Exception:  # sets, relations, words, complex numbers: nothing to subtract or to put into figures
        return False


def _close(one: Fraction | float, other: Fraction | float) -> bool:
    return abs(one - other) <= _CLOSE * max(abs(one), abs(other)) < math.inf
