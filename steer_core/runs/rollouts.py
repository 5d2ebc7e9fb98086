"""A run's sampled responses: `rollouts/step_000257.parquet` a rollout, `steps_000001-000256.parquet` for PART of them.

When the last rollout of a part is there, the files of the part become one. A kill in between leaves both, and either is
whole; going back within a part takes it apart again. See `responses.py` for what a file holds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from steer_core.common.errors import SteerError
from steer_core.common.files import PARTIAL
from steer_core.runs import responses
from steer_core.runs.responses import Response

PART = 256
"""Rollouts whose responses share a file."""
_LARGEST_PART = 10_000
_PART_NAME = re.compile(r"steps_(\d+)-(\d+)\.parquet")


def rollout_path(run: str | Path, step: int) -> Path:
    """The file of a rollout's responses in a run's folder, until it becomes one with others."""
    return Path(run) / "rollouts" / f"step_{step:06d}.parquet"


def steps_in(run: str | Path, suffix: str = "parquet") -> list[int]:
    """The steps whose files lie in a run's rollouts/, in order; of Parquet, those within parts too."""
    steps = set(_single(Path(run), suffix))
    if suffix == "parquet":
        steps.update(step for span in _parts(Path(run)).values() for step in span)
    return sorted(steps)


def read(run: str | Path, step: int) -> list[Response]:
    """The responses of a rollout. Raises SteerError as `responses.read` does."""
    path = rollout_path(run, step)
    parts = [part for part, span in _parts(Path(run)).items() if step in span]
    return responses.read(path) if path.exists() or not parts else responses.read_rollout(parts[0], step)


def add(run: Path, step: int, rows: list[Response]) -> None:
    """Write the responses of a rollout, and make one file of its part where it is the last of it."""
    rollout_path(run, step).parent.mkdir(exist_ok=True)
    responses.write(rollout_path(run, step), rows)
    if step % PART == 0:
        _join(run, range(step - PART + 1, step + 1))


def rewind(run: Path, step: int) -> None:
    """Drop what was sampled after a rollout, and what a killed process left half done."""
    for part, span in _parts(run).items():
        if span[-1] > step:
            _take_apart(run, part, [one for one in span if one <= step])
        else:
            for one in _single(run).keys() & set(span):
                rollout_path(run, one).unlink()
    for suffix in ("parquet", "html"):
        for one, path in _single(run, suffix).items():
            if one > step:
                path.unlink()
    for path in (run / "rollouts").glob(f"{PARTIAL}*"):
        path.unlink()


def _single(run: Path, suffix: str = "parquet") -> dict[int, Path]:
    """The files of one rollout each, by its number."""
    found = {path: re.fullmatch(rf"step_(\d+)\.{suffix}", path.name) for path in (run / "rollouts").glob("step_*")}
    return {int(match[1]): path for path, match in found.items() if match}


def _parts(run: Path) -> dict[Path, range]:
    """The files of several rollouts, with the rollouts that each holds."""
    found: dict[Path, range] = {}
    for path, first, last in _spans(run):
        if 0 <= last - first < _LARGEST_PART:
            found[path] = range(first, last + 1)
    return found


def _spans(run: Path) -> Iterator[tuple[Path, int, int]]:
    for path in sorted((run / "rollouts").glob("steps_*")):
        if match := _PART_NAME.fullmatch(path.name):
            yield path, int(match[1]), int(match[2])


def _join(run: Path, span: range) -> None:
    """Make one file of those of some rollouts; where one is lost or damaged, all stay as they are."""
    single = _single(run)
    if not all(step in single for step in span):
        return
    try:
        responses.join(
            {step: single[step] for step in span}, run / "rollouts" / f"steps_{span[0]:06d}-{span[-1]:06d}.parquet"
        )
    except SteerError as error:
        print(f"warning: {error}", file=sys.stderr)
        return
    for step in span:
        single[step].unlink()


def _take_apart(run: Path, part: Path, steps: list[int]) -> None:
    """Put the files of these rollouts back in place of a part; a damaged one is set aside."""
    try:
        for step in steps:
            responses.write(rollout_path(run, step), responses.read_rollout(part, step))
        part.unlink()
    except SteerError as error:
        print(f"warning: {error}; it is set aside as {part.name}.damaged", file=sys.stderr)
        part.rename(part.with_name(f"{part.name}.damaged"))
