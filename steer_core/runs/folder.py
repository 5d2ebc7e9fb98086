"""The run folder: configuration, environment, metrics, sampled responses, checkpoints.

    config.yaml  environment.json  metrics.jsonl  evaluations.jsonl  notes.jsonl
    tensorboard/  rollouts/step_000001.parquet  checkpoints/step_000010/  report.html

What was logged after the checkpoint a run resumes from is dropped and written again. Keys under `time/` are
wall-clock readings; all else is the same, bit for bit, in an interrupted and an uninterrupted run. `step` in a log or
a file's name counts finished rollouts.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from steer_core.common import ranks
from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import PARTIAL, write_atomically
from steer_core.common.settings import apply_overrides, build, read_yaml, to_dict
from steer_core.config.config import Config
from steer_core.config.sections import CountdownConfig
from steer_core.engines.base import TrainingEngine
from steer_core.interventions.base import Memory
from steer_core.policy.model import Policy, base_digest
from steer_core.policy.smoke import SMOKE
from steer_core.problems.sets import find_file
from steer_core.runs.checkpoints import LOGS, Checkpoints, step_of, writing
from steer_core.runs.responses import Response, rollout_path
from steer_core.runs.responses import write as write_responses

_LONGEST_LINE = 1 << 16


class RunFolder:
    """One run on disk. `start` makes the folder, `open` goes on with one."""

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path, self.config, self.written = Path(path), config, config
        self.checkpoints = Checkpoints(self.path, config)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder. Raises SteerError where there is none."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise SteerError(f"run folder {path}: holds no config.yaml; give the folder of a run that was started")
        run = cls(path, build(Config, read_yaml(path / "config.yaml")))
        run.config = run.checkpoints.config = run.located(run.written)
        return run

    def located(self, config: Config) -> Config:
        """A configuration whose files are this run's, with the absolute paths that they had when the run began.

        So a run that was started with relative paths goes on from any folder; paths that are gone stay as written.
        """
        try:
            kept = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))["paths"]
            kept = {name: str(path) for name, path in kept.items() if Path(path).exists()}
        except (OSError, ValueError, LookupError, AttributeError, TypeError):  # told where the file is needed
            return config
        if "model.path" in kept and config.model.path == self.written.model.path:
            config = replace(config, model=replace(config.model, path=kept["model.path"]))
        if "task.file" in kept and not isinstance(config.task, CountdownConfig) and config.task == self.written.task:
            config = replace(config, task=replace(config.task, file=kept["task.file"]))
        return config

    def plan(self, rollouts: int | str) -> None:
        """Plan another length than config.yaml holds, which `keep_plan` writes there."""
        settings = apply_overrides(to_dict(self.config), [f"train.rollouts={rollouts}"])
        self.config = self.checkpoints.config = build(Config, settings)

    def keep_plan(self, finished: int) -> None:
        """Write the planned length; the run goes on as one that was planned so from its start.

        finished: rollouts of the checkpoint that it goes on from. Raises SteerError where no more than these are
        planned.
        """
        planned = self.config.train.rollouts
        if planned == self.written.train.rollouts:
            return
        if planned <= finished:
            raise SteerError(
                f"train.rollouts: {planned} is not more than the {finished} that {self.path} has finished; raise it, "
                "or go on from an earlier checkpoint with --from-step"
            )
        with writing(self.path):
            self.checkpoints.unbind_from_length()
            settings = apply_overrides(read_yaml(self.path / "config.yaml"), [f"train.rollouts={planned}"])
            write_atomically(self.path / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        self.written = build(Config, settings)

    def start(self) -> RunFolder:
        """Make the folder. Raises SteerError where it holds a run already or cannot be written."""
        if (self.path / "config.yaml").exists():
            raise SteerError(
                f"run folder {self.path}: holds a run already; use --resume to go on with it, or another --out"
            )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            digest = base_digest(self.config.model.path)
            about = environment() | {"base_model_sha256": digest, "paths": absolute_paths(self.config)}
            write_atomically(self.path / "environment.json", json.dumps(about, indent=2) + "\n")
            write_atomically(self.path / "config.yaml", yaml.safe_dump(to_dict(self.config), sort_keys=False))
        return self

    @property
    def how_to_go_on(self) -> str:
        """For an error's remedy: how this run is gone on with."""
        return f"--resume {self.path}"

    def log(self, rollout_index: int, metrics: dict[str, Any], name: str = "metrics.jsonl") -> None:
        """Append one line to a log. Of several ranks, the first does it."""
        if not ranks.is_main():
            return
        with writing(self.path), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": rollout_index, **metrics}) + "\n")

    def write_rollout(self, rollout_index: int, rows: list[Response]) -> None:
        """The sampled responses of a rollout; see `responses.py`."""
        with writing(self.path):
            (self.path / "rollouts").mkdir(exist_ok=True)
            write_responses(rollout_path(self.path, rollout_index), rows)

    def save_checkpoint(
        self, rollout_index: int, policy: Policy, engine: TrainingEngine, memory: Memory, score: float | None = None
    ) -> None:
        """A checkpoint after so many rollouts; see `Checkpoints.save`."""
        self.checkpoints.save(rollout_index, policy, engine, memory, score)

    def read(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a log; a last line that a kill cut short is left out."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def rewind(self, rollout_index: int) -> None:
        """Drop what was saved or logged after a rollout, and what a killed process left half done.

        Checkpoints go first, the newest before the others: whatever is left has its logs in full.
        """
        if not ranks.is_main():
            return
        with writing(self.path):
            self.checkpoints.rewind(rollout_index)
            for name in LOGS:
                if (self.path / name).exists():
                    rows = [row for row in self.read(name) if row["step"] <= rollout_index]
                    if name == "evaluations.jsonl":
                        rows = [row for row in rows if self._evaluates(row["step"])]
                    write_atomically(self.path / name, "".join(json.dumps(row) + "\n" for row in rows))
            for path in (self.path / "rollouts").glob("step_*"):
                if step_of(path) > rollout_index:
                    path.unlink()
            for path in (self.path / "rollouts").glob(f"{PARTIAL}*"):
                path.unlink()

    def _evaluates(self, rollout_index: int) -> bool:
        """Whether the run is evaluated after a rollout; the end of a shorter plan that it once had is none such."""
        every = self.config.evaluation.every
        return rollout_index == self.config.train.rollouts or bool(every and rollout_index % every == 0)


def absolute_paths(config: Config) -> dict[str, str]:
    """The absolute paths of the model and of the task's file, by the settings that name them."""
    found = {}
    if config.model.path not in ("embedded", SMOKE):
        found["model.path"] = str(Path(config.model.path).resolve())
    if not isinstance(config.task, CountdownConfig):
        found["task.file"] = str(find_file(config.task.file).resolve())
    return found


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines log that may still be growing; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LONGEST_LINE))
        lines = file.read().split(b"\n")
    return json.loads(lines[-2]) if len(lines) > 1 else None
