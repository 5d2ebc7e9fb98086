"""Verifiable tasks: prompts, splits and exact verification. `make_task` is the one way to get one."""

from transformers import PreTrainedTokenizerBase

from steer_core.config import CodeConfig, MathsConfig, TaskConfig
from steer_core.tasks.base import Problem, Split, Task, split_of
from steer_core.tasks.code import Code
from steer_core.tasks.countdown import Countdown
from steer_core.tasks.maths import Maths

__all__ = ["Code", "Countdown", "Maths", "Problem", "Split", "Task", "make_task", "split_of"]


def make_task(config: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The task that a configuration's `task` section describes, its prompts written for the tokenizer's model."""
    if isinstance(config, CodeConfig):
        return Code(config, tokenizer)
    return Maths(config, tokenizer) if isinstance(config, MathsConfig) else Countdown(config)
