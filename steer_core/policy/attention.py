"""Attention of our own in a model of transformers': everything else of its forward stays its own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from steer_core.common.errors import SteerError

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Attention of a layer: its number, queries (A, H, L, d), keys and values (A, K, L, d), the scale of their products."""

NOT_EXCHANGEABLE = "its attention is not transformers' exchangeable one"
_NAME = "steer"
_NOT_READ = ("softcap", "s_aux", "sliding_window", "position_bias")
"""What some models add to attention, and ours leaves out."""
_current: list[Attend] = []


@contextmanager
def attending(model: PreTrainedModel, attend: Attend) -> Iterator[None]:
    """Inside, the model's layers attend by `attend`; transformers makes no mask for them. Not thread-safe.

    A forward pass inside raises SteerError for attention with more to it than queries, keys and values. A model whose
    attention cannot be exchanged goes on with its own: whoever enters must see that `attend` is called.
    """
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = _NAME
    _current.append(attend)
    try:
        yield
    finally:
        _current.pop()
        config._attn_implementation = usual


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: (A, H, L, d) in, (A, L, H, d) out."""
    unread = [name for name in _NOT_READ if more.get(name) is not None]
    if unread:
        raise SteerError(f"its attention has {unread[0]}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _current[-1](int(module.layer_idx), query, key, value, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
