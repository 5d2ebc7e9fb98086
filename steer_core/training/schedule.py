"""The learning rate of every optimiser step: transformers' own schedules, without a state that could be lost.

The rate follows from the number of the step alone, so a run that goes on from a checkpoint has it again.
"""

from __future__ import annotations

import torch
from transformers import get_scheduler

from steer_core.common.errors import SteerError, one_line
from steer_core.config.config import Config
from steer_core.engines.base import TrainingEngine


class LearningRate:
    """The rate by rollout and optimiser step; with `optimizer.schedule=constant` nothing is ever set.

    Raises SteerError for settings that the schedule does not take.
    """

    def __init__(self, config: Config) -> None:
        settings, self.last = config.optimizer, 0
        self.a_rollout = config.rollout.prompts // settings.mini_batch_prompts * settings.repeats
        self.whole, self.schedule = settings.step_size, None
        if settings.schedule == "constant":
            return
        self.last = self.a_rollout * (settings.schedule_rollouts or config.train.rollouts)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.whole)
        try:
            made = get_scheduler(
                settings.schedule, optimizer, settings.warmup_steps, self.last, dict(settings.schedule_settings)
            )
            self.schedule = made.lr_lambdas[0]
            for rollout in (1, config.train.rollouts):
                self.at(rollout, self.a_rollout - 1)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise SteerError(
                f"optimizer.schedule: {settings.schedule} does not take these settings ({one_line(error)}); set "
                "optimizer.schedule_settings and optimizer.warmup_steps as transformers' get_scheduler has them"
            ) from error

    def at(self, rollout: int, step: int) -> float:
        """The rate of a rollout's optimiser step, rollouts from 1 and steps from 0."""
        if self.schedule is None:
            return self.whole
        return self.whole * self.schedule(min((rollout - 1) * self.a_rollout + step, self.last))

    def metrics(self, rollout: int) -> dict[str, float]:
        """The rate of a rollout's last step, for the log; nothing where it is constant."""
        return {} if self.schedule is None else {"learning_rate": self.at(rollout, self.a_rollout - 1)}

    def apply(self, engine: TrainingEngine, rollout: int, step: int) -> float:
        """Have an engine's next step use the rate, which is returned."""
        rate = self.at(rollout, step)
        if self.schedule is not None:
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
        return rate
