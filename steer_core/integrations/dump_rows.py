"""Rows of a dump (`runs/dumps.py`) from a trainer's padded tensors; what is not finite is left out by the mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_LOGPROBS = ("logprob", "old_logprob", "sampler_logprob")


def rows_of(
    columns_BT: Mapping[str, Tensor], written_BT: Tensor, counts_BT: Tensor, ids_BT: Tensor, tokenizer: Any = None
) -> Iterator[dict[str, Any]]:
    """A row a response with a value a token.

    columns_BT: by name of a dump's column, (B, T) each. written_BT: True at the response's tokens. counts_BT: True at
    those that count in the loss; a token with a number that is not finite does not. ids_BT: their ids. tokenizer: gives
    them texts, and the response its own.
    """
    finite_BT = torch.stack([values.isfinite() for values in columns_BT.values()]).all(0)
    counts_BT = counts_BT.bool() & finite_BT
    columns_BT = {
        name: values.detach().float().nan_to_num(0.0).clamp_max(0.0 if name in _LOGPROBS else torch.inf)
        for name, values in columns_BT.items()
    }
    for i, written in enumerate(written_BT.bool()):
        ids = ids_BT[i][written].tolist()
        row = {name: values[i][written].tolist() for name, values in columns_BT.items()}
        row |= {"mask": counts_BT[i][written].int().tolist(), "token_ids": ids}
        if tokenizer is not None:
            row |= {"tokens": [tokenizer.decode([token]) for token in ids], "response": tokenizer.decode(ids)}
        yield row
