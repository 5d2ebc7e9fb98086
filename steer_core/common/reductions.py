"""Means, sums and quantiles of values that lie on several ranks, without gathering them.

Each rank gives a flat tensor of its own values, and every rank makes the same calls in the same order. Some numbers
cross ranks, never the values; on one rank each of these is the plain thing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steer_core.common import ranks

_DIGIT = 8
_BINS = 1 << _DIGIT
_ABS = (1 << 63) - 1


def mean(values: Tensor) -> float:
    """Mean over all ranks' values; NaN where there are none."""
    if ranks.world_size() == 1:
        return float(values.mean())
    sums = torch.stack([values.sum(dtype=torch.float64), values.new_tensor(len(values), dtype=torch.float64)])
    ranks.all_reduce_sum_(sums)
    return float(sums[0] / sums[1])


def total(values: Tensor) -> float:
    """Sum over all ranks' values, in float64."""
    whole = values.sum(dtype=torch.float64)
    ranks.all_reduce_sum_(whole)
    return float(whole)


def quantiles(values: Tensor, levels: Sequence[float]) -> list[float]:
    """For each level q, the value at place round(q (N - 1)) of all N values in order: exact, on any number of ranks.

    On several ranks 256 counts a level cross in each of eight rounds, which settle the value byte by byte.
    """
    count = ranks.all_reduce_sum(len(values), values.device)
    places = [round(q * (count - 1)) for q in levels]
    if ranks.world_size() == 1:
        ordered = values.sort().values
        return [float(ordered[place]) for place in places]
    return _at_places(values, places)


def _at_places(values: Tensor, places: list[int]) -> list[float]:
    """The values at these places of all ranks' values in order, by counting on ever finer digits of their bits."""
    bits = values.double().contiguous().view(torch.int64)
    keys = bits ^ ((bits >> 63) & _ABS)  # integers in the order of the numbers
    left = torch.tensor(places, device=values.device)
    inside = torch.ones(len(places), len(keys), dtype=torch.bool, device=values.device)
    found = torch.zeros_like(left)
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        digits = (keys >> shift) & (_BINS - 1)
        if shift == 64 - _DIGIT:
            digits = digits ^ (_BINS >> 1)  # the sign bit: negative numbers come first
        counts = torch.stack([torch.bincount(digits[mask], minlength=_BINS) for mask in inside])
        ranks.all_reduce_sum_(counts)
        reached = counts.cumsum(1)
        digit = (reached <= left[:, None]).sum(1)
        left = left - torch.where(digit > 0, reached.gather(1, (digit - 1).clamp_min(0)[:, None]).squeeze(1), 0)
        inside &= digits[None] == digit[:, None]
        if shift == 64 - _DIGIT:
            digit = digit ^ (_BINS >> 1)
        found = found | (digit << shift)
    return (found ^ ((found >> 63) & _ABS)).view(torch.float64).tolist()
