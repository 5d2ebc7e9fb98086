"""A batch of another trainer taken through this package's own optimiser step: the loss and the gradient it makes."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

from steer_core.config.config import Config, load_config
from steer_core.formulas.loss import ClipRange
from steer_core.interventions.base import Intervention
from steer_core.training.batch import MicroBatch
from steer_core.training.update import Update

Gradients = dict[str, Tensor]


class GradientsAlone:
    """An engine that adds gradients up and takes no step."""

    optimizer = None

    def __init__(self, model: torch.nn.Module):
        self.model = model
        model.zero_grad()

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        return float(torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None]).norm())


def config_of(method: Intervention, clip: ClipRange, reduction: str, longest: int, temperature: float) -> Config:
    """This package's configuration of another trainer's run."""
    config = load_config(None, [])
    algorithm = replace(
        config.algorithm, clip_low=clip.low, clip_high=clip.high, dual_clip=clip.dual, reduction=reduction
    )
    rollout = replace(config.rollout, max_new_tokens=longest, temperature=temperature)
    return replace(config, algorithm=algorithm, rollout=rollout, intervention=method)


def our_update(model: torch.nn.Module, config: Config) -> Update:
    """This package's update of a model, which makes gradients and takes no step."""
    update = Update(SimpleNamespace(model=model.eval()), GradientsAlone(model), config)
    update.token_log = lambda *_: {}
    return update


def our_step(update: Update, batch: Sequence[MicroBatch]) -> tuple[float, Gradients]:
    """(loss, gradient by parameter) of a mini-batch in the update's own step; what it remembers moves on."""
    losses, engine = [], GradientsAlone(update.model)
    engine.backward = lambda loss, last: (losses.append(float(loss.detach())), loss.backward())
    update.engine = update.active.engine = engine
    update.step(list(batch), sum(int(part.mask_BT.sum()) for part in batch), 1)
    return sum(losses), {name: p.grad.clone() for name, p in update.model.named_parameters() if p.grad is not None}
