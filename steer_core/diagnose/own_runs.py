"""A dump from the folder of a run of this package: what `train.dump_every` wrote, or the responses that it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError
from steer_core.common.places import RUN
from steer_core.common.settings import read_yaml
from steer_core.runs import dumps, rollouts
from steer_core.runs.dumps import Dump
from steer_core.runs.folder import RunFolder
from steer_core.runs.responses import Response


def read_any(path: Path) -> Dump:
    """The dump in a file, in a folder of files, or of a run's folder. Raises SteerError as `dumps.read` does."""
    return read_run(path) if (path / RUN).is_file() else dumps.read(path)


def read_run(path: Path) -> Dump:
    """The dump of a run: of whole rollouts, or of the responses that it keeps, one a problem, as they were sampled."""
    run = RunFolder.open(path)
    course = {row["step"]: row["entropy/policy"] for row in run.read() if "entropy/policy" in row}
    if (path / dumps.FOLDER).is_dir():
        return replace(dumps.read(path / dumps.FOLDER), source=str(path), course=course)
    rows = [row for step in rollouts.steps_in(path) for row in _kept(rollouts.read(path, step), step)]
    if not rows:
        raise SteerError(
            f"DUMP: {path} holds no responses; train with train.logged_responses or train.dump_every above 0"
        )
    settings = _settings(read_yaml(path / RUN))
    found = dumps.of_rows(rows, str(path))
    note = (
        "These are the responses that a run keeps, one a problem, as the policy that sampled saw them: ratios, groups "
        "and whole rollouts are there with `train.dump_every=1`."
    )
    return replace(found, settings=settings, course=course, notes=(note,))


def _kept(rows: Iterable[Response], step: int) -> Iterable[dict[str, Any]]:
    for row in rows:
        yield {
            "step": step,
            "response": row.response,
            "reward": row.reward,
            "advantage": row.advantage,
            "truncated": row.finish_reason == "length",
            "tokens": row.tokens,
            "token_ids": row.token_ids,
            "logprob": [min(value, 0.0) for value in row.logprob],
            "entropy": row.entropy,
        }


def _settings(config: dict[str, Any]) -> dict[str, float]:
    """The settings of a run that a diagnosis reads."""
    algorithm, rollout = config.get("algorithm", {}), config.get("rollout", {})
    named = {"clip_low": algorithm.get("clip_low"), "clip_high": algorithm.get("clip_high")}
    named |= {"dual_clip": algorithm.get("dual_clip"), "max_tokens": rollout.get("max_new_tokens")}
    return {name: value for name, value in named.items() if value is not None}
