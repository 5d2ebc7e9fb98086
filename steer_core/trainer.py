"""The training loop: rollout, reward, advantage, entropy change, weight, loss, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from steer_core.advantages import ADVANTAGES
from steer_core.config import OptimizerConfig
from steer_core.entropy_change import ENTROPY_CHANGE, QUADRANTS, quadrants
from steer_core.errors import SteerError
from steer_core.evaluation import evaluate
from steer_core.loss import ClipRange, clipped_surrogate, denominator, importance_ratio, reduce_loss, token_coefficients
from steer_core.metrics import rollout_metrics, update_metrics
from steer_core.policy import load_policy, score
from steer_core.rollout import HuggingFaceEngine, Rollout
from steer_core.run import RunFolder
from steer_core.seeding import derive_seed
from steer_core.tasks import Problem, make_task
from steer_core.token_stats import TokenStats
from steer_core.weights import normaliser, steer_weights


@dataclass(frozen=True)
class Batch:
    """Some sequences of a rollout, ready for the loss: model inputs, old statistics, advantages."""

    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    old: TokenStats
    advantages_BT: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """True at response tokens."""
        return self.inputs[3].bool()


class Trainer:
    """One run: `fit` takes it from its last checkpoint (or its start) to its end."""

    def __init__(self, run: RunFolder) -> None:
        config = self.config = run.config
        torch.set_num_threads(config.train.threads)
        self.run = run
        self.task = make_task(config.task)
        self.problems = self.task.problems("train", config.task.train_problems)
        self.policy = load_policy(config.model.path, self.problems[0].prompt)
        self.model = self.policy.model
        self.engine = HuggingFaceEngine(self.policy)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.clip = ClipRange(config.algorithm.clip_low, config.algorithm.clip_high, config.algorithm.dual_clip)
        self.stop_requested = False

    def fit(self, start: int = 0, on_step: Callable[[int, dict], None] = lambda step, metrics: None) -> bool:
        """Train from rollout `start` to the end; False where `stop_requested` ended it early.

        Metrics, evaluations and checkpoints go to the run folder; `on_step` gets each rollout's
        metrics. A requested stop takes effect after the rollout in hand, with a checkpoint.
        """
        config = self.config
        total, every = config.train.rollouts, config.evaluation.every
        self.run.rewind(start)
        with self.run.writing(), SummaryWriter(str(self.run.path / "tensorboard"), purge_step=start + 1) as board:
            for step in range(start + 1, total + 1):
                metrics = self.step(step)
                if every and (step % every == 0 or step == total):
                    self.evaluate(step)
                self.run.log(step, metrics)
                for name, value in metrics.items():
                    board.add_scalar(name, value, step)
                on_step(step, metrics)
                if step % config.train.checkpoint_every == 0 or step == total or self.stop_requested:
                    self.run.save_checkpoint(step, self.model, self.policy.tokenizer, self.optimizer)
                if self.stop_requested and step < total:
                    return False
        return True

    def resume(self, from_step: int | None = None) -> int:
        """Load the last checkpoint, or that of `from_step`; the rollout it was taken after (0: none yet)."""
        paths = {int(p.name.removeprefix("step_")): p for p in self.run.checkpoints()}
        if from_step is not None and from_step not in paths:
            raise SteerError(f"--from-step: {from_step} is no checkpoint of {self.run.path}; there are {sorted(paths)}")
        if not paths:
            return 0
        return self.run.restore(paths[max(paths) if from_step is None else from_step], self.model, self.optimizer)

    def evaluate(self, step: int) -> None:
        """Evaluate the policy on held-out problems and log it."""
        config = self.config
        seed = derive_seed(config.train.seed, "evaluation", step)
        began = time.perf_counter()
        result = evaluate(self.policy, self.engine, self.task, config.evaluation, seed)
        row = {**result.to_dict(config.evaluation.pass_at), "time/seconds": time.perf_counter() - began}
        self.run.log(step, row, "evaluations.jsonl")

    def step(self, step: int) -> dict[str, float]:
        """One rollout and its optimiser steps; the metrics of both."""
        config, group = self.config, self.config.rollout.responses
        began = time.perf_counter()
        problems = self.problems_of(step)
        seed = derive_seed(config.train.seed, "rollout", step)
        rollout = self.engine.generate([p.prompt for p in problems], group, config.rollout, seed)
        sampled = time.perf_counter()

        rewards = [float(self.task.verify(problems[i // group], text)) for i, text in enumerate(rollout.texts)]
        rewards_PG = torch.tensor(rewards).view(-1, group)
        advantages_B = ADVANTAGES[config.algorithm.advantage](rewards_PG).flatten()
        old = self.score_rollout(rollout)
        scored = time.perf_counter()

        tokens, norms = self.update(list(self.batches(rollout, old, advantages_B)), step)
        updated = time.perf_counter()

        metrics = rollout_metrics(rollout, old, rewards_PG, advantages_B)
        if metrics["reward/groups_without_signal"] == 1:
            self.run.log(step, {"note": "within every group all rewards were equal: no gradient"}, "notes.jsonl")
        metrics |= update_metrics(tokens, self.clip, list(ENTROPY_CHANGE), self.quadrant_form)
        metrics["grad_norm/mean"], metrics["grad_norm/max"] = sum(norms) / len(norms), max(norms)
        metrics |= {
            "time/rollout_seconds": sampled - began,
            "time/score_seconds": scored - sampled,
            "time/update_seconds": updated - scored,
            "time/sampling_tokens_per_second": int(rollout.response_mask_BT.sum()) / (sampled - began),
            "time/training_tokens_per_second": int(rollout.response_mask_BT.sum()) / (updated - scored),
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
            stats = score(self.model, *rollout.tensors(slice(start, start + size)), self.config.rollout.temperature)
            parts.append(stats.map(lambda x: torch.nn.functional.pad(x, (0, width - x.shape[1]))))
        return TokenStats(*(torch.cat(tensors) for tensors in zip(*(vars(p).values() for p in parts), strict=True)))

    def batches(self, rollout: Rollout, old: TokenStats, advantages_B: Tensor) -> Iterator[list[Batch]]:
        """The mini-batches of a rollout, one an optimiser step, each as a list of micro-batches."""
        config = self.config
        mini, micro = (
            config.optimizer.mini_batch_prompts * config.rollout.responses,
            config.optimizer.micro_batch_sequences,
        )
        for first in range(0, len(advantages_B), mini):
            parts = []
            for start in range(first, first + mini, micro):
                rows = slice(start, min(start + micro, first + mini))
                inputs = rollout.tensors(rows)
                width = inputs[2].shape[1]
                parts.append(
                    Batch(
                        inputs,
                        old.map(lambda x, rows=rows, width=width: x[rows, :width]),
                        advantages_B[rows, None].expand(-1, width),
                    )
                )
            yield parts

    def update(self, batches: list[list[Batch]], step: int) -> tuple[dict[str, Tensor], list[float]]:
        """One optimiser step a mini-batch: per-token readings (see `update_metrics`) and gradient norms."""
        steer, readings, norms = self.config.steer, [], []
        whole_rollout = steer.form != "none" and steer.scope == "rollout"
        scale = self.scale(batches) if whole_rollout else None
        for batch in batches:
            norms.append(self.optimizer_step(batch, scale, readings, step))
        return {name: torch.cat([part[name] for part in readings]) for name in readings[0]}, norms

    @property
    def quadrant_form(self) -> str:
        """The form whose predicted change is logged by quadrant: the one in use, or the paper's."""
        return "paper" if self.config.steer.form == "none" else self.config.steer.form

    def change(self, new: TokenStats, batch: Batch) -> Tensor:
        """The estimate of the entropy change that sets the weights, (B, T)."""
        return ENTROPY_CHANGE[self.quadrant_form](new, batch.old, batch.advantages_BT, self.clip)

    def scale(self, batches: list[list[Batch]]) -> Tensor:
        """Scope `rollout`: the normaliser over the whole rollout, from the policy that sampled (ratio 1)."""
        changes = [(self.change(part.old, part), part.mask_BT) for batch in batches for part in batch]
        return self.normaliser(changes)

    def normaliser(self, changes: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The configured normaliser over (change, mask) pairs."""
        steer = self.config.steer
        flat = torch.cat([change[mask] for change, mask in changes])
        return normaliser(flat, torch.ones_like(flat), steer.quantile if steer.normaliser == "quantile" else 1.0)

    def weights(self, new: TokenStats, batch: Batch, scale: Tensor | None) -> Tensor:
        """lambda of every token, (B, T); ones for plain GRPO."""
        if self.config.steer.form == "none":
            return torch.ones_like(new.logprob)
        change = self.change(new, batch)
        scale = self.normaliser([(change, batch.mask_BT)]) if scale is None else scale
        return steer_weights(change, batch.mask_BT, self.config.steer.lambda_min, scale)

    def optimizer_step(
        self, batch: list[Batch], scale: Tensor | None, readings: list[dict[str, Tensor]], step: int
    ) -> float:
        """One optimiser step over the micro-batches of a mini-batch; the gradient norm before clipping.

        Appends each micro-batch's per-token readings to `readings`. Scope `step` over several
        micro-batches takes a values pass first, so that the weights do not depend on the split.
        """
        config, reduction = self.config, self.config.algorithm.reduction
        count = sum(denominator(part.mask_BT, reduction) for part in batch)
        states = sum(int(part.mask_BT.sum()) for part in batch)
        if config.steer.form != "none" and config.steer.scope == "step" and len(batch) > 1:
            with torch.no_grad():
                values = [(self.change(self.score(part), part), part.mask_BT) for part in batch]
            scale = self.normaliser(values)
        for part in batch:
            stats = self.score(part)
            new = stats.detach()
            self.require_finite(new.logprob.sum(), "log-probs", step)
            weights = self.weights(new, part, scale)
            losses = weights * clipped_surrogate(stats.logprob, part.old.logprob, part.advantages_BT, self.clip)
            loss = reduce_loss(losses, part.mask_BT, reduction, count)
            loss.backward()
            readings.append(self.readings(new, part, weights, count, states))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.max_grad_norm)
        self.require_finite(norm, "gradients", step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def require_finite(self, value: Tensor, name: str, step: int) -> None:
        """Raise SteerError for NaN or infinity, before they reach the weights."""
        if not value.isfinite():
            raise SteerError(
                f"rollout {step}: the {name} are not finite (optimizer.learning_rate "
                f"{self.config.optimizer.learning_rate}); lower it and start again, or --resume {self.run.path}: "
                "every finished checkpoint is kept"
            )

    def score(self, batch: Batch) -> TokenStats:
        """Statistics of the current policy at the batch's response tokens."""
        return score(self.model, *batch.inputs, self.config.rollout.temperature)

    def readings(self, new: TokenStats, batch: Batch, weights: Tensor, count: int, states: int) -> dict[str, Tensor]:
        """Per-token readings of a micro-batch, flattened over its response tokens; see `update_metrics`."""
        mask = batch.mask_BT
        coefficients = token_coefficients(mask, self.config.algorithm.reduction, count)
        step_size = self.config.optimizer.learning_rate * coefficients / states
        quadrant = torch.full_like(new.logprob, -1)
        for i, inside in enumerate(quadrants(new, batch.advantages_BT).values()):
            quadrant[inside] = i
        readings = {
            form: step_size * weights * estimate(new, batch.old, batch.advantages_BT, self.clip)
            for form, estimate in ENTROPY_CHANGE.items()
        }
        readings |= {
            "ratio": importance_ratio(new.logprob, batch.old.logprob),
            "advantage": batch.advantages_BT,
            "lambda": weights,
            "quadrant": quadrant,
        }
        return {name: value[mask] for name, value in readings.items()}

    def log_responses(
        self,
        step: int,
        problems: list[Problem],
        rollout: Rollout,
        rewards: list[float],
        advantages_B: Tensor,
        old: TokenStats,
    ) -> None:
        """Write the first responses of a rollout to the run folder."""
        group = self.config.rollout.responses
        rows = []
        for i in range(min(self.config.train.logged_responses, len(rewards))):
            mask = rollout.response_mask_BT[i].bool()
            rows.append(
                {
                    "prompt": problems[i // group].prompt,
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
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            foreach=True,
        )
    return torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


__all__ = ["QUADRANTS", "Batch", "Trainer", "make_optimizer"]
