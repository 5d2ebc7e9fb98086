"""The run folder: configuration, environment, metrics, sampled responses, checkpoints.

    config.yaml  environment.json  metrics.jsonl  evaluations.jsonl  notes.jsonl
    tensorboard/  rollouts/  dumps/  checkpoints/step_000010/  report.html

What was logged after the checkpoint a run resumes from is dropped and written again; what was logged before it and is
lost is taken from the checkpoint. Keys under `time/` are
wall-clock readings; all else is the same, bit for bit, in an interrupted and an uninterrupted run. `step` in a log or
a file's name counts finished rollouts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from os.path import exists
from pathlib import Path
from typing import Any

import yaml

from steer_core.common import ranks
from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import read_json, write_atomically
from steer_core.common.places import RUN, refuse_others
from steer_core.common.settings import apply_overrides, build, read_yaml, to_dict
from steer_core.config.config import Config
from steer_core.config.tasks import CountdownConfig
from steer_core.engines.base import TrainingEngine
from steer_core.interventions.base import Memory
from steer_core.policy.model import Policy, base_digest, settings_digests
from steer_core.policy.smoke import SMOKE
from steer_core.problems.sets import find_file
from steer_core.runs import dumps, logs, rollouts
from steer_core.runs.checkpoints import Checkpoints, step_of, writing
from steer_core.runs.responses import Response


class RunFolder:
    """One run on disk. `start` makes the folder, `open` goes on with one."""

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path, self.config, self.written = Path(path), config, config
        self.checkpoints = Checkpoints(self.path, config)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder. Raises SteerError where there is none.

        A method of another package is read and not imported; see `Config.with_method`.
        """
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
        kept = {name: path for name, path in self._paths().items() if exists(path)}
        if "model.path" in kept and config.model.path == self.written.model.path:
            config = replace(config, model=replace(config.model, path=kept["model.path"]))
        if not isinstance(config.task, CountdownConfig) and config.task == self.written.task:
            file = kept.get("task.file", config.task.file)
            held_out = kept.get("task.validation_file", config.task.validation_file)
            config = replace(config, task=replace(config.task, file=file, validation_file=held_out))
        return config

    def check_model(self) -> None:
        """Raise SteerError, naming where it was, where the model folder that the run began from is gone."""
        began = self._paths().get("model.path")
        if began is not None and not exists(began) and not exists(self.config.model.path):
            raise SteerError(
                f"model.path: {began}, which the run began from, is gone; put the folder back there, or a link to "
                "where it is now"
            )

    def _paths(self) -> dict[str, str]:
        """The absolute paths of the run's files when it began, by setting; none where they are not known."""
        try:
            kept = read_json(self.path / "environment.json", "environment", "").get("paths")
        except SteerError:  # told where the file is needed
            return {}
        return {name: str(path) for name, path in kept.items()} if isinstance(kept, dict) else {}

    def plan(self, rollouts: int | str) -> None:
        """Plan another length than config.yaml holds, which `keep_plan` writes there."""
        optimizer = self.config.optimizer
        if optimizer.schedule_ends and optimizer.schedule_rollouts is None:
            raise SteerError(
                f"train.rollouts: the learning rate of {self.path} falls until the planned end (optimizer.schedule "
                f"{optimizer.schedule}), so another length would have been another run; start one in another folder, "
                "with optimizer.schedule_rollouts if its length is to stay open"
            )
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

    def start(self, passes: dict[str, str] | None = None) -> RunFolder:
        """Make the folder. passes: `Trainer.passes`, for `environment.json`.

        Raises SteerError where it holds a run or other results already or cannot be written.
        """
        with writing(self.path, "make room, give it write permission or name another folder, and start again"):
            if (self.path / RUN).exists():
                raise SteerError(
                    f"run folder {self.path}: holds a run already; use --resume to go on with it, or another --out"
                )
            refuse_others(self.path, RUN)
            self.path.mkdir(parents=True, exist_ok=True)
            path = self.config.model.path
            base = {"base_model_sha256": base_digest(path), "base_model_settings_sha256": settings_digests(path)}
            about = environment() | base | {"paths": absolute_paths(self.config), "passes": passes or {}}
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
        """The sampled responses of a rollout; see `rollouts.py`."""
        with writing(self.path):
            rollouts.add(self.path, rollout_index, rows)

    def write_dump(self, rollout_index: int, rows: Iterable[dict[str, Any]]) -> None:
        """Every token of a rollout; see `dumps.py`."""
        with writing(self.path):
            dumps.dump_path(self.path, rollout_index).parent.mkdir(exist_ok=True)
            dumps.write(dumps.dump_path(self.path, rollout_index), rows)

    def save_checkpoint(
        self, rollout_index: int, policy: Policy, engine: TrainingEngine, memory: Memory, score: float | None = None
    ) -> None:
        """A checkpoint after so many rollouts; see `Checkpoints.save`."""
        self.checkpoints.save(rollout_index, policy, engine, memory, score)

    def read(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a log; see `logs.read`."""
        return logs.read(self.path / name)

    def rewind(self, rollout_index: int) -> None:
        """Drop what was saved or logged after a rollout, and what a killed process left half done.

        Checkpoints go first, the newest before the others: whatever is left has its logs in full. Raises SteerError,
        before anything goes, where what was logged up to that rollout is lost.
        """
        if not ranks.is_main():
            return
        with writing(self.path):
            rows_of = self._logged_until(rollout_index)
            self.checkpoints.rewind(rollout_index)
            for name, rows in rows_of.items():
                if rows or (self.path / name).exists():
                    write_atomically(self.path / name, logs.text_of(rows))
            rollouts.rewind(self.path, rollout_index)
            dumps.rewind(self.path, rollout_index)

    def _logged_until(self, rollout_index: int) -> dict[str, list[logs.Row]]:
        """By log the rows up to a rollout: of its checkpoint's copy, or of the log where that keeps none."""
        if rollout_index == 0:
            if last := logs.last_row(self.path / "metrics.jsonl"):
                print(
                    f"warning: {self.path} has no checkpoint; rollouts 1 to {last['step']} are made again",
                    file=sys.stderr,
                )
            return {name: [] for name in logs.LOGS}
        kept = self.checkpoints.kept_logs(rollout_index)
        if kept is None:
            return self._whole_logs(rollout_index)
        kept = {name: self._planned(name, rows, rollout_index) for name, rows in kept.items()}
        for name, rows in kept.items():
            try:
                own, why = (
                    self._planned(name, self.read(name), rollout_index),
                    f"is not as checkpoint {rollout_index} keeps it",
                )
            except SteerError as error:
                own, why = [], f"is damaged ({error})"
            if logs.text_of(own) != logs.text_of(rows):
                print(f"warning: {self.path / name} {why}; its {len(rows)} rows are written again", file=sys.stderr)
        return kept

    def _whole_logs(self, rollout_index: int) -> dict[str, list[logs.Row]]:
        """The logs up to a rollout. Raises SteerError where metrics.jsonl lacks one of these rollouts."""
        rows_of = {name: self._planned(name, self.read(name), rollout_index) for name in logs.LOGS}
        steps = [row["step"] for row in rows_of["metrics.jsonl"]]
        if steps != list(range(1, rollout_index + 1)):
            whole = next((n for n, step in enumerate(steps, 1) if n != step), len(steps) + 1) - 1
            earlier = [step for step in map(step_of, self.checkpoints.saved()) if step <= whole]
            remedy = f"--resume --from-step {earlier[-1]}" if earlier else "start the run again in another folder"
            raise SteerError(
                f"log {self.path / 'metrics.jsonl'}: lacks rollout {whole + 1}, and the checkpoint of rollout "
                f"{rollout_index} keeps no copy; put the file back, or {remedy}"
            )
        return rows_of

    def _planned(self, name: str, rows: list[logs.Row], rollout_index: int) -> list[logs.Row]:
        """The rows of a log up to a rollout, without the evaluation that ended a shorter plan it once had."""
        rows, every, last = logs.until(rows, rollout_index), self.config.evaluation.every, self.config.train.rollouts
        if name != "evaluations.jsonl":
            return rows
        return [row for row in rows if row["step"] == last or (every and row["step"] % every == 0)]


def absolute_paths(config: Config) -> dict[str, str]:
    """The absolute paths of the model and of the task's file, by the settings that name them."""
    found = {}
    if config.model.path not in ("embedded", SMOKE):
        found["model.path"] = str(Path(config.model.path).resolve())
    if not isinstance(config.task, CountdownConfig):
        found["task.file"] = str(find_file(config.task.file).resolve())
        if config.task.validation_file is not None:
            found["task.validation_file"] = str(find_file(config.task.validation_file).resolve())
    return found
