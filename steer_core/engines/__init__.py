"""What turns losses into a changed policy: plain torch, or DeepSpeed's ZeRO, behind one interface."""

from __future__ import annotations

from steer_core.common.errors import SteerError
from steer_core.config.config import Config
from steer_core.engines.base import TrainingEngine
from steer_core.engines.local import LocalEngine, make_optimizer
from steer_core.policy.model import Policy

__all__ = ["LocalEngine", "TrainingEngine", "make_engine", "make_optimizer"]


def make_engine(policy: Policy, config: Config) -> TrainingEngine:
    """The engine that `engine.name` asks for, over the policy's weights.

    Raises SteerError where DeepSpeed is asked for and not installed, and for a model that cannot recompute.
    """
    if config.engine.activations == "recompute":
        if not policy.model.supports_gradient_checkpointing:
            name = type(policy.model).__name__
            raise SteerError(f"engine.activations: recompute is not there for {name}; set engine.activations=keep")
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.engine.name == "local":
        return LocalEngine(policy.model, config.optimizer)
    from steer_core.engines.zero import ZeroEngine

    return ZeroEngine(policy.model, config)
