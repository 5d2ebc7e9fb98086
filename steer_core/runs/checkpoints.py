"""The checkpoints of a run: written whole or not at all, checked by checksums, chosen to go on from.

    checkpoints/step_000010/   model.safetensors  config.json  tokenizer...  optimizer.safetensors  metrics.jsonl.gz ...
                               manifest.json

A checkpoint is a Hugging Face folder with the training engine's files and the run's logs so far beside. Its manifest
holds the SHA-256 of every file, the run's fingerprint, the intervention's memory and, where it was evaluated, its
pass@k. It is written aside and renamed: after a kill at any moment the folder holds whole checkpoints or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.common.files import PARTIAL, fsync, read_json, refusal, sha256, write_atomically
from steer_core.common.settings import read_yaml
from steer_core.config.config import Config
from steer_core.engines.base import TrainingEngine
from steer_core.interventions.base import Memory
from steer_core.policy.model import Policy, base_digest, settings_digests
from steer_core.runs import logs

_NAME = re.compile(r"step_(\d+)")


class Checkpoints:
    """Those of the run in a folder, with its configuration."""

    def __init__(self, run: Path, config: Config) -> None:
        self.run, self.config, self.folder = run, config, run / "checkpoints"

    def saved(self) -> list[Path]:
        """Finished checkpoints, oldest first; whatever else lies beside them is left alone."""
        found = (p for p in self.folder.glob("step_*") if _NAME.fullmatch(p.name) and p.is_dir())
        return sorted(found, key=step_of)

    def save(
        self, rollout_index: int, policy: Policy, engine: TrainingEngine, memory: Memory, score: float | None = None
    ) -> Path:
        """Write one after so many rollouts and drop those that train.checkpoints_kept and best_kept let go.

        memory: the intervention's. score: its pass@k, where the rollout was evaluated. Every rank writes its
        part, into one file system.
        """
        final = self.folder / f"step_{rollout_index:06d}"
        partial = final.with_name(PARTIAL + final.name)
        with writing(self.run):
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
                self._finish(partial, final, {"step": rollout_index, **about, "intervention": memory, "score": score})
            ranks.barrier()
        return final

    def _finish(self, partial: Path, final: Path, about: dict[str, Any]) -> None:
        """Give a written checkpoint the logs, its manifest and its name, and drop older ones."""
        logs.keep(self.run, partial)
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        sums = {p.relative_to(partial).as_posix(): sha256(p) for p in files}
        manifest = {"run": self._fingerprints()[0], **about, "sha256": sums}
        (partial / "manifest.json").write_text(_sealed(manifest), encoding="utf-8")
        own = [self.run / name for name in logs.LOGS if (self.run / name).exists()]
        for file in [*(p for p in partial.rglob("*") if p.is_file()), *own]:
            fsync(file)
        if os.path.lexists(final):  # a stray file or a dead link, for `rewind` dropped what was a checkpoint
            print(f"warning: {final} is no checkpoint; it is set aside as {final.name}.stray", file=sys.stderr)
            final.rename(final.with_name(f"{final.name}.stray"))
        partial.rename(final)
        fsync(final.parent)
        for old in self._let_go():
            _remove(old)

    def _let_go(self) -> list[Path]:
        """Checkpoints that are neither among the last nor among the best, oldest first."""
        *older, _ = saved = self.saved()
        last = set(saved[-self.config.train.checkpoints_kept :])
        told = {path: self._examine(path, sums=False)[0].get("score") for path in saved}
        scores = {path: score for path, score in told.items() if score is not None and self._in_turn(step_of(path))}
        best = sorted(scores, key=lambda path: (-scores[path], path))[: self.config.train.best_kept]
        return [path for path in older if path not in last and path not in best]

    def _in_turn(self, rollout_index: int) -> bool:
        """Whether a rollout is one that the run saves and evaluates after, rather than the end of a shorter plan."""
        train, every = self.config.train, self.config.evaluation.every
        turns = [train.checkpoint_every, every] if every else [train.checkpoint_every]
        return rollout_index == train.rollouts or not any(rollout_index % turn for turn in turns)

    def rewind(self, rollout_index: int) -> None:
        """Drop those after a rollout, the newest first, and what a killed process left half done."""
        for path in reversed(self.saved()):
            if step_of(path) > rollout_index:
                _remove(path)
        for path in self.folder.glob(f"{PARTIAL}*"):
            _delete(path)

    def choose(self, from_step: int | None = None, fall_back: bool = False) -> Path | None:
        """The checkpoint to go on from, whole and this run's own: the last, or that of `from_step`; None without any.

        fall_back: where the last is damaged, say so and take the last one that is whole. Raises SteerError
        where there is none such, and where the base model's weights are others now.
        """
        paths = self.saved()
        if from_step is not None:
            steps = [step_of(path) for path in paths]
            if from_step not in steps:
                raise SteerError(f"--from-step: {from_step} is no checkpoint of {self.run}; there are {steps}")
            paths = [paths[steps.index(from_step)]]
        self.check_base()
        while paths:
            try:
                self.check(paths[-1])
                break
            except SteerError as error:
                if not fall_back or len(paths) == 1:  # begin anew, and all that is there would go
                    raise
                print(f"warning: {error}", file=sys.stderr)
                paths.pop()
        return paths[-1] if paths else None

    def restore(self, path: Path, engine: TrainingEngine) -> tuple[int, Memory]:
        """Load a checkpoint that `choose` gave into the engine: (its rollout, the intervention's memory).

        No code is executed. Raises SteerError where another engine wrote it.
        """
        manifest, problem = self._examine(path, sums=False)
        if problem is not None:  # it was whole where the first rank looked
            raise SteerError(f"checkpoint {path}: {problem} on rank {ranks.rank()}; give all ranks one file system")
        if manifest["engine"] != self.config.engine.name:
            raise SteerError(f"checkpoint {path}: was written by engine.name={manifest['engine']}; go on with that one")
        engine.load(path, manifest)
        return manifest["step"], manifest["intervention"]

    def check(self, path: Path) -> dict[str, Any]:
        """The manifest of a checkpoint that is whole and this run's own.

        Raises SteerError with the reason if not, and offers the last one before it that is.
        """
        manifest, problem = self._examine(path)
        if problem is None:
            return manifest
        whole = [p for p in self.saved() if p.name < path.name and self._examine(p)[1] is None]
        remedy = (
            f"go on from the last one that is whole with --resume --from-step {step_of(whole[-1])}"
            if whole
            else "no earlier checkpoint is left; start the run again in another folder"
        )
        raise SteerError(f"checkpoint {path}: {problem}; {remedy}")

    def check_base(self) -> None:
        """Raise SteerError where model.path no longer holds what the run began from: weights, settings, tokenizer."""
        digest = base_digest(self.config.model.path)
        remedy = "put it back from a copy" + (
            f', or, where model.path is as it was when the run began, write {{"base_model_sha256": "{digest}"}} into it'
        )
        about = read_json(self.run / "environment.json", "environment", remedy)
        if about.get("base_model_sha256") != digest:
            raise SteerError(
                f"run folder {self.run}: model.path ({self.config.model.path}) has other weights than when the run "
                "began; put them back, or start the run again in another folder"
            )
        kept, now = about.get("base_model_settings_sha256"), settings_digests(self.config.model.path)
        changed = sorted(n for n in kept if kept[n] != now.get(n)) if isinstance(kept, dict) else []  # older runs: none
        if changed:
            raise SteerError(
                f"run folder {self.run}: {changed[0]} of model.path ({self.config.model.path}) is not as it was when "
                "the run began; put it back, or start the run again in another folder"
            )

    def kept_logs(self, rollout_index: int) -> dict[str, list[logs.Row]] | None:
        """What the checkpoint of a rollout keeps of the logs up to it; None where it keeps nothing."""
        return logs.kept(self.folder / f"step_{rollout_index:06d}")

    def _examine(self, path: Path, sums: bool = True) -> tuple[dict[str, Any], str | None]:
        """(manifest, what is wrong with the checkpoint or None); without `sums`, of the manifest alone."""
        try:
            manifest = read_json(path / "manifest.json", "manifest", "")
        except SteerError:
            return {}, "manifest.json is missing or damaged"
        if not _is_manifest(manifest, step_of(path)):
            return {}, "manifest.json is missing or damaged"
        for name, digest in manifest["sha256"].items() if sums else ():
            if not (path / name).is_file() or sha256(path / name) != digest:
                return manifest, f"{name} is missing or does not match its checksum"
        own = manifest["run"] in self._fingerprints()
        return manifest, None if own else "was written by a run with other settings"

    def _fingerprints(self) -> tuple[str, str]:
        """A hash of the settings as config.yaml holds them; settings that came after the run began are not in it.

        Nor is the planned length, which may change; the second hash has it, as those of older checkpoints.
        """
        settings = read_yaml(self.run / "config.yaml")
        train = {name: value for name, value in settings.get("train", {}).items() if name != "rollouts"}
        without, whole = (
            hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:16]
            for one in (settings | {"train": train}, settings)
        )
        return without, whole

    def unbind_from_length(self) -> None:
        """Let checkpoints of older versions, which are bound to the planned length, be this run's under another."""
        for path in self.saved():
            manifest, problem = self._examine(path, sums=False)
            if problem is None:
                manifest["run"] = self._fingerprints()[0]
                write_atomically(path / "manifest.json", _sealed(manifest))


_SEAL = "manifest_sha256"
_GO_ON = (
    "make room, give it write permission or move away what is in its way, then --resume: every finished checkpoint is "
    "kept"
)


@contextmanager
def writing(run: Path, remedy: str = _GO_ON) -> Iterator[None]:
    """Turn what a full disk or a missing permission raises into a SteerError with the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = refusal(error) if isinstance(error, OSError) else str(error)
        raise SteerError(f"run folder {run}: cannot be written ({reason}); {remedy}") from error


def _is_manifest(manifest: dict[str, Any], step: int) -> bool:
    """Whether a manifest is of the shape that `save` writes, and of this rollout."""
    sums, memory, score = (manifest.get(key) for key in ("sha256", "intervention", "score"))
    return (
        manifest.get("step") == step
        and all(isinstance(manifest.get(key), str) for key in ("run", "engine"))
        and isinstance(sums, dict)
        and any(name.endswith(".safetensors") for name in sums)
        and isinstance(memory, dict)
        and all(isinstance(value, int | float) for value in memory.values())
        and isinstance(score, int | float | None)
        and (manifest["engine"] != "local" or isinstance(manifest.get("optimizer"), list))
        and manifest.get(_SEAL) in (None, _seal(manifest))  # manifests of older versions have none
    )


def _sealed(manifest: dict[str, Any]) -> str:
    """A manifest as text, with the hash of what it says."""
    return json.dumps(manifest | {_SEAL: _seal(manifest)}, indent=2) + "\n"


def _seal(manifest: dict[str, Any]) -> str:
    said = {name: value for name, value in manifest.items() if name != _SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


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
    _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a folder or a file; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
