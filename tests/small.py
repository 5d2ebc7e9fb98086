"""A run small enough for tests: the real model and task, few prompts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from steer_core.config.config import Config, load_config
from steer_core.rewards.base import Verdict
from steer_core.runs.folder import RunFolder
from steer_core.training.loop import Trainer

SMALL = (
    "rollout.prompts=4",
    "rollout.responses=4",
    "optimizer.mini_batch_prompts=2",
    "optimizer.learning_rate=1e-3",
    "evaluation.problems=4",
    "evaluation.samples=4",
    "evaluation.pass_at=[1, 4]",
    "evaluation.every=2",
    "task.train_problems=64",
    "train.rollouts=4",
    "train.checkpoint_every=2",
)


def small_config(*overrides: str) -> Config:
    """The small configuration with overrides on top."""
    return load_config(None, [*SMALL, *overrides]).with_method()


def small_trainer(folder: Path, *overrides: str) -> Trainer:
    """A trainer of the small configuration, its run in `folder`."""
    return trainer_in(RunFolder(folder, small_config(*overrides)).start())


def trainer_in(run: RunFolder) -> Trainer:
    """The trainer of the run in a folder."""
    return Trainer(run.config, run)


def grade_by(trainer: Trainer, is_right: Callable[[str], bool]) -> None:
    """Let a function of the response decide, in place of the task's grader."""

    def grade(references: list[str], texts: list[str]) -> list[Verdict]:
        return [Verdict("right" if is_right(text) else "wrong") for text in texts]

    trainer.task.grader = SimpleNamespace(name="scripted", grade=grade)


def rollout_seconds(run: RunFolder) -> float:
    """What a rollout of a run took by its own clock, its share of the evaluations included."""
    parts, rows = ("time/rollout_seconds", "time/score_seconds", "time/update_seconds"), run.read()
    working = sum(row[part] for row in rows for part in parts)
    return (working + sum(row["time/seconds"] for row in run.read("evaluations.jsonl"))) / len(rows)


def without_time(rows: list[dict]) -> list[dict]:
    """Log lines without their wall-clock readings."""
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
