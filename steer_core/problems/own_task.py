"""Problems of a file that a function of one's own judges: `task.name=own`."""

from __future__ import annotations

from functools import cached_property

from steer_core.common.errors import SteerError
from steer_core.config.tasks import OwnConfig
from steer_core.problems.files import FileTask
from steer_core.problems.own import Columns
from steer_core.problems.problem import Row
from steer_core.problems.sets import whole_text
from steer_core.problems.task import own_reward
from steer_core.rewards.own import OwnReward


class Own(FileTask[OwnConfig]):
    """The problems of one file; see `FileTask`. A row needs no answer, and the first of those with one text counts."""

    name = "own"

    @property
    def columns(self) -> Columns:
        """See `FileTask.columns`."""
        return Columns(self.config.question, self.config.answer, needed=False)

    def distinct(self, rows: list[Row], file: str, field: str) -> dict[str, Row]:
        """See `FileTask.distinct`."""
        found: dict[str, Row] = {}
        for row in rows:
            found.setdefault(whole_text(row[0]), row)
        return found

    @cached_property
    def grader(self) -> OwnReward:
        """The function, with its workers. Raises SteerError where it is not found."""
        found = self.own_reward
        if found is None:
            raise SteerError("task.reward: names no function; write task.reward=module:function")
        return found

    def make_own_reward(self) -> OwnReward | None:
        """See `Task.make_own_reward`."""
        return own_reward(self.config, self.config.reward, self.config.right_from)
