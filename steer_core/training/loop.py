"""The training loop: the paper's algorithm (STEER, arXiv 2510.10150), for any method of `interventions/`.

`Trainer.rollout_and_update` is the algorithm. It is made of the functions that `examples/minimal.py` calls one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.common.seeding import derive_seed
from steer_core.config.config import Config
from steer_core.engines import make_engine
from steer_core.evaluation.held_out import evaluate
from steer_core.formulas.advantages import ADVANTAGES
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.token_stats import TokenStats
from steer_core.ladder.passes import Lens
from steer_core.policy.model import check_device, load_policy
from steer_core.problems import make_task
from steer_core.problems.problem import Problem
from steer_core.rollout.rollout import Rollout
from steer_core.rollout.samplers import make_sampler
from steer_core.runs.folder import RunFolder
from steer_core.runs.tracking import track
from steer_core.runs.unsaved import MemoryRun
from steer_core.training.batch import MicroBatch, mini_batches, score_rollout
from steer_core.training.checks import check_model, check_ranks, check_room_for_prompts, check_sync
from steer_core.training.data_order import rollout_problems
from steer_core.training.kept_responses import first_responses
from steer_core.training.metrics import Clock, Steps, end_metrics, metrics_of
from steer_core.training.probe import watched_step
from steer_core.training.reference import Reference, shaped_rewards
from steer_core.training.sampling import SampledRollout, divergence_told, note_of_unjudged, sample_rollout
from steer_core.training.scoring import make_scoring
from steer_core.training.token_dump import token_rows
from steer_core.training.update import Update

Watcher = Callable[[int, dict[str, float]], None]
"""Told the number of each rollout, from 1, and its metrics."""
NO_SIGNAL = (
    "no response had an advantage, because within every group all rewards were equal or the method gave none: no "
    "gradient (AdamW's momentum, if any, still moves)"
)


class Trainer:
    """One run: a policy, what samples from it, what updates it, and where the run is kept.

    run: its folder; without one nothing is left on disk and the log stays in `run.logs`. `fit` takes the run from
    its beginning, or from the checkpoint that `resume` loads, to its end. Raises SteerError where settings, model,
    tokenizer and task do not fit together, before anything is sampled or written.
    """

    def __init__(self, config: Config, run: RunFolder | None = None) -> None:
        check_device(config.model.device)
        ranks.init(config.model.device, config.engine.timeout_minutes)
        check_ranks(config)
        torch.set_num_threads(config.train.threads)
        config = config.with_method()
        self.config, self.run = config, run or MemoryRun()
        in_parts = config.engine.name == "deepspeed" and config.engine.zero_stage == 3  # the engine moves them
        self.policy = load_policy(**vars(config.model) | ({"device": "cpu"} if in_parts else {}))
        self.model = self.policy.model
        self.engine = make_engine(self.policy, config)
        check_model(self.policy, config)
        self.scoring = make_scoring(self.policy, config)
        self.update = Update(self.policy, self.engine, config, self.scoring)
        self.reference = Reference(config)
        self.task = make_task(config.task, self.policy.tokenizer)
        self.task.rollout_grader(0, [])  # a reward that is not found ends the run here
        self.problems = self.task.problems("train", config.task.train_problems)
        self.held_out = self.task.problems(config.evaluation.split, config.evaluation.problems)
        longest = check_room_for_prompts(self.policy, config, self.problems, self.held_out)
        self.sampler = make_sampler(self.policy, config, longest)
        self.finished = 0
        self.stop_requested = False

    @property
    def passes(self) -> dict[str, str]:
        """How the run samples and scores, in words: what was chosen for this model and machine, and why."""
        return {"sampling": self.sampler.told, "scoring": self.scoring.told()}

    def resume(self, from_step: int | None = None, fall_back: bool = False) -> None:
        """Load the last checkpoint, or that of `from_step`; without any, the run starts at its beginning.

        fall_back: where the last is damaged, say so and take the last one that is whole.
        """
        if isinstance(self.run, MemoryRun):
            raise SteerError("resume: a run in memory has no checkpoint; give the trainer a run folder")
        checkpoints = self.run.checkpoints
        path = ranks.broadcast_from_main(lambda: checkpoints.choose(from_step, fall_back))
        if path is not None:
            self.finished, self.update.active.memory = checkpoints.restore(path, self.engine)
            self.sync_weights(self.finished)

    def fit(self, on_rollout: Watcher = lambda n, metrics: None) -> bool:
        """Train to the end; False where `stop_requested` ended it early.

        Metrics, evaluations and checkpoints go to the run; `on_rollout` gets each rollout's metrics. A requested
        stop takes effect after the rollout in hand, with a checkpoint.
        """
        total, every = self.config.train.rollouts, self.config.evaluation.every
        self.run.rewind(self.finished)
        ranks.barrier()
        if self.finished == 0:  # before anything is sampled
            self.sync_weights(0)
        with track(self.run, self.finished) as show:
            for n in range(self.finished + 1, total + 1):
                metrics = self.rollout_and_update(n)
                evaluation = self.evaluate(n) if every and (n % every == 0 or n == total) else {}
                self.run.log(n, metrics)
                show(n, metrics | evaluation)
                self.finished = n
                on_rollout(n, metrics)
                stop = bool(ranks.all_reduce_sum(self.stop_requested, self.model.device))
                if n % self.config.train.checkpoint_every == 0 or n == total or stop:
                    score = evaluation.get(f"evaluation/pass@{self.config.evaluation.pass_at[0]}")
                    self.run.save_checkpoint(n, self.policy, self.engine, self.update.active.memory, score)
                if stop:
                    break
        return self.finished == total

    def rollout_and_update(self, n: int) -> dict[str, float]:
        """Rollout n (from 1) and its optimiser steps, as in the paper's algorithm; the metrics of both."""
        clock = Clock()
        # 1. sample a group of responses to each prompt with the policy theta_old, and grade them
        sampled = self.sample(n)
        # 2. ln p and H at every token under theta_old, and ln p under the reference of a KL term
        old, reference_BT = self.score_rollout(sampled.rollout), self.reference.logprobs(sampled.rollout)
        # 3. advantages from the groups' rewards; a method may change what a response is credited with
        rewards_PG, shaped = shaped_rewards(sampled, old, reference_BT, self.config)
        estimate, settings = ADVANTAGES[self.config.algorithm.advantage], self.config.algorithm.advantage_settings
        advantages_PG = estimate(rewards_PG, sampled.lengths_PG, **settings)
        mask_BT = sampled.rollout.response_mask_BT.bool()
        advantages_PG = self.update.active.credit(advantages_PG, sampled.rewards_PG, old, mask_BT, sampled.ids_P, n)
        advantages_B = ranks.local_rows(advantages_PG.flatten(), sampled.rewards_B)
        clock.tick()
        # every mini-batch (`Update.step`): 4. lambda from Omega; 5. lambda x clipped surrogate, its gradient; 6. a step
        batches = list(self.batches(sampled.rollout, old, advantages_B, n, sampled.places, reference_BT))
        with divergence_told(self.config, n):
            steps = self.optimizer_steps(batches, n)
        # 7. sample from the new policy from now on
        self.sync_weights(n)
        clock.tick()
        self.keep_responses(n, sampled, advantages_B, old, batches, steps)
        metrics = metrics_of(sampled, advantages_PG, old, batches, steps, self.update.active, self.scoring) | shaped
        if metrics["reward/groups_without_signal"] == 1:
            self.run.log(n, {"note": NO_SIGNAL}, "notes.jsonl")
        metrics |= end_metrics(sampled.rollout, self.policy, self.config.rollout.stop) | sampled.resampled
        metrics |= self.update.rate.metrics(n)
        return metrics | clock.metrics(sampled)

    def problems_of(self, n: int, attempt: int = 0) -> list[Problem]:
        """The problems of rollout n, those of all ranks; of a later attempt, those that take the place of some."""
        return rollout_problems(self.problems, n, self.config, attempt)

    def sample(self, n: int) -> SampledRollout:
        """This rank's part of rollout n, graded; what could not be judged is noted."""
        go_on = self.run.how_to_go_on
        with divergence_told(self.config, n - 1):
            attempts = [self.problems_of(n, attempt) for attempt in range(self.config.rollout.resample + 1)]
            sampled = sample_rollout(self.sampler, self.task, attempts, self.config, n, go_on)
        note = note_of_unjudged(sampled, n, go_on)
        if note is not None:
            self.run.log(n, {"note": note}, "notes.jsonl")
        return sampled

    def score_rollout(self, rollout: Rollout) -> TokenStats:
        """Statistics (B, T) of the current policy at every response token of a rollout, without gradient."""
        return score_rollout(self.model, rollout, self.config, self.scoring)

    def batches(
        self,
        rollout: Rollout,
        old: TokenStats,
        advantages_B: Tensor,
        n: int = 1,
        places: Sequence[int] | None = None,
        reference_BT: Tensor | None = None,
    ) -> Iterator[list[MicroBatch]]:
        """The mini-batches of rollout n, epoch by epoch; see `mini_batches`."""
        in_loss = reference_BT if self.config.algorithm.kl_in == "loss" else None
        for epoch in range(self.config.optimizer.repeats):
            parts = (rollout, old, advantages_B, self.config, n, places, self.scoring, in_loss, epoch)
            yield from mini_batches(*parts)

    def optimizer_steps(self, batches: list[list[MicroBatch]], n: int) -> Steps:
        """One optimiser step a mini-batch. A probe watches one of them, another one each rollout, on the main rank."""
        once = batches[: len(batches) // self.config.optimizer.repeats]
        own_tokens = sum(int(part.mask_BT.sum()) for batch in once for part in batch)
        tokens = ranks.all_reduce_sum(own_tokens, self.model.device)
        self.update.active.begin_rollout(once, n)
        logs: list[dict[str, Tensor]] = []
        norms: list[float | None] = []
        probed: dict[str, float] = {}
        for i, batch in enumerate(batches):
            watched = self.config.train.probe_sequences and i == (n - 1) % len(batches) and ranks.is_main()
            with watched_step(self.lens_on(batch)) if watched else nullcontext() as watch:
                norm, log = self.update.step(batch, tokens, n, i)
            if watch is not None:
                probed = watch.metrics({form: tokens * log[form] for form in ENTROPY_CHANGE if form in log})
            norms.append(norm)
            logs.append(log)
        return Steps({name: torch.cat([log[name] for log in logs]) for name in logs[0]}, norms, probed)

    def lens_on(self, batch: list[MicroBatch]) -> Lens:
        """The probe: the first sequences of a mini-batch."""
        sequences = batch[0].sequences.rows(slice(0, self.config.train.probe_sequences))
        size = self.config.optimizer.micro_batch_sequences
        return Lens(self.model, sequences, self.config.rollout.temperature, micro_batch=size, scoring=self.scoring)

    def sync_weights(self, n: int) -> None:
        """Let the sampler sample from the weights in training, and check that it does."""
        self.sampler.sync_weights(self.engine.weights())
        self.check_sync(n)

    def check_sync(self, n: int) -> None:
        """Raise SteerError, naming rollout n, where the sampler's log-probs are not the trainer's."""
        check_sync(self.model, self.sampler, self.problems, self.config, n, self.scoring)

    def evaluate(self, n: int) -> dict[str, float]:
        """Evaluate the policy on the held-out problems, log it, and return what a chart of it needs."""
        config = self.config
        seed = derive_seed(config.train.seed, "evaluation", n)
        began = time.perf_counter()
        budget = (config.optimizer.micro_batch_tokens, self.scoring)
        with divergence_told(config, n):
            result = evaluate(self.policy, self.sampler, self.task, self.held_out, config.evaluation, seed, *budget)
        row = result.to_dict(config.evaluation.pass_at)
        self.run.log(n, {**row, "time/seconds": time.perf_counter() - began}, "evaluations.jsonl")
        return {f"evaluation/{name}": value for name, value in row.items() if isinstance(value, float)}

    def keep_responses(
        self,
        n: int,
        sampled: SampledRollout,
        advantages_B: Tensor,
        old: TokenStats,
        batches: list[list[MicroBatch]],
        steps: Steps,
    ) -> None:
        """Give the run responses to the first problems of a rollout, one each or whole groups, and a dump if due."""
        if ranks.is_main():
            counts = self.config.train.logged_responses, self.config.train.logged_groups
            rows = first_responses(self.policy.tokenizer, sampled, counts, advantages_B, old, batches, steps.log)
            self.run.write_rollout(n, rows)
            every, clip = self.config.train.dump_every, self.update.active.clip
            if every and n % every == 0:
                parts = (self.policy.tokenizer, sampled, old, batches, steps.log, clip, self.config, n)
                self.run.write_dump(n, token_rows(*parts))


def train(config: Config, folder: str | Path | None = None, on_rollout: Watcher = lambda n, metrics: None) -> Trainer:
    """Train a run from its beginning to its end, into a new run folder or in memory, and return its trainer.

    on_rollout gets each rollout's number and metrics. Raises SteerError as `Trainer` does, and where the folder
    holds a run already.
    """
    config = config.with_method()
    run = None if folder is None else RunFolder(folder, config)
    trainer = Trainer(config, run)
    if run is not None:
        ranks.broadcast_from_main(lambda: run.start(trainer.passes).path)
    trainer.fit(on_rollout)
    return trainer
