r"""Maths by math-verify, strictly: the final answer that a response marks, judged part by part, in killable processes.

math-verify compares formulas; by itself it takes hours for minutes, 4210 in base 6 for 4210 in base 5, `x+1=3` for 3,
`2(5)` for 7 and `2, 4` for `(2,4)`. So an answer is first taken apart (`same_answer.py`), and each part has to match
its own; what remains are single formulas, and only those are math-verify's (`same_formula.py`).

Units may be left out or added, for the question names them, but not replaced: `18 dollars` is 18, `40 hours` is not
`40 minutes`. Words that change a number (`7 divided by two`) are no units; `2.5 million` is 2500000. A percent sign is
a unit, and also a hundredth: `50\%` is 50 and 0.5, while 0.5 is not 50, nor `0.5\%` 0.5. A base is a unit: `2516_8` is
2516, for MATH500 leaves the base out where the question names it, but not `2516_7`. An angle in degrees is also its
radians: `60^\circ` is `\pi/3`, 60 is not. Numbers side by side are a product (`2(5)`), a mixed number (`1\frac{4}{5}`),
one number (`10 000`), or nothing (`2 5`). Words before "is", "are" or a colon name the answer, unless they change a
number or deny it. `i` is the imaginary unit, and a column the tuple of its entries; but a ratio `2:3` is no fraction,
`\log` is not `\ln`, and `\sqrt{r^2}` not `r`. Digits are 0 to 9: a full-width or Arabic digit makes an answer wrong.
An answer that is the reference's own text, up to spaces, `$` and `\text`, is right whatever it says: some ground truths
are sentences. What is longer than 1,000 characters is compared in this way only, and so is a formula with more than 12
brackets within one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steer_core.rewards.answers import final_answer, last_expression
from steer_core.rewards.base import THINKING, Thinking, Verdict, after_thinking
from steer_core.rewards.notation import has_words, plain
from steer_core.rewards.same_answer import LONGEST as LONGEST
from steer_core.rewards.same_answer import agree, canonical
from steer_core.rewards.workers import Failure, WorkerPool, shared_pool


class MathsGrader:
    """Right where the marked final answer agrees with the reference; see this module's head for what agrees.

    anywhere: take the last formula or number where nothing is marked, or where the marked line is a sentence; a
    stray number then counts as an answer, and with it a lucky one. thinking: `skip` reads only what follows the last
    `</think>`, and nothing where a `<think>` never closes; `read` reads the whole response. Raises ValueError for
    another word.
    """

    name = "strict"

    def __init__(self, anywhere: bool = False, pool: WorkerPool | None = None, thinking: Thinking = "skip") -> None:
        if thinking not in THINKING:
            raise ValueError(f"thinking: {thinking!r} is none of {', '.join(THINKING)}")
        self.anywhere, self.thinking = anywhere, thinking
        self._pool = pool or shared_pool(f"{__name__}:judge")

    def grade(self, references: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """See `Grader.grade`."""
        read = after_thinking if self.thinking == "skip" else str
        pairs = zip(references, responses, strict=True)
        return verdicts(self._pool, [[reference, read(response), self.anywhere] for reference, response in pairs])


def verdicts(pool: WorkerPool, items: list[Any]) -> list[Verdict]:
    """What a pool's function says of each item, as it returns it: [status, answer]; or how judging failed."""
    return [
        Verdict(result.status, detail=result.detail) if isinstance(result, Failure) else Verdict(*result)
        for result in pool.map(items)
    ]


def judge(item: tuple[str, str, bool]) -> tuple[str, str | None]:
    """(status, answer in canonical form) of (reference, response, anywhere). Runs in a worker: it may hang or die."""
    reference, response, anywhere = item
    answer = final_answer(response)
    if anywhere and "\\boxed" not in response and (answer is None or has_words(plain(answer[:LONGEST]))):
        if answer is not None and agree(reference, answer):
            return "right", canonical(answer)
        answer = last_expression(answer or response) or answer
    if answer is None:
        return "unanswered", None
    return "right" if agree(reference, answer) else "wrong", canonical(answer)


def warm_up() -> None:
    """Load math-verify and have its parser learn its grammar, which no item should be charged for."""
    judge(("1", r"\boxed{x+\frac{\sqrt{2}}{3}}", False))
