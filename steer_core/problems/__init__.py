"""Verifiable tasks: prompts, splits and exact grading. `make_task` is the one way to get one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer_core.config.tasks import CodeConfig, CountdownConfig, OwnConfig, TaskConfig
from steer_core.problems.code import Code
from steer_core.problems.countdown import Countdown
from steer_core.problems.maths import Maths
from steer_core.problems.own_task import Own
from steer_core.problems.problem import Problem
from steer_core.problems.task import Split, Task, split_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Code", "Countdown", "Maths", "Own", "Problem", "Split", "Task", "make_task", "split_of"]


def make_task(config: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The task that a configuration's `task` section describes, its prompts written for the tokenizer's model."""
    if isinstance(config, CountdownConfig):
        return Countdown(config)
    if isinstance(config, CodeConfig):
        return Code(config, tokenizer)
    return Own(config, tokenizer) if isinstance(config, OwnConfig) else Maths(config, tokenizer)
