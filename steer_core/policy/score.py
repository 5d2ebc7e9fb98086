"""The scoring pass: log-prob, entropy and p^2 sums of a policy at every response token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.formulas.token_stats import IGNORED_LABEL, TokenStats, token_stats
from steer_core.policy.attention import NOT_EXCHANGEABLE, attending
from steer_core.policy.head import (
    HeadSettings,
    body_of,
    full_precision,
    in_parts,
    logits_at_once,
    shared_out,
    stats_at,
    taken_by,
)
from steer_core.policy.sequences import Sequences, shared_prompts

Layout = Literal["padded", "packed", "shared"]
"""How sequences lie in a forward pass.

padded: one a row. packed: behind one another in one row; the attention implementation must find their borders from the
positions. shared: in one row that holds each prompt once for neighbours that have the same, with attention of our own.
"""


@dataclass(frozen=True)
class Scoring:
    """How the scoring passes of a run are made.

    head: see `HeadSettings`; None makes the model's own forward do it. reason: why this layout.
    """

    layout: Layout = "padded"
    head: HeadSettings | None = None
    reason: str = ""

    def told(self) -> str:
        """In words."""
        rows = {"padded": "a padded row a response", "packed": "packed rows", "shared": "each prompt once"}[self.layout]
        logits = "" if self.head is None else f"; {self.head.told()}"
        return f"{rows}{f' ({self.reason})' if self.reason else ''}{logits}"


PLAIN = Scoring()
"""Padded rows, logits by the model's own forward."""
PACKED = Scoring("packed")
"""The same without padding."""


def score(model: PreTrainedModel, sequences: Sequences, temperature: float, scoring: Scoring = PLAIN) -> TokenStats:
    """Statistics of the policy at every response token, from one forward pass; shape (B, T).

    Masked positions get 0 and no gradient. Differentiable in `logprob` and `entropy`. Beyond a budget, logits exist
    for some rows at a time, in the backward pass too: memory then grows with tokens x hidden size, not tokens x
    vocabulary.
    """
    mask = sequences.response_mask_BT.bool()
    if in_parts(model) and scoring.layout == "padded" and _fits(model, sequences, scoring.head):
        return _by_one_forward(model, sequences, temperature)
    hidden_ND = states(model, sequences, scoring.layout)
    flat = stats_at(model, hidden_ND, sequences.response_ids_BT[mask], temperature, scoring.head)
    return flat.map(lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x))


def _fits(model: PreTrainedModel, sequences: Sequences, settings: HeadSettings | None) -> bool:
    """Whether all logits of the padded responses fit the budget, on every rank that must make the same passes."""
    count, width = sequences.response_ids_BT.shape
    logits = count * (width + 1) * model.config.get_text_config().vocab_size
    logits = ranks.all_reduce_max(logits, model.device) if shared_out(model) else logits
    return logits <= (logits_at_once(model) if settings is None else settings.most)


def _by_one_forward(model: PreTrainedModel, sequences: Sequences, temperature: float) -> TokenStats:
    """Statistics from the model's whole forward: an engine that holds weights in parts follows it best undivided."""
    width = sequences.response_ids_BT.shape[1]
    with full_precision(model):
        logits = model(**taken_by(model, _padded_inputs(sequences) | {"logits_to_keep": width + 1})).logits
    mask = sequences.response_mask_BT.bool()
    labels = sequences.response_ids_BT.masked_fill(~mask, IGNORED_LABEL)
    labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED_LABEL)  # the last predicts nothing
    return token_stats(logits[:, -width - 1 :], labels, temperature)[:, :width]


def states(model: PreTrainedModel, sequences: Sequences, layout: Layout) -> Tensor:
    """The last hidden states (N, D) that predict the N response tokens, sequence by sequence: the body's half."""
    if layout == "packed":
        return packed_states(model, sequences)
    return shared_states(model, sequences) if layout == "shared" else hidden_states(model, sequences)


def tokens_read(sequences: Sequences, layout: Layout) -> tuple[int, int]:
    """(tokens that a forward pass reads, how many of them are no padding)."""
    if layout == "shared":
        read = shared_prompts(sequences).ids_1L.numel()
        return read, read
    masks = (sequences.prompt_mask_BP, sequences.response_mask_BT)
    held = sum(int(mask.sum()) for mask in masks)
    return (held if layout == "packed" else sum(mask.numel() for mask in masks)), held


@contextmanager
def reading(model: PreTrainedModel, sequences: Sequences, layout: Layout) -> Iterator[None]:
    """Inside, a backward pass that makes the activations of some sequences anew makes those that `states` made."""
    with attending(model, shared_prompts(sequences).attend) if layout == "shared" else nullcontext():
        yield


def hidden_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """As `states`, from a forward pass over padded sequences."""
    width = sequences.response_ids_BT.shape[1]
    hidden = _body_states(model, _padded_inputs(sequences))
    return hidden[:, -width - 1 : -1][sequences.response_mask_BT.bool()]


def packed_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """As `states`, from a forward pass over one row that holds every sequence and no padding."""
    mask_BL = torch.cat([sequences.prompt_mask_BP.bool(), sequences.response_mask_BT.bool()], dim=1)
    ids_BL = torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT], dim=1)
    positions_BL = (mask_BL.cumsum(-1) - 1).clamp_min(0)
    hidden = _body_states(model, {"input_ids": ids_BL[mask_BL][None], "position_ids": positions_BL[mask_BL][None]})[0]
    is_response = torch.zeros_like(mask_BL)
    is_response[:, sequences.prompt_mask_BP.shape[1] :] = sequences.response_mask_BT.bool()
    return hidden[is_response[mask_BL].roll(-1)]  # the state before a token predicts it


def shared_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """As `states`, from a forward pass over one row that holds each prompt once.

    The model's attention must be exchangeable; whether it then computes the same is tried before a run (`not_shared`).
    """
    row, called = shared_prompts(sequences), []

    def attend(layer: int, *others: Any) -> Tensor:
        called.append(layer)
        return row.attend(layer, *others)

    with attending(model, attend):
        hidden = _body_states(model, {"input_ids": row.ids_1L, "position_ids": row.positions_1L})
    if not called:
        raise SteerError(NOT_EXCHANGEABLE)
    return hidden[0, row.predicts_N]


def _padded_inputs(sequences: Sequences) -> dict[str, Any]:
    """Ids, mask, and positions that do not count the padding."""
    prompt_mask, response_mask = sequences.prompt_mask_BP, sequences.response_mask_BT
    mask = torch.cat([prompt_mask, response_mask.to(prompt_mask.dtype)], dim=1)
    ids = torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}


def _body_states(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    body = body_of(model)
    with full_precision(model):
        return body(**taken_by(body, inputs | {"use_cache": False})).last_hidden_state
