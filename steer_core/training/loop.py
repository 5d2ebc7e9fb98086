"""The training loop: the paper's algorithm (STEER, arXiv 2510.10150, section 4), for any method of `interventions/`.

`Trainer.rollout_and_update` is the box. It is made of the functions that `examples/minimal.py` calls one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from steer_core.common import ranks, reductions
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
from steer_core.problems.task import Problem
from steer_core.rewards.base import UNJUDGED, Verdict
from steer_core.rollout.rollout import Rollout
from steer_core.rollout.samplers import make_sampler
from steer_core.runs.folder import RunFolder
from steer_core.runs.memory import MemoryRun
from steer_core.runs.tracking import track
from steer_core.training.batch import MicroBatch, mini_batches, padding, score_rollout
from steer_core.training.checks import check_ranks, check_room_for_prompts, check_sync, packs
from steer_core.training.data_order import local_places, rollout_problems
from steer_core.training.metrics import gap_metrics, rollout_metrics, update_metrics
from steer_core.training.probe import watched_step
from steer_core.training.samples import first_responses
from steer_core.training.update import Update


@dataclass
class Sampled:
    """A rollout of this rank with its rewards, and what of all ranks' groups the advantages and the log need.

    rollout, problems, verdicts, places, rewards_B: this rank's. rewards_PG, lengths_PG, truncated_PG, unjudged_PG:
    of all ranks, (prompts, group).
    """

    rollout: Rollout
    problems: list[Problem]
    places: list[int]
    verdicts: list[Verdict]
    rewards_B: Tensor
    rewards_PG: Tensor
    lengths_PG: Tensor
    truncated_PG: Tensor
    unjudged_PG: Tensor


class Steps(NamedTuple):
    """What the optimiser steps of a rollout did: their `token_log`s joined, gradient norms, the probe's metrics."""

    log: dict[str, Tensor]
    norms: list[float | None]
    probed: dict[str, float]


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
        self.config, self.run = config, run or MemoryRun()
        in_parts = config.engine.name == "deepspeed" and config.engine.zero_stage == 3  # the engine moves them
        self.policy = load_policy(**vars(config.model) | ({"device": "cpu"} if in_parts else {}))
        self.model = self.policy.model
        self.engine = make_engine(self.policy, config)
        self.packed = packs(self.policy, config.optimizer)
        kept = f", or {self.run.how_to_go_on}: every finished checkpoint is kept" if run else ""
        self.update = Update(self.policy, self.engine, config, self.packed, kept)
        self.task = make_task(config.task, self.policy.tokenizer)
        self.problems = self.task.problems("train", config.task.train_problems)
        self.held_out = self.task.problems(config.evaluation.split, config.evaluation.problems)
        longest = check_room_for_prompts(self.policy, config, self.problems, self.held_out)
        self.sampler = make_sampler(self.policy, config, longest)
        self.finished = 0
        self.stop_requested = False

    def resume(self, from_step: int | None = None, fall_back: bool = False) -> None:
        """Load the last checkpoint, or that of `from_step`; without any, the run starts at its beginning.

        fall_back: where the last is damaged, say so and take the last one that is whole.
        """
        checkpoints = self.run.checkpoints
        path = ranks.broadcast_from_main(lambda: checkpoints.choose(from_step, fall_back))
        if path is not None:
            self.finished, self.update.active.memory = checkpoints.restore(path, self.engine)
            self.sync_weights(self.finished)

    def fit(self, on_rollout: Callable[[int, dict], None] = lambda rollout_index, metrics: None) -> bool:
        """Train to the end; False where `stop_requested` ended it early.

        Metrics, evaluations and checkpoints go to the run; `on_rollout` gets each rollout's metrics. A requested
        stop takes effect after the rollout in hand, with a checkpoint.
        """
        total, every = self.config.train.rollouts, self.config.evaluation.every
        if isinstance(self.run, RunFolder):
            self.run.rewind(self.finished)
        ranks.barrier()
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
                    self.save(n, evaluation.get(f"evaluation/pass@{self.config.evaluation.pass_at[0]}"))
                if stop:
                    break
        return self.finished == total

    def rollout_and_update(self, n: int) -> dict[str, float]:
        """Rollout n (from 1) and its optimiser steps, as in the paper's algorithm; the metrics of both."""
        clock = [time.perf_counter()]
        # 1. sample a group of responses to each prompt with the policy theta_old, and grade them
        sampled = self.sample(n, clock)
        # 2. advantages from the groups' rewards
        advantage = ADVANTAGES[self.config.algorithm.advantage]
        advantages_PG = advantage(sampled.rewards_PG, sampled.lengths_PG)
        advantages_B = ranks.local_rows(advantages_PG.flatten(), sampled.rewards_B)
        # 3. ln p and H at every token under theta_old
        old = self.score_rollout(sampled.rollout)
        clock.append(time.perf_counter())
        # 4. for every mini-batch: lambda from Omega, lambda x clipped surrogate, its gradient, an optimiser step
        batches = list(self.batches(sampled.rollout, old, advantages_B, n, sampled.places))
        steps = self.optimizer_steps(batches, n)
        # 5. sample from the new policy from now on
        self.sync_weights(n)
        clock.append(time.perf_counter())
        self.keep_responses(n, sampled, advantages_B, old, batches, steps)
        return self.metrics(n, sampled, advantages_PG, old, batches, steps, clock)

    def problems_of(self, n: int) -> list[Problem]:
        """The problems of rollout n, those of all ranks."""
        return rollout_problems(self.problems, n, self.config)

    def score_rollout(self, rollout: Rollout) -> TokenStats:
        """Statistics (B, T) of the current policy at every response token of a rollout, without gradient."""
        return score_rollout(self.model, rollout, self.config, self.packed)

    def batches(
        self,
        rollout: Rollout,
        old: TokenStats,
        advantages_B: Tensor,
        n: int = 1,
        places: Sequence[int] | None = None,
    ) -> Iterator[list[MicroBatch]]:
        """The mini-batches of rollout n; see `mini_batches`."""
        return mini_batches(rollout, old, advantages_B, self.config, n, places, self.packed)

    def sample(self, n: int, clock: list[float]) -> Sampled:
        """This rank's responses to its prompts of rollout n, graded; what groups are made of comes from all ranks."""
        config, group = self.config, self.config.rollout.responses
        places = local_places(config)
        everyone = self.problems_of(n)
        problems = [everyone[place] for place in places]
        seed = derive_seed(config.train.seed, "rollout", n)
        rollout = self.sampler.generate([p.prompt for p in problems], group, config.rollout, seed, places)
        mask_BT = rollout.response_mask_BT.bool()
        if not mask_BT.any(-1).all():
            raise SteerError(
                f"rollout {n}: the sampler returned a response without a token; check the model's end token and "
                f"rollout.max_new_tokens ({config.rollout.max_new_tokens}), then {self.run.how_to_go_on}"
            )
        clock.append(time.perf_counter())
        verdicts = self.task.grade_all([problem for problem in problems for _ in range(group)], rollout.texts)
        real = {"dtype": torch.promote_types(self.model.dtype, torch.float32), "device": mask_BT.device}
        columns_BK = torch.stack(
            [
                torch.tensor([float(verdict.correct) for verdict in verdicts], **real),
                mask_BT.sum(-1).to(**real),
                torch.tensor([reason == "length" for reason in rollout.finish_reasons], **real),
                torch.tensor([verdict.status in UNJUDGED for verdict in verdicts], **real),
            ],
            -1,
        )
        groups = (column.view(-1, group) for column in ranks.all_gather_rows(columns_BK).unbind(-1))
        sampled = Sampled(rollout, problems, places, verdicts, columns_BK[:, 0], *groups)
        self.note_unjudged(n, sampled)
        return sampled

    def optimizer_steps(self, batches: list[list[MicroBatch]], n: int) -> Steps:
        """One optimiser step a mini-batch. A probe watches one of them, another one each rollout, on the main rank."""
        own_tokens = sum(int(part.mask_BT.sum()) for batch in batches for part in batch)
        tokens = ranks.all_reduce_sum(own_tokens, self.model.device)
        self.update.active.begin_rollout(batches)
        logs: list[dict[str, Tensor]] = []
        norms: list[float | None] = []
        probed: dict[str, float] = {}
        for i, batch in enumerate(batches):
            watched = self.config.train.probe_sequences and i == (n - 1) % len(batches) and ranks.is_main()
            with watched_step(self.lens_on(batch)) if watched else nullcontext() as watch:
                norm, log = self.update.step(batch, tokens, n)
            if watch is not None:  # the probe's tokens are the first of the mini-batch's
                seen = len(watch.measured)
                probed = watch.metrics({form: tokens * log[form][:seen] for form in ENTROPY_CHANGE})
            norms.append(norm)
            logs.append(log)
        return Steps({name: torch.cat([log[name] for log in logs]) for name in logs[0]}, norms, probed)

    def lens_on(self, batch: list[MicroBatch]) -> Lens:
        """The probe: the first sequences of a mini-batch."""
        sequences = batch[0].sequences.rows(slice(0, self.config.train.probe_sequences))
        size = self.config.optimizer.micro_batch_sequences
        return Lens(self.model, sequences, self.config.rollout.temperature, micro_batch=size)

    def sync_weights(self, n: int) -> None:
        """Let the sampler sample from the weights in training, and check that it does."""
        self.sampler.sync_weights(self.engine.weights())
        check_sync(self.model, self.sampler, self.problems, self.config, n, self.packed)

    def metrics(
        self,
        n: int,
        sampled: Sampled,
        advantages_PG: Tensor,
        old: TokenStats,
        batches: list[list[MicroBatch]],
        steps: Steps,
        clock: list[float],
    ) -> dict[str, float]:
        """What rollout n logs; see `metrics.py`. clock: when it began, had sampled, had scored, had updated."""
        mask, active = sampled.rollout.response_mask_BT.bool(), self.update.active
        zero_variance_P = (advantages_PG == 0).all(-1)
        seen_N2 = torch.stack([old.entropy[mask], old.logprob[mask]], -1)
        metrics = rollout_metrics(
            *seen_N2.unbind(-1), sampled.lengths_PG, sampled.truncated_PG, sampled.rewards_PG, zero_variance_P
        )
        metrics["reward/unjudged"] = float(sampled.unjudged_PG.mean())
        if metrics["reward/groups_without_signal"] == 1:
            note = "within every group all rewards were equal: no gradient (AdamW's momentum, if any, still moves)"
            self.run.log(n, {"note": note}, "notes.jsonl")
        if sampled.rollout.logprobs_BT is not None:
            metrics |= gap_metrics(sampled.rollout.logprobs_BT[mask], old.logprob[mask])
        metrics |= update_metrics(steps.log, active.clip, list(ENTROPY_CHANGE), active.form) | steps.probed
        metrics |= {f"intervention/{name}": value for name, value in active.memory.items()}
        metrics |= step_metrics(steps, padding(batches, self.packed))
        began, had_sampled, had_scored, had_updated = clock
        tokens = int(sampled.lengths_PG.sum())
        return metrics | {
            "time/rollout_seconds": had_sampled - began,
            "time/score_seconds": had_scored - had_sampled,
            "time/update_seconds": had_updated - had_scored,
            "time/sampling_tokens_per_second": tokens / (had_sampled - began),
            "time/training_tokens_per_second": tokens / (had_updated - had_scored),
        }

    def note_unjudged(self, n: int, sampled: Sampled) -> None:
        """Note how many responses were not judged, for a reward of 0 that means nothing. All ranks make this call.

        Raises SteerError where the grader crashed on every response: there is no reward to learn from.
        """
        verdicts, unjudged_PG = sampled.verdicts, sampled.unjudged_PG
        lost, told = int(unjudged_PG.sum()), [verdict for verdict in verdicts if verdict.status in UNJUDGED]
        why = f"{told[0].status}: {told[0].detail}" if told else "other ranks know why"
        crashed = sum(verdict.status == "crashed" for verdict in verdicts)
        if ranks.all_reduce_sum(crashed, self.model.device) == unjudged_PG.numel():
            raise SteerError(
                f"rollout {n}: the grader crashed on every response ({why}); mend what it says, "
                f"then {self.run.how_to_go_on}"
            )
        if lost:
            note = f"{lost} of {unjudged_PG.numel()} responses were not judged, their reward is 0 ({why})"
            self.run.log(n, {"note": note}, "notes.jsonl")

    def evaluate(self, n: int) -> dict[str, float]:
        """Evaluate the policy on the held-out problems, log it, and return what a chart of it needs."""
        config = self.config
        seed = derive_seed(config.train.seed, "evaluation", n)
        began = time.perf_counter()
        budget = (config.optimizer.micro_batch_tokens, self.packed)
        result = evaluate(self.policy, self.sampler, self.task, self.held_out, config.evaluation, seed, *budget)
        row = result.to_dict(config.evaluation.pass_at)
        self.run.log(n, {**row, "time/seconds": time.perf_counter() - began}, "evaluations.jsonl")
        return {f"evaluation/{name}": value for name, value in row.items() if isinstance(value, float)}

    def keep_responses(
        self,
        n: int,
        sampled: Sampled,
        advantages_B: Tensor,
        old: TokenStats,
        batches: list[list[MicroBatch]],
        steps: Steps,
    ) -> None:
        """Write one response to each of the first problems of a rollout to the run folder, token by token."""
        if not (isinstance(self.run, RunFolder) and ranks.is_main()):
            return
        problems = sampled.problems[: self.config.train.logged_responses]
        correct = [verdict.correct for verdict in sampled.verdicts]
        rows = first_responses(
            self.policy.tokenizer, problems, sampled.rollout, correct, advantages_B, old, batches, steps.log,
            self.config.rollout.responses,
        )  # fmt: skip
        self.run.write_rollout(n, rows)

    def save(self, n: int, score: float | None) -> None:
        """Write a checkpoint after rollout n, where the run has a folder. score: its pass@k, where it was evaluated."""
        if isinstance(self.run, RunFolder):
            self.run.checkpoints.save(n, self.policy, self.engine, self.update.active.memory, score)


def step_metrics(steps: Steps, padded: float) -> dict[str, float]:
    """Gradient norms, skipped steps, the loss and the padding of a rollout's optimiser steps."""
    taken = [norm for norm in steps.norms if norm is not None]
    norms = {"grad_norm/mean": sum(taken) / len(taken), "grad_norm/max": max(taken)} if taken else {}
    return norms | {
        "steps/skipped": len(steps.norms) - len(taken),
        "loss": reductions.total(steps.log["loss"]) / len(steps.norms),
        "batch/padding": padded,
    }


def train(
    config: Config,
    folder: str | Path | None = None,
    on_rollout: Callable[[int, dict], None] = lambda rollout_index, metrics: None,
) -> Trainer:
    """Train a run from its beginning to its end, into a new run folder or in memory, and return its trainer.

    on_rollout gets each rollout's number and metrics. Raises SteerError as `Trainer` does, and where the folder
    holds a run already.
    """
    run = None if folder is None else RunFolder(folder, config)
    trainer = Trainer(config, run)
    if run is not None:
        ranks.broadcast_from_main(lambda: run.start().path)
    trainer.fit(on_rollout)
    return trainer
