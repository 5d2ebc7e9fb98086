"""The updates of a rollout: log-probs of the policy that sampled, mini-batches, weights, loss, optimiser steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.common.seeding import derive_seed
from steer_core.config.config import Config
from steer_core.config.sections import OptimizerConfig
from steer_core.engines import make_engine
from steer_core.formulas.entropy_change import ENTROPY_CHANGE, quadrant_index
from steer_core.formulas.loss import (
    ClipRange,
    clipped_surrogate,
    denominator,
    importance_ratio,
    reduce_loss,
    token_coefficients,
)
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.interventions.base import State, Step, Tokens, Treatment
from steer_core.ladder.passes import Lens
from steer_core.policy.micro_batches import forward_passes
from steer_core.policy.model import Policy, check_device, policy_of
from steer_core.policy.score import score
from steer_core.rollout.rollout import Rollout
from steer_core.runs.folder import RunFolder
from steer_core.training.batch import Batch, flatten, mean_entropy, spread
from steer_core.training.probe import watched_step


class Updates:
    """The half of a trainer that changes the policy: given sampled responses and advantages, its optimiser steps.

    policy, engine: what is trained and what steps. intervention, clip, state: the method, its clip range,
    what it remembers. packed: micro-batches go without padding. skipped: steps not taken, in a row.
    """

    def __init__(self, run: RunFolder) -> None:
        config = self.config = run.config
        check_device(config.model.device)
        ranks.init(config.model.device, config.engine.timeout_minutes)
        check_ranks(config)
        torch.set_num_threads(config.train.threads)
        self.run = run
        in_parts = config.engine.name == "deepspeed" and config.engine.zero_stage == 3  # the engine moves them
        self.policy = policy_of(replace(config.model, device="cpu") if in_parts else config.model)
        self.model = self.policy.model
        self.engine = make_engine(self.policy, config)
        self.packed = packs(self.policy, config.optimizer)
        self.intervention = config.intervention
        clip = ClipRange(config.algorithm.clip_low, config.algorithm.clip_high, config.algorithm.dual_clip)
        self.clip = self.intervention.clip_range(clip)
        self.state: State = {}
        self.skipped = 0

    @torch.no_grad()
    def score_rollout(self, rollout: Rollout) -> TokenStats:
        """Statistics of the policy that sampled, at every response token; (B, T), without meaning at padding."""
        width, temperature = rollout.response_ids_BT.shape[1], self.config.rollout.temperature
        parts, order = [], []
        for rows in self.micro_batches(range(len(rollout.texts)), rollout):
            stats = score(self.model, rollout.rows(rows), temperature, self.packed)
            parts.append(stats.map(lambda x: torch.nn.functional.pad(x, (0, width - x.shape[1]))))
            order += rows
        places = torch.tensor(order).argsort()
        return concatenate(parts).map(lambda x: x[places])

    def batches(
        self,
        rollout: Rollout,
        old: TokenStats,
        advantages_B: Tensor,
        step: int = 1,
        rows: Sequence[int] | None = None,
    ) -> Iterator[list[Batch]]:
        """The mini-batches of a rollout, one an optimiser step, each as a list of micro-batches.

        rows: where these responses stand among those of all ranks; without it they are all there are.
        """
        count, config = ranks.world_size() if rows else 1, self.config.optimizer
        source = torch.Generator().manual_seed(derive_seed(self.config.train.seed, "intervention", step))
        longest = self.config.rollout.max_new_tokens if rows else rollout.response_ids_BT.shape[1]
        draws_BT = torch.rand((len(advantages_B) * count, longest), generator=source).to(advantages_B)
        draws_BT = draws_BT[list(rows)] if rows else draws_BT
        advantages_BT = self.corrected(advantages_B, rollout, old)
        mini = config.mini_batch_prompts * self.config.rollout.responses // count
        for first in range(0, len(advantages_B), mini):
            inside = list(range(first, min(first + mini, len(advantages_B))))
            parts = []
            for own in self.micro_batches(inside, rollout):
                sequences = rollout.rows(own)
                width = sequences.response_ids_BT.shape[1]
                part_old = old.map(lambda x, own=own, width=width: x[own, :width])
                parts.append(Batch(sequences, part_old, advantages_BT[own, :width], draws_BT[own, :width], own))
            yield parts

    def micro_batches(self, rows: Sequence[int], rollout: Rollout) -> list[list[int]]:
        """Rows of a rollout in micro-batches, by number of sequences or by number of tokens."""
        config = self.config.optimizer
        return forward_passes(rows, rollout, config.micro_batch_sequences, config.micro_batch_tokens, self.packed)

    def corrected(self, advantages_B: Tensor, rollout: Rollout, old: TokenStats) -> Tensor:
        """The advantage of every token (B, T): its response's, times its truncated importance ratio if asked for.

        min(p_policy / p_sampler, algorithm.importance_cap) weighs the gap between sampler and policy (Ionides 2008).
        It is above 0 and takes A's place in every rule: loss, clip, estimated entropy change, interventions.
        """
        advantages_BT, cap = advantages_B[:, None].expand_as(old.logprob), self.config.algorithm.importance_cap
        if cap is None:
            return advantages_BT
        return advantages_BT * importance_ratio(old.logprob, rollout.logprobs_BT).clamp_max(cap)

    def update(
        self, batches: list[list[Batch]], step: int
    ) -> tuple[dict[str, Tensor], list[float | None], dict[str, float]]:
        """One optimiser step a mini-batch: (per-token readings, see `update_metrics`; gradient norms; the probe's).

        The probe watches one of the steps, another one each rollout; of several ranks, the first's part of it.
        """
        readings, norms, probed = [], [], {}
        everything = [part for batch in batches for part in batch]
        states = ranks.all_reduce_sum(sum(int(part.mask_BT.sum()) for part in everything), self.model.device)
        seen = self.tokens([part.old for part in everything], everything)
        self.state = self.intervention.begin_rollout(self.state, seen)
        for i, batch in enumerate(batches):
            watched = self.config.train.probe_sequences and i == (step - 1) % len(batches) and ranks.is_main()
            with watched_step(self.lens_on(batch)) if watched else nullcontext() as watch:
                norm, reading = self.optimizer_step(batch, states, step)
            if watch is not None:  # the probe's tokens are the first of the mini-batch's
                tokens = len(watch.measured)
                probed = watch.metrics({form: states * reading[form][:tokens] for form in ENTROPY_CHANGE})
            norms.append(norm)
            readings.append(reading)
        return {name: torch.cat([part[name] for part in readings]) for name in readings[0]}, norms, probed

    def lens_on(self, batch: list[Batch]) -> Lens:
        """The probe: the first sequences of a mini-batch."""
        sequences = batch[0].sequences.rows(slice(0, self.config.train.probe_sequences))
        size = self.config.optimizer.micro_batch_sequences
        return Lens(self.model, sequences, self.config.rollout.temperature, micro_batch=size)

    def optimizer_step(self, batch: list[Batch], states: int, step: int) -> tuple[float | None, dict[str, Tensor]]:
        """One optimiser step over the micro-batches of a mini-batch: (gradient norm before clipping, readings).

        The norm is None where the gradients were not finite and the step was not taken.

        Where the intervention must see the whole step and there are several micro-batches, a values
        pass comes first (one more forward pass), so that nothing depends on the split.
        """
        reduction, count = self.config.algorithm.reduction, self.denominator(batch)
        planned: list[Treatment | None] = [None] * len(batch)
        if (
            self.intervention.scope == "step"
            and ranks.all_reduce_sum(len(batch), self.model.device) > ranks.world_size()
        ):
            with torch.no_grad():
                values = [self.score(part) for part in batch]
            for new in values:
                self.require_finite(new.logprob + new.entropy, "log-probs or entropies", step)
            planned = self.treatments(values, batch, count)
        news, treatments, values = [], [], []
        for part, treatment in zip(batch, planned, strict=True):
            with self.differentiating():
                stats = self.score(part)
            new = stats.detach()
            self.require_finite(new.logprob + new.entropy, "log-probs or entropies", step)
            treatment = treatment or self.treatments([new], [part], count)[0]
            losses = self.losses(stats, part, treatment)
            loss = reduce_loss(losses, part.mask_BT, reduction, count)
            self.engine.backward(loss, last=part is batch[-1])
            news.append(new)
            treatments.append(treatment)
            values.append(losses.detach()[part.mask_BT])
        norm = self.engine.step()
        self.count_skipped(norm is None, step)
        self.state = self.intervention.next_state(self.state, mean_entropy(news, batch))
        return norm, self.readings(news, batch, treatments, count, states, torch.cat(values))

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Forward passes inside keep what a backward pass needs, or, with engine.activations=recompute, little of it.

        Hugging Face models recompute in training mode alone; there is no dropout to switch on (`load_policy`).
        """
        self.model.train(self.config.engine.activations == "recompute")
        try:
            yield
        finally:
            self.model.eval()

    def count_skipped(self, skipped: bool, step: int) -> None:
        """Count steps not taken one after another; raise SteerError beyond optimizer.skipped_steps."""
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped > self.config.optimizer.skipped_steps:
            raise SteerError(
                f"rollout {step}: the gradients of {self.skipped} optimiser steps in a row were not finite "
                f"(optimizer.skipped_steps {self.config.optimizer.skipped_steps}, optimizer.learning_rate "
                f"{self.config.optimizer.learning_rate}); lower the rate and start again, or --resume "
                f"{self.run.path}: every finished checkpoint is kept"
            )

    def denominator(self, batch: list[Batch]) -> int:
        """What the loss of a mini-batch is divided by, over its micro-batches and all ranks."""
        algorithm, longest = self.config.algorithm, self.config.rollout.max_new_tokens
        own = sum(denominator(part.mask_BT, algorithm.reduction, longest) for part in batch)
        return ranks.all_reduce_sum(own, self.model.device)

    def losses(self, stats: TokenStats, part: Batch, treatment: Treatment) -> Tensor:
        """The loss of every token of a micro-batch, (B, T), before the reduction."""
        advantages_BT, weights_BT = spread(treatment.advantages, part, 0.0), spread(treatment.weights, part, 1.0)
        losses = weights_BT * clipped_surrogate(stats.logprob, part.old.logprob, advantages_BT, self.clip)
        if treatment.extra is None:
            return losses
        return losses + spread(treatment.extra, part, 0.0) * self.intervention.extra_loss(stats, part.old)

    def tokens(
        self, stats: list[TokenStats], parts: list[Batch], step: Step | None = None, gather: bool = True
    ) -> Tokens:
        """The response tokens of some micro-batches, of all ranks (`gather`), as an intervention sees them."""
        new, old, advantages = flatten(stats, parts)
        draws = torch.cat([part.draws_BT[part.mask_BT] for part in parts])
        if gather and ranks.world_size() > 1:
            columns = torch.stack([*vars(new).values(), *vars(old).values(), advantages, draws], -1)
            *both, advantages, draws = ranks.all_gather_rows(columns).unbind(-1)
            new, old = TokenStats(*both[:4]), TokenStats(*both[4:])
        return Tokens(new, old, advantages, self.clip, draws, self.state, step)

    def treatments(self, stats: list[TokenStats], parts: list[Batch], count: int) -> list[Treatment]:
        """What the intervention makes of the tokens of every micro-batch, given all, of all ranks in scope step."""
        gather = self.intervention.scope == "step"
        shares = [token_coefficients(part.mask_BT, self.config.algorithm.reduction, count) for part in parts]
        mine = torch.cat([share[part.mask_BT] for share, part in zip(shares, parts, strict=True)])
        temperature = self.config.rollout.temperature
        lenses = [Lens(self.model, part.sequences, temperature, micro_batch=len(part.mask_BT)) for part in parts]
        step = Step(lenses, self.engine.optimizer, ranks.all_gather_rows(mine) if gather else mine)
        own = vars(self.intervention.treat(self.tokens(stats, parts, step, gather)))
        if gather:
            own = {name: values if values is None else ranks.local_rows(values, mine) for name, values in own.items()}
        counts = [int(part.mask_BT.sum()) for part in parts]
        columns = {
            name: [None] * len(parts) if values is None else values.split(counts) for name, values in own.items()
        }
        return [Treatment(**{name: values[i] for name, values in columns.items()}) for i in range(len(parts))]

    @property
    def form(self) -> str:
        """The estimate that sets STEER's weights; for other methods, the paper's, for the log."""
        return getattr(self.intervention, "form", "paper")

    @property
    def scoring_dtype(self) -> torch.dtype:
        """Precision of log-probs, advantages and losses: at least float32."""
        return torch.promote_types(self.model.dtype, torch.float32)

    def score(self, batch: Batch) -> TokenStats:
        """Statistics of the current policy at the batch's response tokens."""
        return score(self.model, batch.sequences, self.config.rollout.temperature, self.packed)

    def require_finite(self, value: Tensor, name: str, step: int) -> None:
        """Raise SteerError for NaN or infinity, before they reach the weights."""
        if not value.isfinite().all():
            raise SteerError(
                f"rollout {step}: the {name} are not finite (optimizer.learning_rate "
                f"{self.config.optimizer.learning_rate}); lower it and start again, or --resume {self.run.path}: "
                "every finished checkpoint is kept"
            )

    def readings(
        self,
        news: list[TokenStats],
        batch: list[Batch],
        treatments: list[Treatment],
        count: int,
        states: int,
        losses: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Per-token readings of a mini-batch, flat over its response tokens; see `update_metrics`.

        count: the loss's denominator. states: response tokens of the whole rollout, over which the
        policy's mean entropy is taken. losses: of every token, flat; without them none is told.
        """
        new, old, _ = flatten(news, batch)
        everyone = self.tokens(news, batch)  # whose means the covariance form takes
        reduction = self.config.algorithm.reduction
        share = torch.cat([token_coefficients(part.mask_BT, reduction, count)[part.mask_BT] for part in batch])
        advantages = torch.cat([treatment.advantages for treatment in treatments])
        weights = torch.cat([treatment.weights for treatment in treatments])
        scale = self.config.optimizer.step_size * share * weights
        changes = {
            name: ranks.local_rows(
                estimate(everyone.new, everyone.old, ranks.all_gather_rows(advantages), self.clip), weights
            )
            for name, estimate in ENTROPY_CHANGE.items()
        }
        most_damped = torch.zeros_like(weights, dtype=torch.bool)
        lowest = ranks.all_gather_rows(weights.min()[None])
        if lowest.min() < 1 and int(lowest.argmin()) == ranks.rank():
            most_damped[weights.argmin()] = True
        return {
            **{name: scale / states * change for name, change in changes.items()},
            **({} if losses is None else {"loss": share * losses}),
            "omega": changes[self.form],
            "ratio": importance_ratio(new.logprob, old.logprob),
            "advantage": advantages,
            "probability": new.logprob.exp(),
            "entropy": new.entropy,
            "lambda": weights,
            "most_damped": most_damped,
            "quadrant": quadrant_index(new, advantages),
        }


def check_ranks(config: Config) -> None:
    """Raise SteerError where the settings do not fit the number of ranks."""
    count, mini, parallel = ranks.world_size(), config.optimizer.mini_batch_prompts, config.rollout.tensor_parallel
    if mini % count:
        raise SteerError(
            f"optimizer.mini_batch_prompts: {mini} prompts do not divide among {count} ranks; choose a multiple"
        )
    if count % parallel:
        raise SteerError(f"rollout.tensor_parallel: {parallel} does not divide the {count} ranks; choose a divisor")
    if count > 1 and config.rollout.engine == "huggingface" and config.rollout.draws == "batch":
        raise SteerError(
            f"rollout.draws: batch would give each of {count} ranks the same random numbers; set rollout.draws=prompt"
        )


def packs(policy: Policy, config: OptimizerConfig) -> bool:
    """Whether micro-batches are packed: as asked, or where attention finds the borders of sequences by itself."""
    if config.micro_batch_tokens is None or config.packing == "none":
        return False
    return config.packing == "packed" or "flash" in (policy.model.config._attn_implementation or "")
