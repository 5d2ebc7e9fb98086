"""One optimiser step: weights from the estimated entropy change, the weighted loss, its gradient, the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.config.config import Config
from steer_core.engines.base import TrainingEngine
from steer_core.formulas.loss import reduce_loss
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import LossTerms
from steer_core.policy.model import Policy
from steer_core.policy.score import PLAIN, Scoring, reading
from steer_core.training.batch import MicroBatch
from steer_core.training.loss_terms import ActiveIntervention
from steer_core.training.metrics import token_log
from steer_core.training.schedule import LearningRate


class Update:
    """The optimiser steps of a run, each from the micro-batches of a mini-batch.

    active: the intervention in force. skipped: steps not taken, in a row, because gradients were not finite.
    """

    def __init__(self, policy: Policy, engine: TrainingEngine, config: Config, scoring: Scoring = PLAIN) -> None:
        self.model, self.engine, self.config = policy.model, engine, config
        self.scoring, self.skipped = scoring, 0
        self.token_log = token_log  # a benchmark leaves it out
        self.active = ActiveIntervention(config, policy.model, engine, scoring)
        self.rate = LearningRate(config)

    def step(
        self, batch: list[MicroBatch], rollout_tokens: int, rollout_index: int, index: int = 0
    ) -> tuple[float | None, dict[str, Tensor]]:
        """One optimiser step over the micro-batches of a mini-batch: (gradient norm before clipping, `token_log`).

        The norm is None where the gradients were not finite and the step was not taken. rollout_tokens: response
        tokens of the whole rollout, over which the log takes means. rollout_index, index: which rollout, from 1, named
        in errors, and which of its steps, from 0; they set a learning rate that follows a schedule.
        """
        active, reduction = self.active, self.config.algorithm.reduction
        active.learning_rate = self.rate.apply(self.engine, rollout_index, index)
        denominator = active.denominator(batch)
        new_stats: list[TokenStats] = []
        terms: list[LossTerms] = []
        losses: list[Tensor] = []
        for part, planned in zip(batch, self.plan(batch, denominator, rollout_index), strict=True):
            # 4. ln p and H at every token, with gradient; lambda from Omega, unless the whole step was planned
            with self.differentiating(part):
                stats = self.score(part)
            new = stats.detach()
            self.require_finite(new, rollout_index)
            terms.append(planned or active.loss_terms([new], [part], denominator)[0])
            # 5. lambda x clipped surrogate, and its gradient
            loss_BT = active.token_losses(stats, part, terms[-1])
            loss = reduce_loss(loss_BT, part.mask_BT, reduction, denominator)
            with self.differentiating(part):
                self.engine.backward(loss, last=part is batch[-1])
            new_stats.append(new)
            losses.append(loss_BT.detach()[part.mask_BT])
        # 6. the optimiser's step
        norm = self.engine.step()
        self.count_skipped(norm is None, rollout_index)
        active.end_step(new_stats, batch)
        return norm, self.token_log(active, new_stats, batch, terms, denominator, rollout_tokens, torch.cat(losses))

    def plan(self, batch: list[MicroBatch], count: int, rollout_index: int) -> list[LossTerms | None]:
        """The loss terms of every micro-batch before any gradient is made; None each where no rule needs that."""
        if not self.active.needs_values(batch):
            return [None] * len(batch)
        with torch.no_grad():
            values = [self.score(part) for part in batch]
        for stats in values:
            self.require_finite(stats, rollout_index)
        return [*self.active.loss_terms(values, batch, count)]

    def score(self, part: MicroBatch) -> TokenStats:
        """Statistics (B, T) of the current policy at a micro-batch's response tokens."""
        return self.active.score(part)

    @contextmanager
    def differentiating(self, part: MicroBatch) -> Iterator[None]:
        """Forward passes inside keep what a backward pass needs, or, with engine.activations=recompute, little of it.

        Hugging Face models recompute in training mode alone, in which the backward pass must then find them, attending
        as in the forward pass; there is nothing random to switch on (`read_config`), as `check_scores` makes sure.
        """
        if self.config.engine.activations == "keep":
            yield
            return
        self.model.train()
        try:
            learnt = part.sequences.rows(self.active.learnt_rows(part))
            with reading(self.model, learnt, self.scoring.layout):
                yield
        finally:
            self.model.eval()

    def count_skipped(self, skipped: bool, rollout_index: int) -> None:
        """Count steps not taken one after another; raise SteerError beyond optimizer.skipped_steps."""
        self.skipped = self.skipped + 1 if skipped else 0
        settings = self.config.optimizer
        if self.skipped > settings.skipped_steps:
            raise SteerError(
                f"rollout {rollout_index}: the gradients of {self.skipped} optimiser steps in a row were not finite "
                f"(optimizer.skipped_steps {settings.skipped_steps}, optimizer.learning_rate "
                f"{settings.learning_rate}); lower the rate and start again in another folder"
            )

    def require_finite(self, stats: TokenStats, rollout_index: int) -> None:
        """Raise SteerError for NaN or infinity, before they reach the weights."""
        if not (stats.logprob + stats.entropy).isfinite().all():
            raise SteerError(
                f"rollout {rollout_index}: the log-probs or entropies are not finite (optimizer.learning_rate "
                f"{self.config.optimizer.learning_rate}); lower it and start again in another folder"
            )
