"""What TRL does not tell: statistics from the logits, which it never holds; its reductions; a prompt's identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from steer_core.formulas.token_stats import TokenStats, concatenate, token_stats
from steer_core.policy.head import logits_of

if TYPE_CHECKING:
    from trl import GRPOTrainer

_CHUNK_ELEMENTS = 1 << 22


@contextmanager
def body_outputs(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within it, the last hidden states (B, L, D) of each forward pass through the model's body, without gradient."""
    outputs: list[Tensor] = []
    hook = model.base_model.register_forward_hook(
        lambda body, inputs, output: outputs.append(output.last_hidden_state.detach())
    )
    try:
        yield outputs
    finally:
        hook.remove()


@torch.no_grad()
def stats_of_rows(model: PreTrainedModel, hidden_ND: Tensor, labels_N: Tensor, temperature: float) -> TokenStats:
    """Statistics (N,) at last hidden states, `labels_N` being the sampled tokens; logits a chunk of rows at a time."""
    size = max(1, _CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)
    starts = range(0, max(len(labels_N), 1), size)
    chunks = (slice(start, start + size) for start in starts)
    return concatenate(token_stats(logits_of(model, hidden_ND[rows]), labels_N[rows], temperature) for rows in chunks)


def moments(
    model: PreTrainedModel, hidden: list[Tensor], labels_BT: Tensor, mask_BT: Tensor, temperature: float
) -> list[Tensor]:
    """sum p^2 and sum p^2 ln p (B, T) at response tokens, from what `body_outputs` kept of passes; 0 at padding."""
    width = labels_BT.shape[1]
    rows = torch.cat([part[:, -width - 1 : -1] for part in hidden])[mask_BT]
    stats = stats_of_rows(model, rows, labels_BT[mask_BT], temperature)
    zeros_BT = torch.zeros(mask_BT.shape, dtype=stats.sum_p2.dtype, device=mask_BT.device)
    return [zeros_BT.masked_scatter(mask_BT, values) for values in (stats.sum_p2, stats.sum_p2_logp)]


def by_token(advantages: Tensor) -> Tensor:
    """Advantages with a token axis: (B, 1) from (B,), (B, T) as they are."""
    return advantages[:, None] if advantages.dim() == 1 else advantages


def reduced(trainer: GRPOTrainer, values_BT: Tensor, mask_BT: Tensor, inputs: dict[str, Any]) -> Tensor:
    """A term (B, T) beside the surrogate as TRL's `loss_type` reduces that: a micro-batch's share of a step's loss.

    grpo: the mean over sequences of their means over tokens. bnpo: the mean over the micro-batch's tokens. dr_grpo: the
    sum over sequences times the longest completion. dapo: the sum over a step's share of the generation batch's tokens.
    """
    kept_BT = torch.where(mask_BT, values_BT, 0.0)
    steps = trainer.current_gradient_accumulation_steps
    if trainer.loss_type == "dapo":
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return kept_BT.sum() / (tokens * steps / trainer.args.steps_per_generation)
    if trainer.loss_type == "dr_grpo":
        return kept_BT.sum() / (len(kept_BT) * trainer.max_completion_length) / steps
    if trainer.loss_type == "bnpo":
        return kept_BT.sum() / mask_BT.sum().clamp(min=1) / steps
    return (kept_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)).mean() / steps


def problem_ids(rows: list[dict[str, Any]]) -> list[str]:
    """The identity of each response's problem, of all ranks: a digest of its prompt."""
    texts = (json.dumps(row["prompt"], sort_keys=True, default=str) for row in rows)
    return gather_object([hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts])
