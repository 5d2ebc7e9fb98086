"""Problems of a parquet file in verl's format: what the tasks that read one have in common.

A row holds `prompt`, a list of chat messages, and `reward_model`, whose `ground_truth` the grader compares with.
The policy gets the messages through its tokenizer's chat template.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from steer_core.common.errors import SteerError
from steer_core.config.sections import CodeConfig, MathsConfig
from steer_core.problems.problem import Problem, Row
from steer_core.problems.prompts import question_of, render
from steer_core.problems.rows import read_rows
from steer_core.problems.sets import distinct, find_file
from steer_core.problems.task import Split, Task, split_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Settings = TypeVar("Settings", bound=MathsConfig | CodeConfig)


class FileTask(Task, Generic[Settings]):
    """The problems of one file. Raises SteerError where the file is missing or not in this format."""

    def __init__(self, config: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.rows = self.usable(distinct(read_rows(find_file(config.file)), config.file))

    def usable(self, rows: dict[str, Row]) -> dict[str, Row]:
        """The rows that this task can grade, their ground truth as its grader takes it."""
        return rows

    @cached_property
    def fitting(self) -> list[Problem]:
        """Every problem whose prompt has at most `task.prompt_tokens` tokens, in the file's order."""
        found = [
            Problem(text, render(messages, self.tokenizer), truth, question_of(messages)[1], messages)
            for text, (messages, truth) in self.rows.items()
        ]
        most = self.config.prompt_tokens
        if most is None:
            return found
        encoded = self.tokenizer([problem.prompt for problem in found], add_special_tokens=False)["input_ids"]
        return [problem for problem, ids in zip(found, encoded, strict=True) if len(ids) <= most]

    def problems(self, split: Split, count: int) -> list[Problem]:
        """See `Task.problems`: in the file's order. Raises SteerError where the split holds fewer."""
        found = [problem for problem in self.fitting if split_of(problem.id) == split]
        if len(found) < count:
            limit, setting = self.config.prompt_tokens, "task.train_problems"
            if split != "train":
                setting = "evaluation.problems"
            fewer = f"lower {setting} to {len(found)} or " if found else "raise task.prompt_tokens or " if limit else ""
            raise SteerError(
                f"task.file: {self.config.file} holds {len(found)} distinct {split} problems "
                f"{f'of at most {limit} tokens ' if limit else ''}where {count} are asked "
                f"for; {fewer}name a larger file"
            )
        return found[:count]
