"""The training loop: rollout, reward, advantage, entropy change, weight, loss, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from steer_core.advantages import ADVANTAGES
from steer_core.config import OptimizerConfig
from steer_core.entropy_change import ENTROPY_CHANGE, entropy_change_form, quadrant_index, quadrants
from steer_core.errors import SteerError
from steer_core.evaluation import evaluate
from steer_core.ladder import Lens
from steer_core.loss import ClipRange, clipped_surrogate, denominator, importance_ratio, reduce_loss, token_coefficients
from steer_core.metrics import rollout_metrics, update_metrics
from steer_core.policy import Sequences, load_policy, score
from steer_core.probe import watched_step
from steer_core.rollout import HuggingFaceEngine, Rollout, check_room
from steer_core.run import RunFolder, step_of
from steer_core.seeding import derive_seed
from steer_core.tasks import Problem, make_task
from steer_core.token_stats import TokenStats, concatenate
from steer_core.tokenizer import check_prompt
from steer_core.weights import normaliser, steer_weights


@dataclass(frozen=True)
class Batch:
    """Some sequences of a rollout, ready for the loss, with the statistics of the policy that sampled."""

    sequences: Sequences
    old: TokenStats
    advantages_BT: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """True at response tokens."""
        return self.sequences.response_mask_BT.bool()


def flatten(stats: list[TokenStats], parts: list[Batch]) -> tuple[TokenStats, TokenStats, Tensor]:
    """(new, old, advantages) of the response tokens of some micro-batches, flat: what a form takes."""
    new = [values.map(lambda x, part=part: x[part.mask_BT]) for values, part in zip(stats, parts, strict=True)]
    old = [part.old.map(lambda x, part=part: x[part.mask_BT]) for part in parts]
    advantages = torch.cat([part.advantages_BT[part.mask_BT] for part in parts])
    return concatenate(new), concatenate(old), advantages


class Trainer:
    """One run. It starts at its beginning, or after `resume` at a checkpoint; `fit` takes it to its end.

    Raises SteerError where settings, model, tokenizer and task do not fit together, before anything
    is sampled or written.
    """

    def __init__(self, run: RunFolder) -> None:
        config = self.config = run.config
        torch.set_num_threads(config.train.threads)
        self.run = run
        self.policy = load_policy(config.model.path, config.model.device, getattr(torch, config.model.dtype))
        self.model = self.policy.model
        self.task = make_task(config.task, self.policy.tokenizer)
        self.problems = self.task.problems("train", config.task.train_problems)
        self.held_out = self.task.problems(config.evaluation.split, config.evaluation.problems)
        check_prompt(self.policy.tokenizer, self.problems[0].prompt)
        for problems, sampling, section in (
            (self.problems, config.rollout, "rollout"),
            (self.held_out, config.evaluation, "evaluation"),
        ):
            encoded = self.policy.tokenizer([p.prompt for p in problems], add_special_tokens=False)
            longest = max(map(len, encoded["input_ids"]))
            check_room(self.policy, longest, sampling.max_new_tokens, f"{section}.max_new_tokens")
        self.engine = HuggingFaceEngine(self.policy)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.clip = ClipRange(config.algorithm.clip_low, config.algorithm.clip_high, config.algorithm.dual_clip)
        self.finished = 0
        self.stop_requested = False

    def resume(self, from_step: int | None = None) -> None:
        """Load the last checkpoint, or that of `from_step`; without any, the run starts at its beginning."""
        paths = {step_of(path): path for path in self.run.checkpoints()}
        if from_step is not None and from_step not in paths:
            raise SteerError(f"--from-step: {from_step} is no checkpoint of {self.run.path}; there are {sorted(paths)}")
        self.run.check_base()
        if paths:
            path = paths[max(paths) if from_step is None else from_step]
            self.finished = self.run.restore(path, self.model, self.optimizer)

    def fit(self, on_step: Callable[[int, dict], None] = lambda step, metrics: None) -> bool:
        """Train to the end; False where `stop_requested` ended it early.

        Metrics, evaluations and checkpoints go to the run folder; `on_step` gets each rollout's
        metrics. A requested stop takes effect after the rollout in hand, with a checkpoint.
        """
        config = self.config
        total, every = config.train.rollouts, config.evaluation.every
        self.run.rewind(self.finished)
        board_path = str(self.run.path / "tensorboard")
        with self.run.writing(), SummaryWriter(board_path, purge_step=self.finished + 1) as board:
            for step in range(self.finished + 1, total + 1):
                metrics = self.step(step)
                evaluation = self.evaluate(step) if every and (step % every == 0 or step == total) else {}
                self.run.log(step, metrics)
                for name, value in (metrics | evaluation).items():
                    board.add_scalar(name, value, step)
                self.finished = step
                on_step(step, metrics)
                if step % config.train.checkpoint_every == 0 or step == total or self.stop_requested:
                    self.run.save_checkpoint(step, self.model, self.policy.tokenizer, self.optimizer)
                if self.stop_requested:
                    break
        return self.finished == total

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate the policy on the held-out problems, log it, and return what a chart of it needs."""
        config = self.config
        seed = derive_seed(config.train.seed, "evaluation", step)
        began = time.perf_counter()
        result = evaluate(self.policy, self.engine, self.task, self.held_out, config.evaluation, seed)
        row = result.to_dict(config.evaluation.pass_at)
        self.run.log(step, {**row, "time/seconds": time.perf_counter() - began}, "evaluations.jsonl")
        return {f"evaluation/{name}": value for name, value in row.items() if isinstance(value, float)}

    def step(self, step: int) -> dict[str, float]:
        """One rollout and its optimiser steps; the metrics of both."""
        config, group = self.config, self.config.rollout.responses
        began = time.perf_counter()
        problems = self.problems_of(step)
        seed = derive_seed(config.train.seed, "rollout", step)
        rollout = self.engine.generate([p.prompt for p in problems], group, config.rollout, seed)
        sampled = time.perf_counter()

        rewards = [float(self.task.verify(problems[i // group], text)) for i, text in enumerate(rollout.texts)]
        rewards_PG = torch.tensor(rewards, dtype=self.model.dtype, device=self.model.device).view(-1, group)
        advantages_B = ADVANTAGES[config.algorithm.advantage](rewards_PG).flatten()
        old = self.score_rollout(rollout)
        scored = time.perf_counter()

        readings, norms, probed = self.update(list(self.batches(rollout, old, advantages_B)), step)
        updated = time.perf_counter()

        metrics = rollout_metrics(rollout, old, rewards_PG, advantages_B)
        if metrics["reward/groups_without_signal"] == 1:
            note = "within every group all rewards were equal: no gradient (AdamW's momentum, if any, still moves)"
            self.run.log(step, {"note": note}, "notes.jsonl")
        metrics |= update_metrics(readings, self.clip, list(ENTROPY_CHANGE), self.form) | probed
        metrics["grad_norm/mean"], metrics["grad_norm/max"] = sum(norms) / len(norms), max(norms)
        tokens = int(rollout.response_mask_BT.sum())
        metrics |= {
            "time/rollout_seconds": sampled - began,
            "time/score_seconds": scored - sampled,
            "time/update_seconds": updated - scored,
            "time/sampling_tokens_per_second": tokens / (sampled - began),
            "time/training_tokens_per_second": tokens / (updated - scored),
        }
        self.log_responses(step, problems, rollout, rewards, advantages_B, old)
        return metrics

    def problems_of(self, step: int) -> list[Problem]:
        """The problems of a rollout: a fresh shuffle each epoch, the same for every method at one seed."""
        count, size = self.config.rollout.prompts, len(self.problems)
        chosen = []
        for position in range((step - 1) * count, step * count):
            epoch, index = divmod(position, size)
            if not chosen or index == 0:
                seed = derive_seed(self.config.train.seed, "epoch", epoch)
                order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            chosen.append(self.problems[order[index]])
        return chosen

    @torch.no_grad()
    def score_rollout(self, rollout: Rollout) -> TokenStats:
        """Statistics of the policy that sampled, at every response token; (B, T), 0 at padding."""
        size, width = self.config.optimizer.micro_batch_sequences, rollout.response_ids_BT.shape[1]
        parts = []
        for start in range(0, len(rollout.texts), size):
            stats = score(self.model, rollout.rows(slice(start, start + size)), self.config.rollout.temperature)
            parts.append(stats.map(lambda x: torch.nn.functional.pad(x, (0, width - x.shape[1]))))
        return concatenate(parts)

    def batches(self, rollout: Rollout, old: TokenStats, advantages_B: Tensor) -> Iterator[list[Batch]]:
        """The mini-batches of a rollout, one an optimiser step, each as a list of micro-batches."""
        mini = self.config.optimizer.mini_batch_prompts * self.config.rollout.responses
        micro = self.config.optimizer.micro_batch_sequences
        for first in range(0, len(advantages_B), mini):
            parts = []
            for start in range(first, first + mini, micro):
                rows = slice(start, min(start + micro, first + mini))
                sequences = rollout.rows(rows)
                width = sequences.response_ids_BT.shape[1]
                part_old = old.map(lambda x, rows=rows, width=width: x[rows, :width])
                parts.append(Batch(sequences, part_old, advantages_B[rows, None].expand(-1, width)))
            yield parts

    def update(self, batches: list[list[Batch]], step: int) -> tuple[dict[str, Tensor], list[float], dict[str, float]]:
        """One optimiser step a mini-batch: (per-token readings, see `update_metrics`; gradient norms; the probe's).

        The probe watches one of the steps, another one each rollout.
        """
        steer, readings, norms, probed = self.config.steer, [], [], {}
        states, scale = sum(int(part.mask_BT.sum()) for batch in batches for part in batch), None
        if steer.form != "none" and steer.scope == "rollout":
            parts = [part for batch in batches for part in batch]
            scale = self.normaliser_of(parts, self.changes([part.old for part in parts], parts))
        for i, batch in enumerate(batches):
            watched = self.config.train.probe_sequences and i == (step - 1) % len(batches)
            with watched_step(self.lens_on(batch)) if watched else nullcontext() as watch:
                norm, reading = self.optimizer_step(batch, scale, states, step)
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

    def optimizer_step(
        self, batch: list[Batch], scale: Tensor | None, states: int, step: int
    ) -> tuple[float, dict[str, Tensor]]:
        """One optimiser step over the micro-batches of a mini-batch: (gradient norm before clipping, readings).

        Scope `step` over several micro-batches takes a values pass first (one more forward pass), so
        that the weights do not depend on the split; over one micro-batch it costs no pass.
        """
        steer, reduction = self.config.steer, self.config.algorithm.reduction
        count = sum(denominator(part.mask_BT, reduction) for part in batch)
        changes: list[Tensor | None] = [None] * len(batch)
        if steer.form != "none" and steer.scope == "step" and len(batch) > 1:
            with torch.no_grad():
                changes = self.changes([self.score(part) for part in batch], batch)
            scale = self.normaliser_of(batch, changes)
        news, weights = [], []
        for part, change in zip(batch, changes, strict=True):
            stats = self.score(part)
            new = stats.detach()
            self.require_finite(new.logprob.sum(), "log-probs", step)
            weight = self.weights(new, part, change, scale)
            losses = weight * clipped_surrogate(stats.logprob, part.old.logprob, part.advantages_BT, self.clip)
            reduce_loss(losses * self.quadrant_factors(new, part), part.mask_BT, reduction, count).backward()
            news.append(new)
            weights.append(weight)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.require_finite(norm, "gradients", step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm), self.readings(news, batch, weights, count, states)

    @property
    def form(self) -> str:
        """The estimate that sets the weights; without weights, the paper's, for the log."""
        return "paper" if self.config.steer.form == "none" else self.config.steer.form

    def changes(self, stats: list[TokenStats], parts: list[Batch]) -> list[Tensor]:
        """The estimate of each token's entropy change in some micro-batches, (B, T) each; 0 at padding."""
        flat = entropy_change_form(self.form)(*flatten(stats, parts), self.clip)
        counts = [int(part.mask_BT.sum()) for part in parts]
        return [
            torch.zeros_like(part.old.entropy).masked_scatter_(part.mask_BT, values)
            for part, values in zip(parts, flat.split(counts), strict=True)
        ]

    def normaliser_of(self, batch: list[Batch], changes: list[Tensor]) -> Tensor:
        """The configured normaliser over the response tokens of some micro-batches."""
        steer = self.config.steer
        flat = torch.cat([change[part.mask_BT] for part, change in zip(batch, changes, strict=True)])
        return normaliser(flat, torch.ones_like(flat), steer.quantile if steer.normaliser == "quantile" else 1.0)

    def weights(self, new: TokenStats, batch: Batch, change: Tensor | None, scale: Tensor | None) -> Tensor:
        """lambda of every token, (B, T); ones for plain GRPO.

        change: from a values pass, where one was taken. scale: None for the micro-batch's own.
        """
        if self.config.steer.form == "none":
            return torch.ones_like(new.logprob)
        change = self.changes([new], [batch])[0] if change is None else change
        scale = self.normaliser_of([batch], [change]) if scale is None else scale
        return steer_weights(change, batch.mask_BT, self.config.steer.lambda_min, scale)

    def quadrant_factors(self, new: TokenStats, batch: Batch) -> Tensor:
        """The configured factor of each token's quadrant, (B, T)."""
        factors = torch.ones_like(new.logprob)
        for name, inside in quadrants(new, batch.advantages_BT).items():
            factors[inside] = getattr(self.config.quadrants, name)
        return factors

    def score(self, batch: Batch) -> TokenStats:
        """Statistics of the current policy at the batch's response tokens."""
        return score(self.model, batch.sequences, self.config.rollout.temperature)

    def require_finite(self, value: Tensor, name: str, step: int) -> None:
        """Raise SteerError for NaN or infinity, before they reach the weights."""
        if not value.isfinite():
            raise SteerError(
                f"rollout {step}: the {name} are not finite (optimizer.learning_rate "
                f"{self.config.optimizer.learning_rate}); lower it and start again, or --resume {self.run.path}: "
                "every finished checkpoint is kept"
            )

    def readings(
        self, news: list[TokenStats], batch: list[Batch], weights: list[Tensor], count: int, states: int
    ) -> dict[str, Tensor]:
        """Per-token readings of a mini-batch, flat over its response tokens; see `update_metrics`.

        count: the loss's denominator. states: response tokens of the whole rollout, over which the
        policy's mean entropy is taken.
        """
        new, old, advantages = flatten(news, batch)
        share, factor, lambdas = [], [], []
        for part_new, part, weight in zip(news, batch, weights, strict=True):
            share.append(token_coefficients(part.mask_BT, self.config.algorithm.reduction, count)[part.mask_BT])
            factor.append(self.quadrant_factors(part_new, part)[part.mask_BT])
            lambdas.append(weight[part.mask_BT])
        scale = self.config.optimizer.step_size * torch.cat(share) * torch.cat(factor) * torch.cat(lambdas)
        return {
            **{f: scale / states * estimate(new, old, advantages, self.clip) for f, estimate in ENTROPY_CHANGE.items()},
            "ratio": importance_ratio(new.logprob, old.logprob),
            "advantage": advantages,
            "lambda": torch.cat(lambdas),
            "quadrant": quadrant_index(new, advantages),
        }

    def log_responses(
        self,
        step: int,
        problems: list[Problem],
        rollout: Rollout,
        rewards: list[float],
        advantages_B: Tensor,
        old: TokenStats,
    ) -> None:
        """Write one response to each of the first problems of a rollout to the run folder."""
        rows = []
        for p, problem in enumerate(problems[: self.config.train.logged_responses]):
            i = p * self.config.rollout.responses
            mask = rollout.response_mask_BT[i].bool()
            rows.append(
                {
                    "prompt": problem.prompt,
                    "response": rollout.texts[i],
                    "reward": rewards[i],
                    "advantage": float(advantages_B[i]),
                    "finish_reason": rollout.finish_reasons[i],
                    "entropy": [round(x, 4) for x in old.entropy[i][mask].tolist()],
                    "logprob": [round(x, 4) for x in old.logprob[i][mask].tolist()],
                }
            )
        self.run.write_rollout(step, rows)


def make_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimiser over all of the model's parameters."""
    if config.name == "adamw":
        return torch.optim.AdamW(
            model.parameters(),
            lr=config.step_size,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            foreach=True,
        )
    return torch.optim.SGD(
        model.parameters(), lr=config.step_size, momentum=config.momentum, weight_decay=config.weight_decay
    )
