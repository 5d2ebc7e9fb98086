"""The training loop: rollout, reward, advantage, entropy change, weight, loss, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from steer_core import ranks
from steer_core.advantages import ADVANTAGES
from steer_core.batch import Batch, flatten, mean_entropy, spread
from steer_core.config import OptimizerConfig
from steer_core.entropy_change import ENTROPY_CHANGE, quadrant_index
from steer_core.errors import SteerError
from steer_core.evaluation import evaluate
from steer_core.interventions.base import State, Step, Tokens, Treatment
from steer_core.ladder import Lens
from steer_core.loss import ClipRange, clipped_surrogate, denominator, importance_ratio, reduce_loss, token_coefficients
from steer_core.metrics import rollout_metrics, update_metrics
from steer_core.policy import load_policy, score
from steer_core.probe import watched_step
from steer_core.rollout import HuggingFaceEngine, Rollout, check_room
from steer_core.run import RunFolder, step_of
from steer_core.seeding import derive_seed
from steer_core.tasks import Problem, make_task
from steer_core.token_stats import TokenStats, concatenate
from steer_core.tokenizer import check_prompt


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
        clip = ClipRange(config.algorithm.clip_low, config.algorithm.clip_high, config.algorithm.dual_clip)
        self.intervention = config.intervention
        self.clip = self.intervention.clip_range(clip)
        self.state: State = {}
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
            self.finished, self.state = self.run.restore(path, self.model, self.optimizer)

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
                    self.run.save_checkpoint(step, self.model, self.policy.tokenizer, self.optimizer, self.state)
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

        solved = self.task.verify_all([problem for problem in problems for _ in range(group)], rollout.texts)
        rewards = [float(right) for right in solved]
        rewards_PG = torch.tensor(rewards, dtype=self.model.dtype, device=self.model.device).view(-1, group)
        lengths_PG = rollout.response_mask_BT.sum(-1).view(-1, group)
        advantages_B = ADVANTAGES[config.algorithm.advantage](rewards_PG, lengths_PG).flatten()
        old = self.score_rollout(rollout)
        scored = time.perf_counter()

        readings, norms, probed = self.update(list(self.batches(rollout, old, advantages_B, step)), step)
        updated = time.perf_counter()

        metrics = rollout_metrics(rollout, old, rewards_PG, advantages_B)
        if metrics["reward/groups_without_signal"] == 1:
            note = "within every group all rewards were equal: no gradient (AdamW's momentum, if any, still moves)"
            self.run.log(step, {"note": note}, "notes.jsonl")
        metrics |= update_metrics(readings, self.clip, list(ENTROPY_CHANGE), self.form) | probed
        metrics |= {f"intervention/{name}": value for name, value in self.state.items()}
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

    def batches(self, rollout: Rollout, old: TokenStats, advantages_B: Tensor, step: int = 1) -> Iterator[list[Batch]]:
        """The mini-batches of a rollout, one an optimiser step, each as a list of micro-batches."""
        source = torch.Generator().manual_seed(derive_seed(self.config.train.seed, "intervention", step))
        draws_BT = torch.rand(rollout.response_ids_BT.shape, generator=source).to(advantages_B)
        mini = self.config.optimizer.mini_batch_prompts * self.config.rollout.responses
        micro = self.config.optimizer.micro_batch_sequences
        for first in range(0, len(advantages_B), mini):
            parts = []
            for start in range(first, first + mini, micro):
                rows = slice(start, min(start + micro, first + mini))
                sequences = rollout.rows(rows)
                width = sequences.response_ids_BT.shape[1]
                part_old = old.map(lambda x, rows=rows, width=width: x[rows, :width])
                advantages_BT = advantages_B[rows, None].expand(-1, width)
                parts.append(Batch(sequences, part_old, advantages_BT, draws_BT[rows, :width]))
            yield parts

    def update(self, batches: list[list[Batch]], step: int) -> tuple[dict[str, Tensor], list[float], dict[str, float]]:
        """One optimiser step a mini-batch: (per-token readings, see `update_metrics`; gradient norms; the probe's).

        The probe watches one of the steps, another one each rollout.
        """
        readings, norms, probed = [], [], {}
        everything = [part for batch in batches for part in batch]
        states = ranks.total(sum(int(part.mask_BT.sum()) for part in everything), self.model.device)
        seen = self.tokens([part.old for part in everything], everything)
        self.state = self.intervention.begin_rollout(self.state, seen)
        for i, batch in enumerate(batches):
            watched = self.config.train.probe_sequences and i == (step - 1) % len(batches)
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

    def optimizer_step(self, batch: list[Batch], states: int, step: int) -> tuple[float, dict[str, Tensor]]:
        """One optimiser step over the micro-batches of a mini-batch: (gradient norm before clipping, readings).

        Where the intervention must see the whole step and there are several micro-batches, a values
        pass comes first (one more forward pass), so that nothing depends on the split.
        """
        reduction, count = self.config.algorithm.reduction, self.denominator(batch)
        planned: list[Treatment | None] = [None] * len(batch)
        if self.intervention.scope == "step" and ranks.total(len(batch), self.model.device) > ranks.count():
            with torch.no_grad():
                values = [self.score(part) for part in batch]
            for new in values:
                self.require_finite(new.logprob + new.entropy, "log-probs or entropies", step)
            planned = self.treatments(values, batch, count)
        news, treatments = [], []
        for part, treatment in zip(batch, planned, strict=True):
            stats = self.score(part)
            new = stats.detach()
            self.require_finite(new.logprob + new.entropy, "log-probs or entropies", step)
            treatment = treatment or self.treatments([new], [part], count)[0]
            losses = self.losses(stats, part, treatment)
            reduce_loss(losses, part.mask_BT, reduction, count).backward()
            news.append(new)
            treatments.append(treatment)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                ranks.add(parameter.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.require_finite(norm, "gradients", step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state = self.intervention.next_state(self.state, mean_entropy(news, batch))
        return float(norm), self.readings(news, batch, treatments, count, states)

    def denominator(self, batch: list[Batch]) -> int:
        """What the loss of a mini-batch is divided by, over its micro-batches and all ranks."""
        algorithm, longest = self.config.algorithm, self.config.rollout.max_new_tokens
        own = sum(denominator(part.mask_BT, algorithm.reduction, longest) for part in batch)
        return ranks.total(own, self.model.device)

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
        if gather and ranks.count() > 1:
            columns = torch.stack([*vars(new).values(), *vars(old).values(), advantages, draws], -1)
            *both, advantages, draws = ranks.gather(columns).unbind(-1)
            new, old = TokenStats(*both[:4]), TokenStats(*both[4:])
        return Tokens(new, old, advantages, self.clip, draws, self.state, step)

    def treatments(self, stats: list[TokenStats], parts: list[Batch], count: int) -> list[Treatment]:
        """What the intervention makes of the tokens of every micro-batch, given all, of all ranks in scope step."""
        gather = self.intervention.scope == "step"
        shares = [token_coefficients(part.mask_BT, self.config.algorithm.reduction, count) for part in parts]
        mine = torch.cat([share[part.mask_BT] for share, part in zip(shares, parts, strict=True)])
        temperature = self.config.rollout.temperature
        lenses = [Lens(self.model, part.sequences, temperature, micro_batch=len(part.mask_BT)) for part in parts]
        step = Step(lenses, self.optimizer, ranks.gather(mine) if gather else mine)
        own = vars(self.intervention.treat(self.tokens(stats, parts, step, gather)))
        if gather:
            own = {name: values if values is None else ranks.own(values, mine) for name, values in own.items()}
        counts = [int(part.mask_BT.sum()) for part in parts]
        columns = {
            name: [None] * len(parts) if values is None else values.split(counts) for name, values in own.items()
        }
        return [Treatment(**{name: values[i] for name, values in columns.items()}) for i in range(len(parts))]

    @property
    def form(self) -> str:
        """The estimate that sets STEER's weights; for other methods, the paper's, for the log."""
        return getattr(self.intervention, "form", "paper")

    def score(self, batch: Batch) -> TokenStats:
        """Statistics of the current policy at the batch's response tokens."""
        return score(self.model, batch.sequences, self.config.rollout.temperature)

    def require_finite(self, value: Tensor, name: str, step: int) -> None:
        """Raise SteerError for NaN or infinity, before they reach the weights."""
        if not value.isfinite().all():
            raise SteerError(
                f"rollout {step}: the {name} are not finite (optimizer.learning_rate "
                f"{self.config.optimizer.learning_rate}); lower it and start again, or --resume {self.run.path}: "
                "every finished checkpoint is kept"
            )

    def readings(
        self, news: list[TokenStats], batch: list[Batch], treatments: list[Treatment], count: int, states: int
    ) -> dict[str, Tensor]:
        """Per-token readings of a mini-batch, flat over its response tokens; see `update_metrics`.

        count: the loss's denominator. states: response tokens of the whole rollout, over which the
        policy's mean entropy is taken.
        """
        new, old, _ = flatten(news, batch)
        reduction = self.config.algorithm.reduction
        share = torch.cat([token_coefficients(part.mask_BT, reduction, count)[part.mask_BT] for part in batch])
        advantages = torch.cat([treatment.advantages for treatment in treatments])
        weights = torch.cat([treatment.weights for treatment in treatments])
        scale = self.config.optimizer.step_size * share * weights
        most_damped = torch.zeros_like(weights, dtype=torch.bool)
        most_damped[weights.argmin()] = weights.min() < 1
        return {
            **{f: scale / states * estimate(new, old, advantages, self.clip) for f, estimate in ENTROPY_CHANGE.items()},
            "ratio": importance_ratio(new.logprob, old.logprob),
            "advantage": advantages,
            "probability": new.logprob.exp(),
            "entropy": new.entropy,
            "lambda": weights,
            "most_damped": most_damped,
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
