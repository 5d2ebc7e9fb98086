"""Problems of a file: what the tasks that read one have in common.

A row of verl's format holds `prompt`, a list of chat messages, and `reward_model`, whose `ground_truth` the grader
compares with; any other has a question and an answer, in columns that are named or usual (`own.py`). The policy gets
the messages through its tokenizer's chat template.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from steer_core.common.errors import SteerError
from steer_core.common.records import Record, read_records
from steer_core.config.tasks import FileConfig
from steer_core.problems.own import USUAL, Columns, rows_of_records
from steer_core.problems.problem import Problem, Row
from steer_core.problems.prompts import question_of, render, with_system
from steer_core.problems.rows import read_rows
from steer_core.problems.sets import distinct, find_file, whole_text
from steer_core.problems.task import Split, Task, own_reward, split_of
from steer_core.rewards.own import OwnReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Settings = TypeVar("Settings", bound=FileConfig)


class FileTask(Task, Generic[Settings]):
    """The problems of a file, and of another one where `task.validation_file` names it.

    Raises SteerError where a file is missing or does not fit.
    """

    def __init__(self, config: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.records: dict[str, dict[str, Record]] = {"task.file": {}, "task.validation_file": {}}
        self.rows = self.read(config.file, "task.file")
        self.held_out = None
        if config.validation_file is not None:
            self.held_out = self.read(config.validation_file, "task.validation_file")
            self.rows = self.apart(self.rows, self.held_out)

    @property
    def columns(self) -> Columns:
        """The columns that are read."""
        return Columns(self.config.question, self.config.answer)

    def read(self, file: str, field: str) -> dict[str, Row]:
        """The usable rows of a file by their text; an own reward gets their records too. Raises SteerError."""
        path = find_file(file, field)
        if self.columns == USUAL and self.config.reward is None and is_verl_parquet(path):
            return self.usable(distinct(read_rows(path, field), file, field=field), file, field)
        records = read_records(path, field)
        rows = rows_of_records(records, path, field, self.columns)
        if self.config.reward is not None:
            for (messages, _), record in zip(rows, records, strict=True):
                self.records[field].setdefault(whole_text(messages), record)
        return self.usable(self.distinct(rows, file, field), file, field)

    def distinct(self, rows: list[Row], file: str, field: str) -> dict[str, Row]:
        """The rows by their text, every one once."""
        return distinct(rows, file, field=field)

    def usable(self, rows: dict[str, Row], file: str, field: str) -> dict[str, Row]:
        """The rows of a file that this task can grade, their ground truth as its grader takes it."""
        return rows

    def apart(self, rows: dict[str, Row], held_out: dict[str, Row]) -> dict[str, Row]:
        """The training rows that are no held-out ones; a warning tells how many are. Raises SteerError for none."""
        kept = {text: row for text, row in rows.items() if text not in held_out}
        if not kept:
            raise SteerError("task.validation_file: holds every problem of task.file; name another file")
        if len(kept) < len(rows):
            left_out = f"left out {len(rows) - len(kept)} of {len(rows)} problems, which the validation file holds too"
            warnings.warn(f"task.file: {self.config.file}: {left_out}", stacklevel=2)
        return kept

    @cached_property
    def fitting(self) -> list[Problem]:
        """Every problem of `task.file` whose prompt has at most `task.prompt_tokens` tokens, in the file's order."""
        return self.written(self.rows, "task.file")

    @cached_property
    def fitting_held_out(self) -> list[Problem]:
        """The same of `task.validation_file`."""
        return self.written(self.held_out or {}, "task.validation_file")

    def written(self, rows: dict[str, Row], field: str) -> list[Problem]:
        """Rows of a file as problems for the model, without those whose prompt is too long."""
        config = self.config
        found = [
            Problem(
                text,
                render(with_system(messages, config.system), self.tokenizer, config.template),
                truth,
                question_of(messages)[1],
                messages,
                self.records[field].get(text, {}),
            )
            for text, (messages, truth) in rows.items()
        ]
        most = config.prompt_tokens
        if most is None:
            return found
        encoded = self.tokenizer([problem.prompt for problem in found], add_special_tokens=False)["input_ids"]
        return [problem for problem, ids in zip(found, encoded, strict=True) if len(ids) <= most]

    def problems(self, split: Split, count: int) -> list[Problem]:
        """See `Task.problems`: in the file's order. Raises SteerError where the split holds fewer."""
        own, train = self.held_out is not None, split == "train"
        fitting = self.fitting_held_out if own and not train else self.fitting
        found = [problem for problem in fitting if own or split_of(problem.id) == split]
        if len(found) < count:
            held_out = own and not train
            field = "task.validation_file" if held_out else "task.file"
            file = self.config.validation_file if held_out else self.config.file
            limit, setting = self.config.prompt_tokens, "task.train_problems" if train else "evaluation.problems"
            fewer = f"lower {setting} to {len(found)} or " if found else "raise task.prompt_tokens or " if limit else ""
            raise SteerError(
                f"{field}: {file} holds {len(found)} distinct {split} problems "
                f"{f'of at most {limit} tokens ' if limit else ''}where {count} are asked "
                f"for; {fewer}name a larger file"
            )
        return found[:count]

    def make_own_reward(self) -> OwnReward | None:
        """See `Task.make_own_reward`."""
        return own_reward(self.config, self.config.reward)


def is_verl_parquet(path: Path) -> bool:
    """Whether a file is Parquet with the columns of verl's format, of which only these two are read."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        return {"prompt", "reward_model"} <= set(pq.read_schema(path).names)
    except (OSError, ValueError, pa.ArrowException):  # told where it is read
        return False
