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
from pathlib import Path
from typing import Any

import yaml

from steer_core.common import ranks
from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import PARTIAL, write_atomically
from steer_core.common.settings import build, read_yaml, to_dict
from steer_core.config.config import Config
from steer_core.engines.base import TrainingEngine
from steer_core.interventions.base import Memory
from steer_core.policy.model import Policy, base_digest
from steer_core.runs.checkpoints import LOGS, Checkpoints, step_of, writing
from steer_core.runs.responses import Response, rollout_path
from steer_core.runs.responses import write as write_responses

_LONGEST_LINE = 1 << 16


class RunFolder:
    """One run on disk. `start` makes the folder, `open` goes on with one."""

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path, self.config = Path(path), config
        self.checkpoints = Checkpoints(self.path, config)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder. Raises SteerError where there is none."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise SteerError(f"run folder {path}: holds no config.yaml; give the folder of a run that was started")
        return cls(path, build(Config, read_yaml(path / "config.yaml")))

    def start(self) -> RunFolder:
        """Make the folder. Raises SteerError where it holds a run already or cannot be written."""
        if (self.path / "config.yaml").exists():
            raise SteerError(
                f"run folder {self.path}: holds a run already; use --resume to go on with it, or another --out"
            )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            about = environment() | {"base_model_sha256": base_digest(self.config.model.path)}
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
                    write_atomically(self.path / name, "".join(json.dumps(row) + "\n" for row in rows))
            for path in (self.path / "rollouts").glob("step_*"):
                if step_of(path) > rollout_index:
                    path.unlink()
            for path in (self.path / "rollouts").glob(f"{PARTIAL}*"):
                path.unlink()


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines log that may still be growing; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LONGEST_LINE))
        lines = file.read().split(b"\n")
    return json.loads(lines[-2]) if len(lines) > 1 else None
