"""The section `task` of a configuration: which problems there are, and what rewards a response."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT


def _function(written: str) -> str:
    if re.fullmatch(r"[\w.]+:[\w.]+", written):
        return written
    raise PydanticCustomError("function", "write module:function, such as my_reward:reward")


def _countdown_reward(written: str) -> str:
    return written if written in ("verifier", "coin") else _function(written)


def _plain(written: Any) -> Any:
    if isinstance(written, bool | int | float | str):
        return written
    raise PydanticCustomError("plain", "write true, false, a number or a text")


_Function = Annotated[str, AfterValidator(_function)]
_Text = Annotated[str, Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class RewardedConfig:
    """What every task takes of a reward of one's own."""

    name: str
    """Which task."""
    reward_weights: dict[str, float] = Field(default_factory=dict)
    """With an own reward that returns a dict: what each of its parts weighs in the reward; one that is not named here
    weighs 1."""
    reward_seconds: int = Field(default=5, ge=1, le=3600)
    """Most processor time that an own reward may take for a response; by the wall clock twelve times as long."""
    reward_gib: float = Field(default=8.0, ge=0.25)
    """Most address space of a process that an own reward runs in."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class CountdownConfig(RewardedConfig):
    """The Countdown task and its problems."""

    name: Literal["countdown"] = "countdown"
    """Which task."""
    numbers: int = Field(default=4, ge=2, le=6)
    """How many numbers a problem gives; each must be used exactly once."""
    largest_number: int = Field(default=10, ge=2, le=99)
    """Numbers are drawn from 1 to this."""
    smallest_target: int = Field(default=10, ge=1)
    """Smallest target of a problem."""
    largest_target: int = Field(default=99, le=999)
    """Largest target of a problem."""
    train_problems: int = Field(default=4096, ge=1, le=1_000_000)
    """How many distinct training problems there are; an epoch visits each once."""
    reward: Annotated[str, AfterValidator(_countdown_reward)] = "verifier"
    """What rewards training: whether the trace is right, a fair coin, which teaches nothing, or a function of your own
    (`module:function`, docs/own.md). Evaluations go by the verifier with all of them."""
    needed: Literal["+", "-", "*", "/"] | None = None
    """An operation that held-out problems need: no valid trace does without it; `null`: they are as they come."""
    needed_share: float = Field(default=1.0, ge=0, le=1)
    """With `needed`, the share of the training problems that need the operation; the others can do without."""

    def __post_init__(self) -> None:
        if self.smallest_target > self.largest_target:
            raise SteerError(
                f"task.smallest_target: {self.smallest_target} is above "
                f"task.largest_target ({self.largest_target}); lower it"
            )
        if self.needed is not None and self.numbers > 5:
            raise SteerError(
                f"task.needed: {self.needed!r} with {self.numbers} numbers takes too long to search; set task.numbers "
                "to 5 or fewer"
            )
        if self.needed is None and self.needed_share != 1:
            raise SteerError(
                f"task.needed_share: {self.needed_share:g} is a share of problems that need an operation; name it with "
                "task.needed"
            )


@dataclass(config=STRICT, kw_only=True, frozen=True)
class FileConfig(RewardedConfig):
    """Problems that are read from a file; a `name` says who judges responses to them."""

    file: str = Field(min_length=1)
    """Problems: a .parquet, .jsonl, .json or .csv file, or a folder that `save_to_disk` of `datasets` wrote. In verl's
    format it has the columns `prompt` (chat messages) and `reward_model` (with a `ground_truth`); else a question and
    an answer. A bare name is looked for here, then in STEER_DATA and ../shared/data."""
    train_problems: int = Field(default=1024, ge=1)
    """How many distinct training problems, the first of the file's training split; an epoch visits each once."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt in tokens; problems with a longer one are left out. `null`: all stay."""
    validation_file: _Text | None = None
    """A file of the held-out problems, for both values of evaluation.split; all of task.file is then for training.
    `null`: a tenth of task.file each is for validation and for test."""
    question: _Text | None = None
    """Column of the question, or of chat messages; `null`: the first of question, problem, prompt."""
    answer: _Text | None = None
    """Column of the right answer or of the tests; `null`: the first of answer, ground_truth, final_answer and their
    like. An own reward needs none."""
    system: _Text | None = None
    """System prompt, in place of one that the file has; `null`: what the file has."""
    template: dict[str, Annotated[Any, AfterValidator(_plain)]] = Field(default_factory=dict)
    """Arguments of the model's chat template, by name, such as enable_thinking=false."""
    reward: _Function | None = None
    """A function of your own that rewards training, `module:function`; it gets (prompt, response, row) and returns a
    number, or a dict of parts (docs/own.md). Evaluations go by the task's own grader all the same."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class MathsConfig(FileConfig):
    """Mathematics problems with a final answer, read from a file."""

    name: Literal["maths"] = "maths"
    """Which task; with `maths`, the settings below take the place of Countdown's."""
    thinking: Literal["skip", "read"] = "skip"
    """`skip`: what stands before `</think>` is no answer, and a `<think>` that never closes has none; `read`: it is."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class CodeConfig(FileConfig):
    """Programming problems with tests, read from a file; programs run in a sandbox."""

    name: Literal["code"] = "code"
    """Which task; with `code`, the settings below take the place of Countdown's. An answer holds a problem's tests as
    JSON, as APPS or LiveCodeBench do."""
    tests: int | None = Field(default=None, ge=1)
    """Most tests a problem, the first of its own; `null`: all."""
    sandbox: Literal["bubblewrap", "limits"] = "bubblewrap"
    """What a program runs in; `limits` is for machines without bubblewrap and is no wall."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class OwnConfig(FileConfig):
    """Problems of a file that a function of your own judges, in training and in evaluation."""

    name: Literal["own"] = "own"
    """Which task; with `own`, the settings below take the place of Countdown's."""
    reward: _Function = Field()
    """The function that judges a response, `module:function`; it gets (prompt, response, row) and returns a number, or
    a dict of parts (docs/own.md)."""
    right_from: float = 1.0
    """The reward from which on a response counts as right, for the pass@k of an evaluation."""


TaskConfig = CountdownConfig | MathsConfig | CodeConfig | OwnConfig
