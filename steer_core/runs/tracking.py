"""Where metrics go beside metrics.jsonl: TensorBoard always, Weights & Biases when asked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from steer_core.common import ranks
from steer_core.common.errors import SteerError, one_line
from steer_core.common.settings import to_dict
from steer_core.runs.checkpoints import writing
from steer_core.runs.folder import RunFolder
from steer_core.runs.unsaved import MemoryRun


@contextmanager
def track(run: RunFolder | MemoryRun, finished: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function that shows a rollout's metrics, given its number; of several ranks, the first's does.

    A run in memory is shown nowhere.

    finished: rollouts that the run goes on from; what TensorBoard showed after them is dropped.
    """
    if isinstance(run, MemoryRun) or not ranks.is_main():
        yield lambda rollout_index, metrics: None
        return
    with _tensorboard(run, finished) as board, _wandb(run) as online:

        def show(rollout_index: int, metrics: dict[str, float]) -> None:
            with writing(run.path):
                for name, value in metrics.items():
                    board.add_scalar(name, value, rollout_index)
            if online is not None:
                online.log(metrics, step=rollout_index)

        yield show


@contextmanager
def _tensorboard(run: RunFolder, finished: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer of a run; a full disk is told as everywhere."""
    with writing(run.path):
        board = SummaryWriter(str(run.path / "tensorboard"), purge_step=finished + 1)
    try:
        yield board
    finally:
        with writing(run.path):
            board.close()


@contextmanager
def _wandb(run: RunFolder) -> Iterator[Any]:
    """A Weights & Biases run of the same name, which a resumed run goes on with; None where it is not asked for."""
    if run.config.train.tracker == "none":
        yield None
        return
    try:
        import wandb
    except ImportError as error:
        raise SteerError(
            f"train.tracker: wandb is asked for and is not importable ({error}); "
            "pip install wandb, or set train.tracker=none"
        ) from error
    name, place = run.path.name, hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:16]
    project, settings = os.environ.get("WANDB_PROJECT", "steer"), to_dict(run.config)
    try:
        online = wandb.init(project=project, name=name, id=place, resume="allow", dir=run.path, config=settings)
    except Exception as error:  # whatever it raises without a login, a network or a writable folder
        raise SteerError(
            f"train.tracker: wandb does not start ({type(error).__name__}: {one_line(error)}); run `wandb login`, "
            "set WANDB_MODE=offline, or train.tracker=none"
        ) from error
    try:
        yield online
    finally:
        online.finish()
