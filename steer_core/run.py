"""The run folder: configuration, environment, metrics, sampled responses, checkpoints.

    config.yaml  environment.json  metrics.jsonl  evaluations.jsonl  notes.jsonl
    tensorboard/  rollouts/step_000001.jsonl  checkpoints/step_000010/  report.html

A checkpoint is written aside and renamed, and its manifest holds the SHA-256 of every file: after a
kill at any moment the folder holds whole checkpoints or none. What was logged after the checkpoint
a run resumes from is dropped and written again. Keys under `time/` are wall-clock readings; all
else is the same, bit for bit, in an interrupted and an uninterrupted run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steer_core.config import Config, build, read_yaml, to_dict
from steer_core.errors import SteerError

_LOGS = ("metrics.jsonl", "evaluations.jsonl", "notes.jsonl")
_LONGEST_LINE = 1 << 16


class RunFolder:
    """One run on disk. `create` starts one, `open` goes on with one."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config

    @classmethod
    def create(cls, path: str | Path, config: Config) -> RunFolder:
        """A new run folder. Raises SteerError where one is there already or cannot be written."""
        path = Path(path)
        if (path / "config.yaml").exists():
            raise SteerError(f"run folder {path}: holds a run already; use --resume to go on with it, or another --out")
        run = cls(path, config)
        with run.writing():
            path.mkdir(parents=True, exist_ok=True)
            (path / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
            write_atomically(path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in a folder. Raises SteerError where there is none."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise SteerError(f"run folder {path}: holds no config.yaml; give the folder of a run that was started")
        return cls(path, build(Config, read_yaml(path / "config.yaml")))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; SteerError where another one trains in it."""
        with self.writing():
            file = (self.path / ".lock").open("w", encoding="utf-8")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SteerError(
                    f"run folder {self.path}: another process trains in it; wait for it or end it"
                ) from error
            yield

    def log(self, step: int, metrics: dict[str, Any], name: str = "metrics.jsonl") -> None:
        """Append one line to a log; `step` counts finished rollouts."""
        with self.writing(), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def write_rollout(self, step: int, rows: list[dict[str, Any]]) -> None:
        """The sampled responses of a rollout, one JSON line each."""
        with self.writing():
            (self.path / "rollouts").mkdir(exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.path / "rollouts" / f"step_{step:06d}.jsonl").write_text(text, encoding="utf-8")

    def read(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a log; a last line that a kill cut short is left out."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`."""
        with self.writing():
            for name in _LOGS:
                rows = [row for row in self.read(name) if row["step"] <= step]
                if (self.path / name).exists():
                    write_atomically(self.path / name, "".join(json.dumps(row) + "\n" for row in rows))
            for path in (self.path / "rollouts").glob("step_*.jsonl"):
                if _step_of(path) > step:
                    path.unlink()

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step_*") if p.is_dir())

    def save_checkpoint(
        self, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, optimizer: torch.optim.Optimizer
    ) -> Path:
        """Write a checkpoint after `step` rollouts and drop those beyond train.checkpoints_kept."""
        final = self.path / "checkpoints" / f"step_{step:06d}"
        partial = final.with_name(f".partial_{final.name}")
        with self.writing():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            tensors, settings = _flatten_optimizer(optimizer)
            save_file(tensors, partial / "optimizer.safetensors")
            manifest = {
                "step": step,
                "run": _fingerprint(self.config),
                "optimizer": settings,
                "sha256": {p.name: _sha256(p) for p in sorted(partial.iterdir())},
            }
            (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            for file in partial.iterdir():
                _sync(file)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            _sync(final.parent)
            for old in self.checkpoints()[: -self.config.train.checkpoints_kept]:
                shutil.rmtree(old)
        return final

    def check_checkpoint(self, path: Path) -> dict[str, Any]:
        """The manifest of a checkpoint that is whole and this run's own; SteerError with the reason if not."""
        others = [p for p in self.checkpoints() if p.name < path.name]
        remedy = (
            f"go on from the one before it with --resume --from-step {_step_of(others[-1])}"
            if others
            else "no earlier checkpoint is left; start the run again"
        )
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            wanted, run = manifest["sha256"], manifest["run"]
        except (OSError, ValueError, KeyError) as error:
            raise SteerError(f"checkpoint {path}: manifest.json is missing or damaged; {remedy}") from error
        for name, digest in wanted.items():
            if not (path / name).is_file() or _sha256(path / name) != digest:
                raise SteerError(f"checkpoint {path}: {name} is missing or does not match its checksum; {remedy}")
        if run != _fingerprint(self.config):
            raise SteerError(f"checkpoint {path}: was written by a run with other settings; {remedy}")
        return manifest

    def restore(self, path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> int:
        """Load a checkpoint into model and optimiser, without executing code; the step it was taken at."""
        manifest = self.check_checkpoint(path)
        model.load_state_dict(load_file(path / "model.safetensors"), strict=False)
        model.tie_weights()
        _unflatten_optimizer(optimizer, load_file(path / "optimizer.safetensors"), manifest["optimizer"])
        return manifest["step"]

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


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines log that may still be growing; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LONGEST_LINE))
        lines = file.read().split(b"\n")
    return json.loads(lines[-2]) if len(lines) > 1 else None


def environment() -> dict[str, Any]:
    """What a number depends on: command, date, machine, versions, and the state of the source tree."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "--no-optional-locks"]
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(["steer", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "steer-core")},
        "git_commit": commit if tracked.returncode == 0 else None,
        "git_modified": bool(status.stdout.strip()) if tracked.returncode == 0 else None,
    }


def processor_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.exists())
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _fingerprint(config: Config) -> str:
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {f"{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items()}
    return {k: v.contiguous() for k, v in tensors.items() if isinstance(v, torch.Tensor)}, state["param_groups"]


def _unflatten_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]
) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, whole."""
    partial = path.with_name(f".partial_{path.name}")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.rename(path)
