"""The runs of scales `smoke` and `paper`: train, evaluate, choose, stage by stage, with a state file.

A run trains to its next checkpoint, which is evaluated on the first problem set; the weights that lead by each rule of
choosing are kept, and training goes on. So a machine that dies loses one stage, and the disk holds two checkpoints
and one set of weights a rule. At the end the chosen weights meet every problem set.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arms import pool
from pipeline.catalogue import Item, Stopped
from steer_core import SteerError
from steer_core.common.environment import read_environment
from steer_core.common.errors import INTERRUPTED
from steer_core.common.files import lock, read_json, write_atomically
from steer_core.evaluation.tables import (
    comparable,
    graders_in,
    read_record,
    read_responses,
    right,
    samples_of,
    summarise,
)
from steer_core.runs.logs import read

SEEDS = (0, 1)
PAPERS_GRADER = "release"
"""The rules of the authors' released code, where a problem set has them; else its first grader."""
_STATE = "state.json"
_WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_NOT_WEIGHTS = {"manifest.json"}


@dataclass(frozen=True)
class Scale:
    """What a scale changes: overlay of `steer train`, settings of `steer evaluate`, ranks, rollouts of checkpoints."""

    overlay: str | None
    evaluate: tuple[str, ...]
    ranks: int
    steps: tuple[int, ...]
    told: str


_PAPER = ("model.device=cuda", "model.dtype=bfloat16", "benchmark.engine=vllm-process")
SCALE = {
    "smoke": Scale(
        "smoke",
        ("model.device=cpu", "benchmark.problems=2", "benchmark.samples=2", "benchmark.max_new_tokens=16"),
        1,
        (1, 2),
        "The paper's configuration with a tiny random model and small sizes, through DeepSpeed and vLLM on a CPU: it "
        "shows that the pieces fit together; its scores say nothing.",
    ),
    "paper": Scale(
        None,
        _PAPER,
        8,
        tuple(range(10, 201, 10)),
        "As published, on 8 GPUs of 80 GB, with two differences: 13,600 of the training set's 17,183 problems are "
        "trained on (the others are held out), and GRPO at half the learning rate is a control of ours.",
    ),
    "paper-1gpu": Scale(
        None,
        _PAPER,
        1,
        tuple(range(10, 201, 10)),
        "As `paper`, on one GPU of 80 GB. No setting changes, and so no number but rounding: more micro-batches make "
        "up the same optimiser step. A rollout takes longer.",
    ),
}


@dataclass(frozen=True)
class Run:
    """One training run of an item: a model, an arm of laptop.yaml, a seed."""

    item: Item
    model: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.model}-{self.arm}-{self.seed}"

    def settings(self) -> list[str]:
        """The arm's settings on top of the model's GRPO configuration."""
        return [*pool().arms[self.arm].overrides, f"train.seed={self.seed}"]


def runs_of(item: Item, seeds: tuple[int, ...] = SEEDS, arms: list[str] | None = None) -> list[Run]:
    """Every run of an item at the paper's scale; controls of ours are among them."""
    if item.paper is None:
        raise SteerError("--scale: this item has no runs of the paper; choose laptop")
    strange = [arm for arm in arms or () if arm not in item.arms]
    if strange:
        raise SteerError(f"--arms: {strange[0]} is no arm of this item; choose from {', '.join(item.arms)}")
    return [Run(item, model, arm, seed) for seed in seeds for model in item.paper.models() for arm in arms or item.arms]


def train_command(run: Run, scale: str, place: Path, step: int) -> list[str]:
    """The command that trains the run in `place` to a checkpoint: `steer train`, under torchrun on several ranks."""
    chosen, train = SCALE[scale], ["steer_core", "train"]
    launcher = [sys.executable, "-m"]
    if chosen.ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(chosen.ranks), "-m"]
    if (place / "config.yaml").exists():
        return [*launcher, *train, "--resume", str(place), f"train.rollouts={step}", "--no-report"]
    model = [] if scale == "smoke" else [f"model.path={run.item.paper.models()[run.model]}"]
    settings = [*run.settings(), *model, f"train.rollouts={step}", "train.best_kept=0"]
    overlay = ["--scale", chosen.overlay] if chosen.overlay else []
    out = ["--out", str(place), "--no-report"]
    return [*launcher, *train, f"paper/{run.model}-grpo", *settings, *overlay, *out]


def evaluate_command(scale: str, weights: Path, benchmarks: list[str], out: Path, count: int | None) -> list[str]:
    """The command that evaluates weights on problem sets, `count` samples a problem (None: the paper's); it goes on."""
    samples = [f"benchmark.samples={count}"] if count and scale != "smoke" else []
    command = [sys.executable, "-m", "steer_core", "evaluate", str(weights), "--benchmarks", *benchmarks]
    command += [*SCALE[scale].evaluate, *samples, "--out", str(out)]
    return [*command, "--resume"] if out.exists() else command


@dataclass
class State:
    """The state file of a run: which stages came to their end, when, by which command."""

    path: Path

    def read(self) -> dict[str, dict[str, Any]]:
        """Stages by name; empty before the first."""
        if not self.path.exists():
            return {}
        return read_json(self.path, "state", "move the run's folder away, and begin it anew")

    def stage(self, name: str, command: list[str], run: Callable[[], None]) -> None:
        """Run a stage that has not come to its end, and say that it has."""
        done = self.read()
        if name in done:
            return
        began = time.monotonic()
        run()
        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - began, 1)}
        done[name] = about | {"command": " ".join(command)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(done, indent=1) + "\n")


def make(run: Run, scale: str, folder: Path, select: str) -> dict[str, Any]:
    """Train, evaluate and choose one run from where it was; its raw row. Raises SteerError where a command failed."""
    place = folder / run.name
    place.mkdir(parents=True, exist_ok=True)
    with lock(place):
        return _make(run, scale, place, select)


def _make(run: Run, scale: str, place: Path, select: str) -> dict[str, Any]:
    state, trained, benchmarks = State(place / _STATE), place / "run", run.item.paper.benchmarks
    for step in SCALE[scale].steps:
        command, out = train_command(run, scale, trained, step), place / f"evaluated-{step:06d}"
        state.stage(f"train to {step}", command, lambda c=command: call(c))
        command = evaluate_command(scale, trained, benchmarks[:1], out, None)
        state.stage(f"evaluate at {step}", command, lambda c=command: call(c))
        state.stage(f"choose at {step}", [], lambda s=step: keep_best(place, trained, s, benchmarks[0]))
    for benchmark in benchmarks:
        out = final_folder(place, select, benchmark, run.item)
        command = evaluate_command(scale, place / "chosen" / select, [benchmark], out, run.item.paper.samples)
        state.stage(out.name, command, lambda c=command: call(c))
    return row_of(run, place, select)


def final_folder(place: Path, select: str, benchmark: str, item: Item) -> Path:
    """Where the chosen weights' responses to a problem set lie; more samples than usual have a folder of their own."""
    samples = f"-{item.paper.samples}" if item.paper.samples else ""
    return place / f"final-{select}-{benchmark}{samples}"


def call(command: list[str]) -> None:
    """Run a command, which Ctrl-C reaches too. Raises SteerError where it fails, Stopped where it was stopped."""
    process = subprocess.Popen(command)
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:  # the command has had it too, and stops after the rollout in hand
            continue
    if status == INTERRUPTED:
        raise Stopped
    if status:
        raise SteerError(f"exit status {status}: {' '.join(command)}; mend that, then run the same again")


def keep_best(place: Path, trained: Path, step: int, benchmark: str) -> None:
    """Keep the weights of the checkpoint of a step for every rule of choosing by which it leads so far."""
    from steer_core.runs.folder import RunFolder  # brings torch, which the list does not need

    run = RunFolder.open(trained)
    held_out = {row["step"]: row for row in run.read("evaluations.jsonl")}
    scores = {
        "published": float(np.mean(counts(place / f"evaluated-{step:06d}")[benchmark]["shares"])),
        "validation": held_out[step]["pass@1"] if step in held_out else None,
        "last": step,
    }
    for rule, score in scores.items():
        chosen = place / "chosen" / rule
        held = chosen / "chosen.json"
        best = read_json(held, "choice", "delete the folder chosen") if held.exists() else None
        if score is None or (best is not None and best["score"] >= score):
            continue
        aside = chosen.with_name(f"{rule}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        saved = run.checkpoints.saved()[-1]
        for pattern in _WEIGHTS:
            for file in saved.glob(pattern):
                if file.name not in _NOT_WEIGHTS:
                    shutil.copy2(file, aside / file.name)
        (aside / "chosen.json").write_text(json.dumps({"step": step, "score": score}), encoding="utf-8")
        shutil.rmtree(chosen, ignore_errors=True)
        aside.rename(chosen)


def counts(evaluated: Path) -> dict[str, dict[str, Any]]:
    """By problem set: right responses to each problem by the paper's grader, their shares, whether it is whole."""
    frame, found = read_responses(evaluated), {}
    summary = summarise(frame, read_record(evaluated).get("data"))
    for name, rows in frame.groupby("benchmark", sort=False):
        grader = next((one for one in graders_in(rows) if one == PAPERS_GRADER), graders_in(rows)[0])
        correct, samples = right(rows, grader).tolist(), samples_of(rows, str(name))
        shares = [count / samples for count in correct]
        about = {"grader": grader, "samples": samples, "whole": comparable(summary[name])}
        found[str(name)] = about | {"correct": correct, "shares": shares}
    return found


def row_of(run: Run, place: Path, select: str) -> dict[str, Any]:
    """What is kept of a finished run: entropy by rollout (nats a token), the choice, right responses by problem."""
    metrics = read(place / "run" / "metrics.jsonl")
    environment = read_environment(place / "run" / "environment.json")
    chosen = read_json(place / "chosen" / select / "chosen.json", "choice", "run the last stage again")
    folders = [final_folder(place, select, name, run.item) for name in run.item.paper.benchmarks]
    final = {name: one for folder in folders for name, one in counts(folder).items()}
    return {
        "model": run.model,
        "arm": run.arm,
        "seed": run.seed,
        "select": select,
        "step": chosen["step"],
        "entropy": [row["entropy/policy"] for row in metrics],
        "benchmarks": {name: {k: v for k, v in one.items() if k != "shares"} for name, one in final.items()},
        "stages": State(place / _STATE).read(),
        "environment": {name: environment.get(name) for name in ("date", "git_commit", "processor", "cores", "gpu")},
    }
