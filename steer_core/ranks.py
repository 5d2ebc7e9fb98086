"""What data-parallel ranks tell one another; without a process group, each of these is what it is for one rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(value: int, device: torch.device | str = "cpu") -> int:
    """The sum of an integer over the ranks."""
    if count() == 1:
        return value
    whole = torch.tensor(value, device=device)
    dist.all_reduce(whole)
    return int(whole)


def add(values: Tensor) -> None:
    """Sum a tensor over the ranks, in place."""
    if count() > 1:
        dist.all_reduce(values)


def gather(values: Tensor) -> Tensor:
    """The rows of every rank behind one another, rank by rank; ranks may hold different numbers of them."""
    if count() == 1:
        return values
    sizes = _sizes(values)
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def own(gathered: Tensor, values: Tensor) -> Tensor:
    """This rank's rows of what `gather` made of `values`."""
    if count() == 1:
        return gathered
    start = sum(_sizes(values)[: dist.get_rank()])
    return gathered[start : start + len(values)]


def _sizes(values: Tensor) -> list[int]:
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.empty_like(size) for _ in range(count())]
    dist.all_gather(sizes, size)
    return [int(one) for one in sizes]
