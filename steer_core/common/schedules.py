"""Settings that may follow a schedule: a number, a line from one number to another, or a curve given by points."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from steer_core.common.errors import SteerError, one_line
from steer_core.common.files import read_text

FILE = "file:"
"""What a schedule's text begins with where a file holds its points."""
MOST_POINTS = 10_000
"""Points of a schedule, which a run's config.yaml keeps."""
_LATEST = 2**53 - 1
_LINE, _POINT = re.compile(r"(\S+) to (\S+) over (\S+)"), re.compile(r"(\S+) at (\S+)")
_FORMS = 'write a number, "0.3 to 0.15 over 200", "0.3 at 1, 0.25 at 50, 0.15 at 200" or file:curve.csv'


class Schedule(NamedTuple):
    """A value at every rollout: linear between the points, constant before the first and after the last.

    points: (rollout, value) each, rollouts rising; rollouts count from 1.
    """

    points: tuple[tuple[int, float], ...]

    def at(self, rollout: int) -> float:
        """The value at a rollout."""
        after = bisect_right([n for n, _ in self.points], rollout)
        if after == 0:
            return self.points[0][1]
        n, value = self.points[after - 1]
        if after == len(self.points):
            return value
        next_n, next_value = self.points[after]
        return value + (next_value - value) * (rollout - n) / (next_n - n)

    def __str__(self) -> str:
        """The schedule as a setting's text, from which it is read back bit for bit."""
        if len(self.points) == 2 and self.points[0][0] == 1:
            (_, first), (last_n, last) = self.points
            return f"{first!r} to {last!r} over {last_n}"
        return ", ".join(f"{value!r} at {n}" for n, value in self.points)


def scheduled(written: Any) -> float | Schedule:
    """A setting's value as a number or a schedule, none of them below 0.

    `0.3`: always that. `0.3 to 0.15 over 200`: rollout 1 has the first, rollout 200 and every later one the second,
    linear between. `0.3 at 1, 0.25 at 50`: the values at these rollouts, linear between. `file:curve.csv`: such points,
    one row `rollout,value` each, with or without a header; the file is read here and never again, so that a run keeps
    its values and no path. Raises PydanticCustomError, which says what is wrong and what to write.
    """
    if isinstance(written, Schedule):
        return written
    if isinstance(written, int | float) or _number(written) is not None:
        return _value(written)
    if not isinstance(written, str):
        raise _refusal(_FORMS)
    text = written.strip()
    if text.startswith(FILE):
        return Schedule(_risen(_points_of(text.removeprefix(FILE))))
    if line := _LINE.fullmatch(text):
        first, last, rollouts = line.groups()
        return Schedule(_risen([("1", first), (rollouts, last)]))
    points = [_POINT.fullmatch(part.strip()) for part in text.split(",")]
    if not all(points):
        raise _refusal(_FORMS)
    return Schedule(_risen([(point[2], point[1]) for point in points if point]))


def value_at(setting: float | Schedule, rollout: int) -> float:
    """The value of a setting at a rollout, from 1."""
    return setting.at(rollout) if isinstance(setting, Schedule) else setting


def highest(setting: float | Schedule) -> float:
    """The largest value that a setting ever has."""
    return max(value for _, value in setting.points) if isinstance(setting, Schedule) else setting


def may_be_scheduled(hint: Any) -> bool:
    """Whether a setting of a type may follow a schedule."""
    return hint is Schedule or any(may_be_scheduled(part) for part in get_args(hint))


def _as_written(setting: float | Schedule) -> float | str:
    return str(setting) if isinstance(setting, Schedule) else setting


Scheduled = Annotated[float | Schedule, PlainValidator(scheduled), PlainSerializer(_as_written)]
"""The type of a setting, 0 or more, that may follow a schedule; see `scheduled` for how it is written."""


def _points_of(path: str) -> list[tuple[str, str]]:
    """The rows of a file as texts (rollout, value)."""
    try:
        lines = read_text(path, "schedule", "give a file with a row `rollout,value` for every point").splitlines()
    except SteerError as error:
        raise _refusal(str(error)) from error
    rows = [(n, line.split(",")) for n, line in enumerate(lines, 1) if line.strip()]
    if rows and len(rows[0][1]) == 2 and _number(rows[0][1][0]) is None:
        rows = rows[1:]
    for n, cells in rows:
        if len(cells) != 2:
            told = one_line(",".join(cells), 40)
            raise _refusal(f"line {n} of {path} is {told!r}; write two columns, rollout and value, such as 10,0.25")
    if not rows:
        raise _refusal(f"{path} holds no point; write a row `rollout,value` for each, such as 10,0.25")
    return [(rollout, value) for _, (rollout, value) in rows]


def _risen(points: list[tuple[str, str]]) -> tuple[tuple[int, float], ...]:
    """Points of texts (rollout, value) as numbers, checked."""
    if len(points) > MOST_POINTS:
        raise _refusal(f"there are {len(points)} points; give at most {MOST_POINTS}, it is linear between them")
    found: list[tuple[int, float]] = []
    for rollout, value in points:
        n = _number(rollout)
        if n is None or not n.is_integer() or not 0 <= n <= _LATEST:
            raise _refusal(f"{one_line(rollout, 40)!r} is no rollout; write whole numbers, counted from 1")
        if found and n <= found[-1][0]:
            raise _refusal(f"rollout {int(n)} does not come after rollout {found[-1][0]}; give rollouts that rise")
        found.append((int(n), _value(value)))
    return tuple(found)


def _value(written: Any) -> float:
    number = _number(written)
    if number is None or not math.isfinite(number):
        raise _refusal(f"{one_line(written, 40)!r} is no finite number; {_FORMS}")
    if number < 0:
        raise _refusal(f"{one_line(written, 40)} is below 0; write 0 or more")
    return number


def _number(written: Any) -> float | None:
    try:
        return float(written)
    except (TypeError, ValueError, OverflowError):
        return None


def _refusal(told: str) -> PydanticCustomError:
    return PydanticCustomError("schedule", "{told}", {"told": told})
