"""What the trainer asks of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class TrainingEngine(Protocol):
    """Sums gradients over micro-batches and ranks, and steps. On several ranks every rank makes the same calls.

    optimizer: the torch optimiser whose state the step uses, where one rank holds it whole.
    """

    optimizer: torch.optim.Optimizer

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss; `last`: of the optimiser step's last one."""
        ...

    def step(self) -> float | None:
        """Step along the sum over micro-batches and ranks, scaled down to `max_grad_norm`; its norm before that.

        None where the gradients were not finite: they are dropped, and weights and moments are as they were.
        """
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """What a checkpoint holds, by name: every parameter and persistent buffer, whole, one at a time.

        Each is good only until the next is asked for.
        """
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Write this rank's part of a checkpoint; what of it belongs in the manifest, JSON-ready."""
        ...

    def load(self, folder: Path, about: dict[str, Any]) -> None:
        """Take up what `save` wrote (files in `folder`) and returned (`about`), without executing code."""
        ...
