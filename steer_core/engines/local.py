"""Plain torch: every rank holds all weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from steer_core.common import ranks
from steer_core.common.errors import SteerError, one_line
from steer_core.config.sections import OptimizerConfig
from steer_core.policy.model import load_model, persistent_buffers

_FILE = "optimizer.safetensors"


class LocalEngine:
    """See `TrainingEngine`; several ranks add up their gradients."""

    def __init__(self, model: PreTrainedModel, config: OptimizerConfig) -> None:
        self.model, self.config = model, config
        self.optimizer = make_optimizer(model, config)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `TrainingEngine.backward`."""
        loss.backward()

    def step(self) -> float | None:
        """See `TrainingEngine.step`."""
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                ranks.all_reduce_sum_(parameter.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm) if finite else None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `TrainingEngine.weights`."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()
        yield from persistent_buffers(self.model)

    def save(self, folder: Path) -> dict[str, Any]:
        """See `TrainingEngine.save`: one rank's optimiser is every rank's."""
        state = self.optimizer.state_dict()
        if ranks.is_main():
            tensors = {f"{i}.{key}": value for i, entry in state["state"].items() for key, value in entry.items()}
            save_file({k: v.contiguous() for k, v in tensors.items() if isinstance(v, Tensor)}, folder / _FILE)
        return {"engine": "local", "optimizer": state["param_groups"]}

    def load(self, folder: Path, about: dict[str, Any]) -> None:
        """See `TrainingEngine.load`. Raises SteerError for weights of another model, and for missing ones."""
        try:
            self.model.load_state_dict(load_model(str(folder), self.model.dtype).state_dict())
        except (SteerError, RuntimeError) as error:
            raise SteerError(
                f"checkpoint {folder}: its weights are not those of the model in model.path "
                f"({one_line(error, 200)}); take another checkpoint"
            ) from error
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(folder / _FILE).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": about["optimizer"]})


def make_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser of torch.optim, or DeepSpeed's CPUAdam, over all of the model's parameters."""
    parameters, rate, decay = model.parameters(), config.step_size, config.weight_decay
    betas, eps = config.betas, config.eps
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=eps, weight_decay=decay, foreach=True)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(parameters, lr=rate, betas=betas, eps=eps, weight_decay=decay, adamw_mode=True)
