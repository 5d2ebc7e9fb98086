"""Every token that TRL's GRPOTrainer trains on, written for `steer diagnose`; two lines, before training:

    from steer_core.integrations.trl_dump import dump_tokens
    dump_tokens(trainer, "runs/dump")

How: the trainer's own scoring pass and loss are listened to. TRL computes ln p and the entropy of every token anyway,
so no further pass is taken, and no number of the training changes. A trainer of this package works too: its advantages
are written as TRL made them, before any weight. A file an optimiser step; of several processes each writes its own,
without rewards. With one micro-batch a step the entropy that TRL logs is written too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.integrations.dump_rows import rows_of
from steer_core.runs import dumps

_INSTALL = "pip install -c constraints.txt -e '.[parity]'"
try:
    from trl import GRPOTrainer
except ModuleNotFoundError as error:
    raise SteerError(f"trl: not installed ({error}); {_INSTALL}") from error

Inputs = dict[str, Any]
"""A batch of TRL: tensors by name, sequences along the first axis."""
_SEQUENCE = (("prompt_ids", "prompt_mask"), ("completion_ids", "completion_mask"))


def dump_tokens(trainer: GRPOTrainer, folder: str | Path, every: int = 1) -> TokenDump:
    """Have a trainer write the tokens of every `every`-th optimiser step into a folder, which is made.

    Raises SteerError for what is no trainer of TRL, for a folder that holds a dump already, and for Liger's fused loss,
    which has no entropies.
    """
    if not isinstance(trainer, GRPOTrainer):
        raise SteerError(f"trainer: {type(trainer).__name__} is no GRPOTrainer of TRL; give one")
    if trainer.args.use_liger_kernel:
        raise SteerError("use_liger_kernel: True makes no entropies that could be dumped; use False")
    if every < 1:
        raise SteerError(f"every: {every} is below 1; give the number of optimiser steps from one file to the next")
    path = Path(folder)
    if path.is_dir() and any(path.glob("step_*.parquet")):
        raise SteerError(f"folder: {path} holds a dump already; name another")
    path.mkdir(parents=True, exist_ok=True)
    return TokenDump(trainer, path, every)


class TokenDump:
    """What listens to a trainer: the rows of the optimiser step in hand, and whose each response of a generation is."""

    def __init__(self, trainer: GRPOTrainer, folder: Path, every: int) -> None:
        self.trainer, self.folder, self.every = trainer, folder, every
        self.rows: list[dict[str, Any]] = []
        self._scored: tuple[Tensor, Tensor] | None = None
        self._known: dict[bytes, dict[str, Any]] = {}
        self._generate = self._listen("_generate_and_score_completions", self.generated)
        self._score = self._listen("_get_per_token_logps_and_entropies", self.scored)
        self._loss = self._listen("_compute_loss", self.lost)

    def _listen(self, name: str, listener: Callable[..., Any]) -> Callable[..., Any]:
        """Put a listener in the place of a method of this trainer alone; the method itself."""
        own = getattr(self.trainer, name)
        setattr(self.trainer, name, listener)
        return own

    def generated(self, inputs: list[Inputs]) -> Inputs:
        """TRL's generation batch; prompt and reward of a response are kept by its tokens, for TRL shuffles rows."""
        batch = self._generate(inputs)
        if self.trainer.model.training:
            rewards = self._rewards(len(inputs))
            self._known = {
                _key(batch, i): {"group": str(one["prompt"]), "prompt": str(one["prompt"])}
                | ({} if rewards is None else {"reward": rewards[i]})
                for i, one in enumerate(inputs)
            }
        return batch

    def scored(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None, Any]:
        """TRL's scoring pass, whose last result with entropies is kept."""
        logprob, entropy, auxiliary = self._score(*arguments, **named)
        if entropy is not None:
            self._scored = (logprob.detach(), entropy.detach())
        return logprob, entropy, auxiliary

    def lost(self, model: Any, inputs: Inputs) -> Tensor:
        """TRL's loss of a micro-batch, whose tokens are kept; at the last one of a step they are written."""
        self._scored = None
        loss = self._loss(model, inputs)
        trainer, step = self.trainer, self.trainer.state.global_step + 1
        if not trainer.model.training or step % self.every:
            return loss
        if self._scored is None:
            raise SteerError("trl: its loss makes no entropies where they are listened for; train without the dump")
        self.rows += self._rows(inputs, *self._scored, step)
        if trainer.accelerator.sync_gradients:
            self._write(step)
        return loss

    def _rows(self, inputs: Inputs, logprob_BT: Tensor, entropy_BT: Tensor, step: int) -> list[dict[str, Any]]:
        written_BT, advantages = inputs["completion_mask"].bool(), inputs["advantages"]
        old_BT = inputs.get("old_per_token_logps")
        columns = {
            "logprob": logprob_BT,
            "advantage": advantages[:, None].expand_as(logprob_BT) if advantages.dim() == 1 else advantages,
            "old_logprob": logprob_BT if old_BT is None else old_BT,  # TRL's own reading where it keeps none
            "entropy": entropy_BT,
        }
        if inputs.get("sampling_per_token_logps") is not None:
            columns["sampler_logprob"] = inputs["sampling_per_token_logps"]
        processor = self.trainer.processing_class
        tokenizer = getattr(processor, "tokenizer", processor)
        counts_BT = written_BT & (inputs.get("tool_mask", written_BT) != 0)
        rows = rows_of(columns, written_BT, counts_BT, inputs["completion_ids"], tokenizer)
        ends = {*self.trainer.eos_token_ids, tokenizer.pad_token_id}
        return [
            {
                **row,
                "step": step,
                "truncated": not row["token_ids"] or row["token_ids"][-1] not in ends,
                **self._known.get(_key(inputs, i), {}),
                **self._settings(),
            }
            for i, row in enumerate(rows)
        ]

    def _settings(self) -> dict[str, float]:
        trainer = self.trainer
        config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
        found = {
            "clip_low": trainer.epsilon_low,
            "clip_high": trainer.epsilon_high,
            "dual_clip": trainer.args.delta,
            "max_tokens": trainer.max_completion_length,
            "vocabulary": getattr(config.get_text_config(), "vocab_size", None) if config else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _rewards(self, count: int) -> list[float] | None:
        """The weighted rewards of the last `count` responses, as TRL logs them; None where it holds others' too."""
        by_function = self.trainer._logs["rewards"]
        if self.trainer.accelerator.num_processes > 1 or not by_function:
            return None
        columns = [list(by_function[name])[-count:] for name in self.trainer.reward_func_names if name in by_function]
        weights = self.trainer.reward_weights.double().cpu()
        if len(columns) != len(weights) or any(len(column) < count for column in columns):
            return None
        return (torch.tensor(columns, dtype=torch.float64).nan_to_num().T @ weights).tolist()

    def _write(self, step: int) -> None:
        rank, rows, self.rows = self.trainer.accelerator.process_index, self.rows, []
        logged = self.trainer._metrics["train"]["entropy"]
        if self.trainer.current_gradient_accumulation_steps == 1 and logged:
            rows = [row | {"logged_entropy": float(logged[-1])} for row in rows]
        several = self.trainer.accelerator.num_processes > 1
        dumps.write(self.folder / f"step_{step:06d}{f'_rank_{rank}' if several else ''}.parquet", rows)


def _key(batch: Inputs, i: int) -> bytes:
    """What tells a response from others of its batch, whatever its padding: its prompt's tokens and its own."""
    parts = (batch[ids][i][batch[mask][i].bool()] for ids, mask in _SEQUENCE)
    return b"|".join(part.cpu().numpy().tobytes() for part in parts)
