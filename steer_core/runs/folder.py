"""The run folder: configuration, environment, metrics, sampled responses, checkpoints.

    config.yaml  environment.json  metrics.jsonl  evaluations.jsonl  notes.jsonl
    tensorboard/  rollouts/step_000001.parquet  checkpoints/step_000010/  report.html

A checkpoint is written aside and renamed, and its manifest holds the SHA-256 of every file: after a
kill at any moment the folder holds whole checkpoints or none. What was logged after the checkpoint
a run resumes from is dropped and written again. Keys under `time/` are wall-clock readings; all
else is the same, bit for bit, in an interrupted and an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from steer_core.common import ranks
from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import PARTIAL, fsync, sha256, write_atomically
from steer_core.common.settings import build, read_yaml, to_dict
from steer_core.config.config import Config
from steer_core.engines.base import TrainingEngine
from steer_core.policy.model import Policy, base_digest
from steer_core.runs.responses import Response, rollout_path
from steer_core.runs.responses import write as write_responses

_LOGS = ("metrics.jsonl", "evaluations.jsonl", "notes.jsonl")
_LONGEST_LINE = 1 << 16


class RunFolder:
    """One run on disk. `start` makes the folder, `open` goes on with one."""

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path, self.config = Path(path), config

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
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            about = environment() | {"base_model_sha256": base_digest(self.config.model.path)}
            write_atomically(self.path / "environment.json", json.dumps(about, indent=2) + "\n")
            write_atomically(self.path / "config.yaml", yaml.safe_dump(to_dict(self.config), sort_keys=False))
        return self

    def log(self, step: int, metrics: dict[str, Any], name: str = "metrics.jsonl") -> None:
        """Append one line to a log; `step` counts finished rollouts. Of several ranks, the first does it."""
        if not ranks.is_main():
            return
        with self.writing(), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def write_rollout(self, step: int, rows: list[Response]) -> None:
        """The sampled responses of a rollout; see `responses.py`."""
        with self.writing():
            (self.path / "rollouts").mkdir(exist_ok=True)
            write_responses(rollout_path(self.path, step), rows)

    def read(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a log; a last line that a kill cut short is left out."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def rewind(self, step: int) -> None:
        """Drop what was saved or logged after `step`, and what a killed process left half done.

        Checkpoints go first, the newest before the others: whatever is left has its logs in full.
        """
        if not ranks.is_main():
            return
        with self.writing():
            for path in reversed(self.checkpoints()):
                if step_of(path) > step:
                    _remove(path)
            for name in _LOGS:
                if (self.path / name).exists():
                    rows = [row for row in self.read(name) if row["step"] <= step]
                    write_atomically(self.path / name, "".join(json.dumps(row) + "\n" for row in rows))
            for path in (self.path / "rollouts").glob("step_*"):
                if step_of(path) > step:
                    path.unlink()
            for path in (self.path / "checkpoints").glob(f"{PARTIAL}*"):
                shutil.rmtree(path)
            for path in (self.path / "rollouts").glob(f"{PARTIAL}*"):
                path.unlink()

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step_*") if p.is_dir())

    def save_checkpoint(
        self, step: int, policy: Policy, engine: TrainingEngine, state: dict[str, float], score: float | None = None
    ) -> Path:
        """Write a checkpoint after `step` rollouts and drop those that train.checkpoints_kept and best_kept let go.

        state: what the intervention remembers. score: its pass@k, where the rollout was evaluated. Every rank
        writes its part, into one file system; a Hugging Face folder with the engine's files and a manifest beside.
        """
        final = self.path / "checkpoints" / f"step_{step:06d}"
        partial = final.with_name(PARTIAL + final.name)
        with self.writing():
            if ranks.is_main():
                partial.mkdir(parents=True)
            weights = whole_weights(engine)
            if ranks.is_main():
                policy.model.save_pretrained(partial, state_dict=weights)
                _save_tokenizer(policy.tokenizer, partial)
            ranks.barrier()
            about = engine.save(partial)
            ranks.barrier()
            if ranks.is_main():
                self._finish_checkpoint(partial, final, {"step": step, **about, "intervention": state, "score": score})
            ranks.barrier()
        return final

    def _finish_checkpoint(self, partial: Path, final: Path, about: dict[str, Any]) -> None:
        """Give a written checkpoint its manifest and its name, and drop older ones."""
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        sums = {p.relative_to(partial).as_posix(): sha256(p) for p in files}
        manifest = {"run": self._fingerprint(), **about, "sha256": sums}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        logs = [self.path / name for name in _LOGS if (self.path / name).exists()]
        for file in [*(p for p in partial.rglob("*") if p.is_file()), *logs]:
            fsync(file)
        partial.rename(final)
        fsync(final.parent)
        for old in self._let_go():
            _remove(old)

    def _let_go(self) -> list[Path]:
        """Checkpoints that are neither among the last nor among the best, oldest first."""
        *older, _ = saved = self.checkpoints()
        last = set(saved[-self.config.train.checkpoints_kept :])
        scores = {path: self._examine(path, sums=False)[0].get("score") for path in saved}
        scored = [path for path in saved if scores[path] is not None]
        best = sorted(scored, key=lambda path: (-scores[path], path))[: self.config.train.best_kept]
        return [path for path in older if path not in last and path not in best]

    def choose_checkpoint(self, from_step: int | None = None, fall_back: bool = False) -> Path | None:
        """The checkpoint to go on from, whole and this run's own: the last, or that of `from_step`; None without any.

        fall_back: where the last is damaged, say so and take the last one that is whole. Raises SteerError
        where there is none such, and where the base model's weights are others now.
        """
        paths = self.checkpoints()
        if from_step is not None:
            steps = [step_of(path) for path in paths]
            if from_step not in steps:
                raise SteerError(f"--from-step: {from_step} is no checkpoint of {self.path}; there are {steps}")
            paths = [paths[steps.index(from_step)]]
        self.check_base()
        while paths:
            try:
                self.check_checkpoint(paths[-1])
                break
            except SteerError as error:
                if not fall_back or len(paths) == 1:  # begin anew, and all that is there would go
                    raise
                print(f"warning: {error}", file=sys.stderr)
                paths.pop()
        return paths[-1] if paths else None

    def restore(self, path: Path, engine: TrainingEngine) -> tuple[int, dict[str, float]]:
        """Load a checkpoint that `choose_checkpoint` gave into the engine: (its step, the intervention's state).

        No code is executed. Raises SteerError where another engine wrote it.
        """
        manifest, problem = self._examine(path, sums=False)
        if problem is not None:  # it was whole where the first rank looked
            raise SteerError(f"checkpoint {path}: {problem} on rank {ranks.rank()}; give all ranks one file system")
        if manifest["engine"] != self.config.engine.name:
            raise SteerError(f"checkpoint {path}: was written by engine.name={manifest['engine']}; go on with that one")
        engine.load(path, manifest)
        return manifest["step"], manifest["intervention"]

    def check_checkpoint(self, path: Path) -> dict[str, Any]:
        """The manifest of a checkpoint that is whole and this run's own.

        Raises SteerError with the reason if not, and offers the last one before it that is.
        """
        manifest, problem = self._examine(path)
        if problem is None:
            return manifest
        whole = [p for p in self.checkpoints() if p.name < path.name and self._examine(p)[1] is None]
        remedy = (
            f"go on from the last one that is whole with --resume --from-step {step_of(whole[-1])}"
            if whole
            else "no earlier checkpoint is left; start the run again in another folder"
        )
        raise SteerError(f"checkpoint {path}: {problem}; {remedy}")

    def check_base(self) -> None:
        """Raise SteerError where model.path no longer holds the weights that the run began from."""
        about = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        if about.get("base_model_sha256") != base_digest(self.config.model.path):
            raise SteerError(
                f"run folder {self.path}: model.path ({self.config.model.path}) has other weights than when the run "
                "began; put them back, or start the run again in another folder"
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what a full disk or a missing permission raises into a SteerError with the remedy."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SteerError(
                f"run folder {self.path}: cannot be written ({reason}); make room or give it write permission, "
                "then --resume: every finished checkpoint is kept"
            ) from error

    def _examine(self, path: Path, sums: bool = True) -> tuple[dict[str, Any], str | None]:
        """(manifest, what is wrong with the checkpoint or None); without `sums`, of the manifest alone."""
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            wanted, run = manifest["sha256"], manifest["run"]
        except (OSError, ValueError, KeyError):
            return {}, "manifest.json is missing or damaged"
        for name, digest in wanted.items() if sums else ():
            if not (path / name).is_file() or sha256(path / name) != digest:
                return manifest, f"{name} is missing or does not match its checksum"
        return manifest, None if run == self._fingerprint() else "was written by a run with other settings"

    def _fingerprint(self) -> str:
        """A hash of the settings as config.yaml holds them; settings that came after the run began are not in it."""
        settings = read_yaml(self.path / "config.yaml")
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines log that may still be growing; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LONGEST_LINE))
        lines = file.read().split(b"\n")
    return json.loads(lines[-2]) if len(lines) > 1 else None


def step_of(path: Path) -> int:
    """The rollout that a checkpoint or a file of responses belongs to."""
    return int(path.stem.removeprefix("step_"))


def whole_weights(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """Every weight whole, on the first rank, in CPU memory; nothing on the others, which help to gather them."""
    return {name: weight.to("cpu", copy=True) for name, weight in engine.weights() if ranks.is_main()}


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises a bare Exception on a full disk
        raise OSError(str(error)) from error


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint away so that a kill leaves it whole or gone."""
    doomed = checkpoint.with_name(f"{PARTIAL}gone_{checkpoint.name}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
