"""The scoring pass: log-prob, entropy and p^2 sums of a policy at every response token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import (
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.formulas.token_stats import IGNORED_LABEL, TokenStats, concatenate, token_stats

LOGITS_AT_ONCE = 1 << 25
"""Most elements of logits that a forward pass of training holds at a time."""


@dataclass(frozen=True)
class Sequences:
    """Prompts padded on the left and responses padded on the right.

    The masks are 1 (or True) at tokens; the end-of-sequence token is part of the response.
    """

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    response_mask_BT: Tensor

    def rows(self, rows: slice | list[int]) -> Sequences:
        """Some of the sequences, without the columns that are padding in all of them."""
        prompt_mask, response_mask = self.prompt_mask_BP[rows], self.response_mask_BT[rows]
        first = int(prompt_mask.any(0).int().argmax())
        width = max(int(response_mask.sum(-1).max()), 1)
        return Sequences(
            self.prompt_ids_BP[rows, first:],
            prompt_mask[:, first:],
            self.response_ids_BT[rows, :width],
            response_mask[:, :width],
        )


def score(model: PreTrainedModel, sequences: Sequences, temperature: float, packed: bool = False) -> TokenStats:
    """Statistics of the policy at every response token, from one forward pass; shape (B, T).

    Masked positions get logprob 0 and no gradient through it. Differentiable in `logprob` and
    `entropy`. Where all logits at once would be many, they exist for some rows at a time, in the
    backward pass too: memory then grows with tokens x hidden size, not tokens x vocabulary.
    packed: the sequences go behind one another in one row, without padding; the attention
    implementation must find their borders from the positions.
    """
    count, width = sequences.response_ids_BT.shape
    logits = count * (width + 1) * model.config.get_text_config().vocab_size
    logits = ranks.all_reduce_max(logits, model.device) if shared_out(model) else logits
    if not packed and logits <= LOGITS_AT_ONCE:
        with full_precision(model):
            logits = model(**_taken_by(model, _model_inputs(sequences) | {"logits_to_keep": width + 1})).logits
            logits = logits[:, -width - 1 :]  # of a model that makes all of them
        labels = torch.nn.functional.pad(_labels(sequences), (0, 1), value=IGNORED_LABEL)  # the last predicts nothing
        return token_stats(logits, labels, temperature)[:, :width]
    mask = sequences.response_mask_BT.bool()
    hidden_ND = packed_states(model, sequences) if packed else hidden_states(model, sequences)
    flat = _stats_by_rows(model, hidden_ND, sequences.response_ids_BT[mask], temperature)
    return flat.map(lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x))


def shared_out(model: PreTrainedModel) -> bool:
    """Whether ranks hold parts of every weight (ZeRO-3), so that all must make the same forward passes."""
    return ranks.world_size() > 1 and hasattr(next(model.parameters()), "ds_tensor")


def _stats_by_rows(model: PreTrainedModel, hidden_ND: Tensor, labels_N: Tensor, temperature: float) -> TokenStats:
    """Statistics at last hidden states, some rows at a time; the backward pass makes their logits anew."""

    def part(hidden: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(token_stats(logits_of(model, hidden), labels, temperature)).values())

    rows = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    count = max(1, -(-len(labels_N) // rows))
    count = ranks.all_reduce_max(count, hidden_ND.device) if shared_out(model) else count
    parts = []
    for hidden, labels in zip(hidden_ND.tensor_split(count), labels_N.tensor_split(count), strict=True):
        stats = checkpoint(part, hidden, labels, use_reentrant=False) if hidden.requires_grad else part(hidden, labels)
        parts.append(TokenStats(*stats))
    return concatenate(parts)


def packed_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """As `hidden_states`, from a forward pass over one row that holds every sequence and no padding."""
    mask_BL = torch.cat([sequences.prompt_mask_BP.bool(), sequences.response_mask_BT.bool()], dim=1)
    ids_BL = torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT], dim=1)
    positions_BL = (mask_BL.cumsum(-1) - 1).clamp_min(0)
    inputs = {"input_ids": ids_BL[mask_BL][None], "position_ids": positions_BL[mask_BL][None]}
    with full_precision(model):
        hidden = body_of(model)(**_taken_by(body_of(model), inputs | {"use_cache": False})).last_hidden_state[0]
    is_response = torch.zeros_like(mask_BL)
    is_response[:, sequences.prompt_mask_BP.shape[1] :] = sequences.response_mask_BT.bool()
    return hidden[is_response[mask_BL].roll(-1)]  # the state before a token predicts it


def hidden_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The last hidden states (N, D) that predict the N response tokens, row by row: the body's half of a forward."""
    width = sequences.response_ids_BT.shape[1]
    with full_precision(model):
        hidden = body_of(model)(**_taken_by(body_of(model), _model_inputs(sequences))).last_hidden_state
    return hidden[:, -width - 1 : -1][sequences.response_mask_BT.bool()]


def body_of(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a model that makes its last hidden states; the model itself where it has no output layer."""
    return getattr(model, "model", model) if model.base_model is model else model.base_model  # Llama 4 names none


def logits_of(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """The logits (N, V) of last hidden states: the output layer's half, with any cap or scale the model adds.

    It is the model's own forward with the body set aside, so `hidden_states` then `logits_of` in
    chunks of rows equals the forward pass, without all rows times V in memory. Not thread-safe.
    Raises SteerError for a model whose forward goes past its body and its decoder.
    """
    bodies, asked = {body_of(model), model.get_decoder()} - {model}, []  # OPT's forward calls the decoder within

    def forward(*args: Any, **kwargs: Any) -> _Hidden:
        asked.append(True)
        return _Hidden(last_hidden_state=hidden_ND[None])

    for body in bodies:
        body.forward = forward
    try:
        with full_precision(model):
            ids = hidden_ND.new_zeros(1, len(hidden_ND), dtype=torch.long)
            logits = model(**_taken_by(model, {"input_ids": ids, "use_cache": False})).logits[0]
    finally:
        for body in bodies:
            del body.forward
    if not asked:
        raise SteerError(
            f"model: {type(model).__name__} does not take its logits from the output of its base model; "
            "use another model, or train with train.probe_sequences=0"
        )
    return logits


@dataclass
class _Hidden(BaseModelOutputWithPast):
    """A body's output that holds hidden states alone; what else a model reads of it is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Float64(TorchFunctionMode):
    """Gives float64 where model code asks for float32, as norms, softmaxes and rotary angles do."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {name: torch.float64 if a is torch.float32 else a for name, a in (kwargs or {}).items()}
        return func(*args, **kwargs)


def full_precision(model: PreTrainedModel) -> AbstractContextManager:
    """For a float64 model, a context without its roundings to float32; for any other, no change."""
    return _Float64() if model.dtype is torch.float64 else nullcontext()


def _model_inputs(sequences: Sequences) -> dict[str, Tensor | bool]:
    """Ids, mask, and positions that do not count the padding."""
    prompt_mask, response_mask = sequences.prompt_mask_BP, sequences.response_mask_BT
    mask = torch.cat([prompt_mask, response_mask.to(prompt_mask.dtype)], dim=1)
    ids = torch.cat([sequences.prompt_ids_BP, sequences.response_ids_BT], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
        "use_cache": False,
    }


def _taken_by(module: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those of the inputs that a module's forward names; ALiBi models take no positions."""
    taken = signature(module.forward).parameters
    return {name: value for name, value in inputs.items() if name in taken}


def _labels(sequences: Sequences) -> Tensor:
    """The response tokens (B, T), IGNORED_LABEL where masked."""
    return sequences.response_ids_BT.masked_fill(~sequences.response_mask_BT.bool(), IGNORED_LABEL)
