"""The intervention in force in this package's trainer: what is scored for it, and the loss of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from steer_core.common import ranks
from steer_core.config.config import Config
from steer_core.engines.base import TrainingEngine
from steer_core.formulas.loss import ClipRange, clipped_surrogate, denominator, token_coefficients
from steer_core.formulas.shaping import kl_estimate
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.interventions.base import LossTerms
from steer_core.ladder.influence import entropy_influence, step_size
from steer_core.ladder.passes import Lens
from steer_core.policy.head import shared_out
from steer_core.policy.score import PLAIN, Scoring, score
from steer_core.policy.sequences import Sequences
from steer_core.training.batch import MicroBatch, spread
from steer_core.training.in_force import MethodInForce


class ActiveIntervention(MethodInForce):
    """A method as a run of this package applies it.

    model, engine, scoring: what is trained, what steps, and how passes are made; for rules that differentiate.
    learning_rate: that of the step in hand.
    """

    def __init__(
        self, config: Config, model: PreTrainedModel, engine: TrainingEngine, scoring: Scoring = PLAIN
    ) -> None:
        algorithm = config.algorithm
        super().__init__(config.intervention, ClipRange(algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip))
        self.config, self.model, self.engine, self.scoring = config, model, engine, scoring
        self.learning_rate = config.optimizer.step_size

    @property
    def knows_square_sums(self) -> bool:
        """Whether the p^2 sums are computed, and with them the exact form."""
        return self.scoring.head is None or self.scoring.head.sums

    def taught(self, part: MicroBatch) -> Tensor:
        """True (B,) at rows of a micro-batch that have an advantage, or all where the method teaches without one.

        The loss of a token of advantage 0 is 0 whatever its weight, so a response without an advantage teaches nothing
        but by a method that says so (`learns_without_advantage`), or by a KL term.
        """
        taught_B = (part.advantages_BT != 0).any(-1)
        every = self.method.learns_without_advantage or part.reference_BT is not None
        return torch.ones_like(taught_B) if every else taught_B

    def learnt_rows(self, part: MicroBatch) -> list[int]:
        """Rows of a micro-batch that are part of the backward pass: those that are taught; the first, if none is."""
        if shared_out(self.model):  # ranks that share out weights must make the same passes
            return list(range(len(part.mask_BT)))
        return self.taught(part).nonzero()[:, 0].tolist() or [0]

    def score(self, part: MicroBatch) -> TokenStats:
        """Statistics (B, T) of the policy at a micro-batch's response tokens, with gradient in `learnt_rows`.

        The other rows are scored without gradient, or not at all where the method does not look at them
        (`Intervention.sees_without_advantage`). Then every row that is not taught has the statistics of the policy that
        sampled, so that neither the micro-batches nor the engine change what is seen or logged.
        """
        rows, (count, width) = self.learnt_rows(part), part.mask_BT.shape
        others = sorted(set(range(count)) - set(rows))
        seen = self.method.sees_without_advantage or part.reference_BT is not None
        if seen and not (others and torch.is_grad_enabled()):
            return self._score(part.sequences, width)
        learnt = self._score(part.sequences.rows(rows), width)
        if seen:
            with torch.no_grad():
                still = self._score(part.sequences.rows(others), width)
        else:
            still, sampled, taught_B1 = part.old[others], part.old[rows], self.taught(part)[rows, None]
            pairs = zip(vars(learnt).values(), vars(sampled).values(), strict=True)
            learnt = TokenStats(*(torch.where(taught_B1, new, old) for new, old in pairs))
        places = torch.tensor([*rows, *others], device=part.mask_BT.device).argsort()
        return concatenate([learnt, still])[places]

    def _score(self, sequences: Sequences, width: int) -> TokenStats:
        stats = score(self.model, sequences, self.config.rollout.temperature, self.scoring)
        return stats.map(lambda x: torch.nn.functional.pad(x, (0, width - x.shape[1])))

    def denominator(self, batch: list[MicroBatch]) -> int:
        """What the loss of a mini-batch is divided by, over its micro-batches and all ranks."""
        reduction, longest = self.config.algorithm.reduction, self.config.rollout.max_new_tokens
        return ranks.all_reduce_sum(
            sum(denominator(part.mask_BT, reduction, longest) for part in batch), self.model.device
        )

    def coefficients(self, batch: list[MicroBatch], count: int) -> Tensor:
        """Factor (N,) of each token's loss in the mini-batch's loss, given its denominator."""
        reduction = self.config.algorithm.reduction
        return torch.cat(
            [token_coefficients(p.mask_BT, reduction, count, p.old.logprob.dtype)[p.mask_BT] for p in batch]
        )

    def needs_values(self, batch: list[MicroBatch]) -> bool:
        """Whether a values pass must come first: the rules see a whole step, and it has several micro-batches.

        It costs one more forward pass, so that the loss terms do not depend on how the step is split.
        """
        if self.method.scope != "step":
            return False
        return ranks.all_reduce_sum(len(batch), self.model.device) > ranks.world_size()

    def loss_terms(self, stats: list[TokenStats], parts: list[MicroBatch], count: int) -> list[LossTerms]:
        """What the rules make of the tokens of every micro-batch, given all; in scope `step`, those of all ranks.

        stats: of the current policy, (B, T) each. count: the loss's denominator.
        """
        everyone, coefficients = self.method.scope == "step", self.coefficients(parts, count)
        return self.terms(stats, parts, _Step(self, parts, coefficients, everyone))

    def token_losses(self, stats: TokenStats, part: MicroBatch, terms: LossTerms) -> Tensor:
        """weights x clipped surrogate + extra x extra term: the loss (B, T) of every token before the reduction.

        With a reference, `algorithm.kl_coefficient` times the estimated KL is added, which no weight changes.
        """
        advantages_BT, weights_BT = spread(terms.advantages, part, 0.0), spread(terms.weights, part, 1.0)
        loss_BT = weights_BT * clipped_surrogate(stats.logprob, part.old.logprob, advantages_BT, self.clip)
        if part.reference_BT is not None:
            algorithm = self.config.algorithm
            kl_BT = kl_estimate(stats.logprob, part.reference_BT, algorithm.kl_estimator)
            loss_BT = loss_BT + algorithm.kl_coefficient * kl_BT
        if terms.extra is None:
            return loss_BT
        return loss_BT + spread(terms.extra, part, 0.0) * self.method.extra_loss(stats, part.old)


@dataclass(frozen=True)
class _Step:
    """See `PlannedStep`: the step of some micro-batches, differentiated only where a rule asks for it."""

    active: ActiveIntervention
    parts: Sequence[MicroBatch]
    own_coefficients: Tensor
    of_all_ranks: bool

    @cached_property
    def coefficients(self) -> Tensor:
        """See `PlannedStep`; they cross ranks for a rule that reads them."""
        return ranks.all_gather_rows(self.own_coefficients) if self.of_all_ranks else self.own_coefficients

    @property
    def step_size(self) -> float:
        """See `PlannedStep`."""
        return step_size(self.active.engine.optimizer)

    def entropy_influence(self) -> Tensor:
        """See `PlannedStep.entropy_influence`."""
        model, temperature = self.active.model, self.active.config.rollout.temperature
        lenses = [
            Lens(model, part.sequences, temperature, micro_batch=len(part.mask_BT), scoring=self.active.scoring)
            for part in self.parts
        ]
        return entropy_influence(lenses, self.active.engine.optimizer, len(self.coefficients))
