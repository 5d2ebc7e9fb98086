"""A method in force, in this package's trainer or another's: which tokens its rules see, and what it remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Intervention, LossTerms, Memory, PlannedStep, Responses, Tokens
from steer_core.training.batch import MicroBatch, flatten, mean_entropy


class MethodInForce:
    """A method as a trainer applies it: the method, its clip range, its memory, and the tokens of all ranks.

    clip: the configured clip range, of which the method makes its own.
    """

    def __init__(self, method: Intervention, clip: ClipRange) -> None:
        self.method: Intervention = method
        self.clip = method.clip_range(clip)
        self.memory: Memory = {}
        self.in_force: Memory = {}

    @property
    def several_ranks(self) -> bool:
        """Whether other ranks hold tokens of the same steps."""
        return ranks.world_size() > 1

    def gathered(self, values: Tensor) -> Tensor:
        """The rows of every rank behind one another."""
        return ranks.all_gather_rows(values)

    def own_rows(self, gathered: Tensor, values: Tensor) -> Tensor:
        """This rank's rows of what `gathered` made of `values`."""
        return ranks.local_rows(gathered, values)

    def credit(
        self,
        advantages_PG: Tensor,
        rewards_PG: Tensor,
        old: TokenStats,
        mask_BT: Tensor,
        problems: Sequence[str],
        n: int = 1,
    ) -> Tensor:
        """The advantages (prompts, group) of the responses of rollout n, of all ranks, as the method leaves them.

        old, mask_BT: of this rank's responses, under the policy that sampled. problems: the id of each prompt's
        problem. What follows a schedule is set to rollout n, from 1. Raises SteerError where the method makes other
        shapes, NaN or infinity.
        """
        self.in_force = self.method.settings_at(n)
        self.memory = self.memory | self.in_force
        if not self.method.sees_responses:
            return advantages_PG
        own_B = old.logprob.masked_fill(~mask_BT, 0).sum(-1, dtype=torch.float64)
        logprobs_PG = ranks.all_gather_rows(own_B).view(rewards_PG.shape).to(rewards_PG)
        responses = Responses(rewards_PG, advantages_PG, logprobs_PG, problems, self.memory)
        credited_PG = self.method.credit(responses)
        self.memory = self.method.remember(self.memory, responses) | self.in_force
        if credited_PG.shape != advantages_PG.shape or not credited_PG.isfinite().all():
            raise SteerError(
                f"intervention.name: {self.method.name} makes advantages of responses that are not finite, or not one "
                "a response; the log-probs of this rollout are not, or a setting is too extreme: make it smaller"
            )
        return credited_PG

    def begin_rollout(self, batches: list[list[MicroBatch]], n: int = 1) -> None:
        """Let a closed loop look at rollout n, from 1, as the policy that sampled saw it; others are shown nothing."""
        self.in_force = self.method.settings_at(n)
        self.memory = self.memory | self.in_force
        if not self.method.sees_rollouts:
            return
        parts = [part for batch in batches for part in batch]
        seen = self.tokens([part.old for part in parts], parts, of_all_ranks=False)
        columns = ranks.all_gather_rows(torch.stack([*vars(seen.old).values(), seen.advantages, seen.draws], -1))
        *values, advantages, draws = columns.unbind(-1)  # ROLLOUT_NUMBERS a token: new is old
        old = TokenStats(*values)
        seen = replace(seen, new=old, old=old, advantages=advantages, draws=draws)
        self.memory = self.method.begin_rollout(self.memory, seen) | self.in_force

    def end_step(self, stats: list[TokenStats], batch: list[MicroBatch]) -> None:
        """Let a closed loop see the mean entropy that the policy had in an optimiser step, before it."""
        self.memory = self.method.next_memory(self.memory, mean_entropy(stats, batch)) | self.in_force

    def terms(
        self, stats: list[TokenStats], parts: list[MicroBatch], step: PlannedStep | None = None
    ) -> list[LossTerms]:
        """What the rules make of the tokens of every micro-batch, flat (N,) each; in scope `step`, given all ranks'.

        stats: of the current policy, (B, T) each, without gradient. step: for rules that differentiate.
        """
        everyone = self.method.scope == "step"
        terms = self.method.loss_terms(self.tokens(stats, parts, step, everyone))
        counts = [int(part.mask_BT.sum()) for part in parts]
        if everyone:
            own = terms.weights.new_empty(sum(counts))
            terms = terms.map(lambda values: self.own_rows(values, own))
        extra = [None] * len(parts) if terms.extra is None else terms.extra.split(counts)
        split = zip(terms.advantages.split(counts), terms.weights.split(counts), extra, strict=True)
        return [LossTerms(*own) for own in split]

    def tokens(
        self,
        stats: list[TokenStats],
        parts: list[MicroBatch],
        step: PlannedStep | None = None,
        of_all_ranks: bool = True,
    ) -> Tokens:
        """The response tokens of some micro-batches as a rule sees them; of all ranks, they are gathered."""
        new, old, advantages = flatten(stats, parts)
        draws = torch.cat([part.draws_BT[part.mask_BT] for part in parts])
        if of_all_ranks and self.several_ranks:
            columns = torch.stack([*vars(new).values(), *vars(old).values(), advantages, draws], -1)
            *both, advantages, draws = self.gathered(columns).unbind(-1)
            new, old = TokenStats(*both[:4]), TokenStats(*both[4:])
        return Tokens(new, old, advantages, self.clip, draws, self.memory, step)
