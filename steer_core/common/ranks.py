"""Collectives of the data-parallel ranks; without a process group, each of these is what it is for one rank."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from steer_core.common.errors import SteerError

T = TypeVar("T")
_LOST = re.compile(
    r"connection (was likely )?(closed|reset|refused|timed out)|broken pipe|short (read|write): "
    r"|timed out waiting \d+ ?ms|timed out after \d+ seconds waiting for clients|operation timed out"
    r"|socket .*timed out after|timed out (connecting: |in monitoredbarrier)|timed out \(try="
    r"|(socket|wait|connect|application|collective operation) timeout"
    r"|remote process exited|communicator was aborted|has aborted|watchdog",
    re.IGNORECASE,
)
"""How gloo, NCCL and torch's store word a lost connection or a rank that did not answer in time."""


def init(device: str, timeout_minutes: float) -> None:
    """Meet the other ranks that `torchrun` or `deepspeed` started; alone, or where they have met already, do nothing.

    timeout_minutes: how long a rank waits for the others, here and wherever they talk.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which rank this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rank() -> int:
    """Which rank of its machine this is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the main rank, 0, which writes what is written once."""
    return rank() == 0


def barrier() -> None:
    """Go on when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def broadcast_from_main(work: Callable[[], T]) -> T:
    """What `work` returns on the main rank, on every rank; or the SteerError that it raises there."""
    told: list = [None]
    if is_main():
        try:
            told = [work()]
        except SteerError as error:
            told = [error]
    if world_size() > 1:
        dist.broadcast_object_list(told)
    if isinstance(told[0], SteerError):
        raise told[0]
    return told[0]


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Turn what a rank raises because another one ended into a SteerError that says so."""
    try:
        yield
    except RuntimeError as error:  # torch has no class of its own for gloo's
        if world_size() == 1 or not _LOST.search(str(error)):
            raise
        raise SteerError(
            f"rank {rank()}: another rank ended or did not answer ({str(error).splitlines()[0][:200]}); see what it "
            "said, then start all ranks again with --resume or --auto-resume: every finished checkpoint is kept"
        ) from error


def all_reduce_sum(value: int, device: torch.device | str = "cpu") -> int:
    """The sum of an integer over the ranks."""
    if world_size() == 1:
        return value
    whole = torch.tensor(value, device=device)
    dist.all_reduce(whole)
    return int(whole)


def all_reduce_max(value: int, device: torch.device | str = "cpu") -> int:
    """The largest of the ranks' integers."""
    if world_size() == 1:
        return value
    whole = torch.tensor(value, device=device)
    dist.all_reduce(whole, dist.ReduceOp.MAX)
    return int(whole)


def all_reduce_sum_(values: Tensor) -> None:
    """Sum a tensor over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)


def all_gather_rows(values: Tensor) -> Tensor:
    """The rows of every rank behind one another, rank by rank; ranks may hold different numbers of them."""
    if world_size() == 1:
        return values
    sizes = _sizes(values)
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def all_gather_objects(value: T) -> list[T]:
    """A value of every rank, rank by rank; any that pickle holds."""
    if world_size() == 1:
        return [value]
    found: list = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def local_rows(gathered: Tensor, values: Tensor) -> Tensor:
    """This rank's rows of what `all_gather_rows` made of `values`."""
    if world_size() == 1:
        return gathered
    start = sum(_sizes(values)[: dist.get_rank()])
    return gathered[start : start + len(values)]


def _sizes(values: Tensor) -> list[int]:
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.empty_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    return [int(one) for one in sizes]
