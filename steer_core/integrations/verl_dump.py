"""Every token that verl's actor trains on, written for `steer diagnose`; verl imports this module by its own setting:

    export STEER_DUMP=runs/dump
    python -m verl.trainer.main_ppo ... actor_rollout_ref.model.external_lib=steer_core.integrations.verl_dump

with `actor_rollout_ref.actor.calculate_entropy=True` for entropies. STEER_DUMP names the folder, on every machine whose
workers are to write; without it nothing is written. (`external_lib` takes a list of modules, to use STEER too.)

How: `BaseEngine.train_batch`, which every engine inherits, is wrapped: the loss of each micro-batch is listened to,
with the log-probs and entropies that the actor hands it. Nothing of the training changes, no further pass is taken. A
file an optimiser step of each worker, whose number counts that worker's steps. What verl does not hand the actor, such
as rewards and the sampler's log-probs in some settings, is left out.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from steer_core.common.errors import SteerError
from steer_core.integrations.dump_rows import rows_of
from steer_core.runs import dumps

_INSTALL = "pip install -c constraints.txt -e '.[parity]'"
try:
    from verl.workers.engine.base import BaseEngine
    from verl.workers.utils.padding import no_padding_2_padding
except ModuleNotFoundError as error:
    raise SteerError(f"verl: 0.9 is not installed ({error}); {_INSTALL}") from error

FOLDER = "STEER_DUMP"
"""The environment's variable that names the folder."""
_COLUMNS = {"old_log_probs": "old_logprob", "advantages": "advantage", "rollout_log_probs": "sampler_logprob"}

Loss = Callable[..., tuple[Any, dict[str, Any]]]


class _Listener:
    """A loss whose micro-batches are kept as rows of a dump."""

    def __init__(self, loss: Loss, step: int) -> None:
        self.loss, self.step = loss, step
        self.rows: list[dict[str, Any]] = []

    @property
    def keywords(self) -> dict[str, Any]:
        """Those of the loss within, by which others know it."""
        return _keywords(self.loss)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """What the loss gives."""
        if torch.is_grad_enabled():  # not in a values pass, which STEER may take before
            self.rows += _rows(kwargs["model_output"], kwargs["data"], self.keywords.get("config"), self.step)
        return self.loss(*args, **kwargs)


def _keywords(loss: Any) -> dict[str, Any]:
    """The keywords of verl's loss, within what other modules put around it."""
    while not hasattr(loss, "keywords") and hasattr(loss, "loss"):
        loss = loss.loss
    return getattr(loss, "keywords", {})


def _rows(output: Any, data: Any, config: Any, step: int) -> list[dict[str, Any]]:
    """The rows of a micro-batch, from what the engine hands the loss."""
    columns = {"logprob": no_padding_2_padding(output["log_probs"], data)}
    if output.get("entropy") is not None:
        columns["entropy"] = no_padding_2_padding(output["entropy"], data)
    names = [name for name in ("response_mask", "responses", *_COLUMNS) if name in data]
    padded = data.select(*names).to_padded_tensor()
    columns |= {ours: padded[theirs] for theirs, ours in _COLUMNS.items() if theirs in names}
    mask = padded["response_mask"].bool()
    width = min(values.shape[1] for values in (*columns.values(), mask))
    columns = {name: values[:, :width] for name, values in columns.items()}
    ids = padded["responses"][:, :width] if "responses" in names else mask[:, :width].long()
    uids = data["uid"] if "uid" in data.keys() else None  # noqa: SIM118 (a TensorDict's `in` asks for a tensor)
    settings = _settings(config) if config is not None else {}
    rows = []
    for i, row in enumerate(rows_of(columns, mask[:, :width], mask[:, :width], ids)):
        if "responses" not in names:
            del row["token_ids"]
        group = {} if uids is None else {"group": str(uids[i])}
        rows.append({**row, "step": step, **group, **settings})
    return rows


def _settings(config: Any) -> dict[str, float]:
    """The clip range of verl's actor; `clip_ratio` where one side is null, as in verl."""
    found = {
        "clip_low": config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low,
        "clip_high": config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high,
        "dual_clip": config.clip_ratio_c,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _listening(train_batch: Callable[..., Any]) -> Callable[..., Any]:
    """`BaseEngine.train_batch` that writes its tokens where STEER_DUMP names a folder and the loss is a policy's."""

    @functools.wraps(train_batch)
    def wrapped(engine: BaseEngine, data: Any, loss_function: Loss) -> Any:
        folder, config = os.environ.get(FOLDER), _keywords(loss_function).get("config")
        if not folder or not hasattr(config, "policy_loss"):
            return train_batch(engine, data, loss_function)
        step = getattr(engine, "_steer_dump_steps", 0) + 1
        engine._steer_dump_steps = step
        listener = _Listener(loss_function, step)
        result = train_batch(engine, data, listener)
        _write(Path(folder), step, listener.rows)
        return result

    return wrapped


def _write(folder: Path, step: int, rows: list[dict[str, Any]]) -> None:
    if not rows:  # a stage of a pipeline that makes no log-probs
        return
    several = dist.is_initialized() and dist.get_world_size() > 1
    folder.mkdir(parents=True, exist_ok=True)
    dumps.write(folder / f"step_{step:06d}{f'_rank_{dist.get_rank()}' if several else ''}.parquet", rows)


BaseEngine.train_batch = _listening(BaseEngine.train_batch)
