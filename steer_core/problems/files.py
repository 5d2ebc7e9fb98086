"""Problems of a parquet file in verl's format: what the tasks that read one have in common.

A row holds `prompt`, a list of chat messages, and `reward_model`, whose `ground_truth` the verifier compares with.
The policy gets the messages through its tokenizer's chat template.
"""

from __future__ import annotations

from functools import cached_property

from transformers import PreTrainedTokenizerBase

from steer_core.common.errors import SteerError
from steer_core.config.sections import CodeConfig, MathsConfig
from steer_core.problems.rows import Row
from steer_core.problems.sets import distinct, find_file, read_rows, render
from steer_core.problems.task import Problem, Split, Task, split_of


class FileTask(Task):
    """The problems of one file. Raises SteerError where the file is missing or not in this format."""

    def __init__(self, config: MathsConfig | CodeConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.rows = self.usable(distinct(read_rows(find_file(config.file)), config.file))

    def usable(self, rows: dict[str, Row]) -> dict[str, Row]:
        """The rows that this task can verify, their ground truth as its verifier takes it."""
        return rows

    @cached_property
    def short(self) -> dict[str, str]:
        """The prompt of every problem of at most `task.prompt_tokens` tokens."""
        prompts = {text: render(messages, self.tokenizer) for text, (messages, _) in self.rows.items()}
        if self.config.prompt_tokens is None:
            return prompts
        encoded = self.tokenizer(list(prompts.values()), add_special_tokens=False)["input_ids"]
        fits = [len(ids) <= self.config.prompt_tokens for ids in encoded]
        return {text: prompt for (text, prompt), fit in zip(prompts.items(), fits, strict=True) if fit}

    def problems(self, split: Split, count: int) -> list[Problem]:
        """See `Task.problems`: in the file's order. Raises SteerError where the split holds fewer."""
        found = [text for text in self.short if split_of(text) == split]
        if len(found) < count:
            limit = self.config.prompt_tokens
            raise SteerError(
                f"task.file: {self.config.file} holds {len(found)} distinct {split} problems "
                f"{f'of at most {limit} tokens ' if limit else ''}where {count} are asked "
                f"for; lower {'task.train_problems' if split == 'train' else 'evaluation.problems'} to {len(found)} "
                "or name a larger file"
            )
        return [Problem(id=text, prompt=self.short[text], answer=self.rows[text][1]) for text in found[:count]]
