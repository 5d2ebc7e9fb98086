"""Verifiable tasks: prompts, splits and exact verification. `make_task` is the one way to get one."""

from steer_core.config import CountdownConfig
from steer_core.tasks.base import Problem, Split, Task, split_of
from steer_core.tasks.countdown import Countdown

__all__ = ["Countdown", "Problem", "Split", "Task", "make_task", "split_of"]


def make_task(config: CountdownConfig) -> Task:
    """The task that a configuration's `task` section describes."""
    return {"countdown": Countdown}[config.name](config)
