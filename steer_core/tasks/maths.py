r"""Mathematics problems with a final answer, read from a parquet file in verl's format, judged by `rewards/maths.py`.

A row holds `prompt`, a list of chat messages, and `reward_model`, whose `ground_truth` is the right answer. The
policy gets the messages through its tokenizer's chat template. Files ask for the answer in different words
(`\boxed{...}`, `Answer: ...`, or nothing at all), so the verifier takes any of them; see `Maths.verify_all`.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from steer_core.config import MathsConfig
from steer_core.data import distinct, read_rows, render
from steer_core.errors import SteerError
from steer_core.rewards.maths import MathsGrader
from steer_core.tasks.base import Problem, Split, Task, split_of


class Maths(Task):
    """The problems of one file. Raises SteerError where the file is missing or not in this format."""

    name = "maths"

    def __init__(self, config: MathsConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.rows = distinct(read_rows(config.file), config.file)

    def problems(self, split: Split, count: int) -> list[Problem]:
        """See `Task.problems`: in the file's order. Raises SteerError where the split holds fewer."""
        found = [text for text in self.rows if split_of(text) == split]
        if len(found) < count:
            raise SteerError(
                f"task.file: {self.config.file} holds {len(found)} distinct {split} problems where {count} are asked "
                f"for; lower {'task.train_problems' if split == 'train' else 'evaluation.problems'} to {len(found)} "
                "or name a larger file"
            )
        return [self._problem(text) for text in found[:count]]

    def _problem(self, text: str) -> Problem:
        messages, answer = self.rows[text]
        return Problem(id=text, prompt=render(messages, self.tokenizer), answer=answer)

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the response ends with the right answer; see `verify_all`."""
        return self.verify_all([problem], [response])[0]

    def verify_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """Whether each response ends with the right answer, by the strict grader's idea of what agrees.

        Unlike that grader it takes the last formula or number where a response marks no answer: a policy that
        begins to learn rarely does, and would get no reward to learn from. What cannot be judged in time is wrong.
        """
        references = [problem.answer for problem in problems]
        return [verdict.correct for verdict in MathsGrader(anywhere=True).grade(references, responses)]
