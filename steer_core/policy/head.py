"""From last hidden states to token statistics: a model's output layer, read where it is plain, called where it is not.

Where the layer is read, statistics come from hidden states and its weight (`formulas/linear_stats.py`). Otherwise
the model's own forward makes the logits, some rows at a time.
"""

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
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from steer_core.common import ranks
from steer_core.common.environment import memory_bytes
from steer_core.common.errors import SteerError
from steer_core.formulas.linear_stats import linear_token_stats
from steer_core.formulas.token_stats import TokenStats, concatenate, token_stats

SHARE_OF_MEMORY = 16
"""Where no budget is set, logits may take one part in so many of the memory of the device."""
_PROBED_ROWS = 3
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference of logits, relative to the largest, that rounding explains; 0.02 for shorter formats."""


@dataclass(frozen=True)
class OutputLayer:
    """An output layer: logits = scale (W h + bias), then softcap tanh(logits / softcap) where there is a cap."""

    layer: torch.nn.Linear
    softcap: float | None = None
    scale: float = 1.0

    def stats(
        self, hidden_ND: Tensor, labels_N: Tensor, temperature: float, keep_logits: bool, sums: bool = True
    ) -> TokenStats:
        """See `linear_token_stats`."""
        return linear_token_stats(
            hidden_ND,
            self.layer.weight,
            labels_N,
            temperature,
            bias_V=self.layer.bias,
            softcap=self.softcap,
            scale=self.scale,
            sums=sums,
            keep_logits=keep_logits,
        )


@dataclass(frozen=True)
class HeadSettings:
    """How statistics come from hidden states.

    head: None where the model's own forward makes the logits, `reason` says why. most: elements of logits that may
    exist at a time. sums: whether the p^2 sums are wanted; a head that is read leaves them NaN where not.
    """

    head: OutputLayer | None
    reason: str
    most: int
    sums: bool = True

    def told(self) -> str:
        """In words."""
        mib = f"{self.most * 4 / 2**20:,.4g} MiB of logits"
        if self.head is None:
            return f"up to {mib} at a time, made by the model's own forward ({self.reason})"
        return f"up to {mib} kept for the backward pass, more of them made tile by tile, twice"


def read_head(model: PreTrainedModel) -> OutputLayer | str:
    """A model's output layer, or in words why it cannot be read.

    What a configuration says of caps and scales is tried: on random states, the logits must be the model's own.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    if in_parts(model):
        return "its weight is there in its own forward alone"
    if type(layer) is not torch.nn.Linear:
        return f"the output layer is a {type(layer).__name__}"
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    head = OutputLayer(layer, getattr(config, "final_logit_softcapping", None), scale)
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(_PROBED_ROWS, layer.in_features, generator=source).to(layer.weight)
    with torch.no_grad(), full_precision(model):
        own, wanted = layer(hidden) * head.scale, logits_of(model, hidden)
        own = own if head.softcap is None else head.softcap * torch.tanh(own / head.softcap)
    if own.shape != wanted.shape:
        return f"its logits have the shape {tuple(wanted.shape)} in place of {tuple(own.shape)}"
    gap = float((own - wanted).abs().max() / wanted.abs().max())
    if not gap <= _ROUNDING.get(model.dtype, 0.02):
        return f"{type(model).__name__} does more to its logits than the output layer does"
    return head


def stats_at(
    model: PreTrainedModel, hidden_ND: Tensor, labels_N: Tensor, temperature: float, settings: HeadSettings | None
) -> TokenStats:
    """Statistics (N,) of the policy at last hidden states. settings: by default the model's own forward."""
    vocabulary = model.config.get_text_config().vocab_size
    settings = settings or HeadSettings(None, "", logits_at_once(model))
    if settings.head is not None:
        kept = hidden_ND.requires_grad and len(labels_N) * vocabulary <= settings.most
        return settings.head.stats(hidden_ND, labels_N, temperature, kept, settings.sums)

    def part(hidden: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(token_stats(logits_of(model, hidden), labels, temperature)).values())

    count = max(1, -(-len(labels_N) // max(1, settings.most // vocabulary)))
    count = ranks.all_reduce_max(count, hidden_ND.device) if shared_out(model) else count
    again = hidden_ND.requires_grad and (count > 1 or in_parts(model))  # the backward pass makes the logits anew
    parts = []
    for hidden, labels in zip(hidden_ND.tensor_split(count), labels_N.tensor_split(count), strict=True):
        stats = checkpoint(part, hidden, labels, use_reentrant=False) if again else part(hidden, labels)
        parts.append(TokenStats(*stats))
    return concatenate(parts)


def logits_at_once(model: PreTrainedModel, mib: float | None = None) -> int:
    """Most elements of float32 logits within a budget in MiB; by default a share of the device's memory."""
    if mib is not None:
        return int(mib * 2**20) // 4
    device = model.device
    held = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()
    return held // SHARE_OF_MEMORY // 4


def in_parts(model: PreTrainedModel) -> bool:
    """Whether an engine holds every weight in parts (ZeRO-3), and puts them together for a module's forward alone."""
    return hasattr(next(model.parameters()), "ds_tensor")


def shared_out(model: PreTrainedModel) -> bool:
    """Whether ranks hold these parts, so that all must make the same forward passes."""
    return ranks.world_size() > 1 and in_parts(model)


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
            logits = model(**taken_by(model, {"input_ids": ids, "use_cache": False})).logits[0]
    finally:
        for body in bodies:
            del body.forward
    if not asked:
        raise SteerError(
            f"model: {type(model).__name__} does not take its logits from the output of its base model; "
            "use another model"
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


def taken_by(module: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those of the inputs that a module's forward names; ALiBi models take no positions."""
    taken = signature(module.forward).parameters
    return {name: value for name, value in inputs.items() if name in taken}
