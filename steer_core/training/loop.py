"""The training loop: rollout, reward, advantage, then the updates (`updates.py`), log, evaluation, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.common.seeding import derive_seed
from steer_core.evaluation.held_out import evaluate
from steer_core.formulas.advantages import ADVANTAGES
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.token_stats import TokenStats
from steer_core.policy.tokenizer import check_prompt
from steer_core.problems import Problem, make_task
from steer_core.rewards.base import UNJUDGED, Verdict
from steer_core.rollout.huggingface import check_room
from steer_core.rollout.rollout import Rollout
from steer_core.rollout.samplers import make_sampler
from steer_core.runs.folder import RunFolder
from steer_core.runs.responses import Response, token_texts
from steer_core.runs.tracking import track
from steer_core.training.batch import Batch, padding
from steer_core.training.metrics import gap_metrics, rollout_metrics, update_metrics
from steer_core.training.update import Updates

_PROBE_PROMPTS, _PROBE_TOKENS = 4, 8


class Trainer(Updates):
    """One run. It starts at its beginning, or after `resume` at a checkpoint; `fit` takes it to its end.

    Raises SteerError where settings, model, tokenizer and task do not fit together, before anything
    is sampled or written.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run)
        config = self.config
        self.task = make_task(config.task, self.policy.tokenizer)
        self.problems = self.task.problems("train", config.task.train_problems)
        self.held_out = self.task.problems(config.evaluation.split, config.evaluation.problems)
        check_prompt(self.policy.tokenizer, self.problems[0].prompt)
        longest = 0
        for problems, sampling, section in (
            (self.problems, config.rollout, "rollout"),
            (self.held_out, config.evaluation, "evaluation"),
        ):
            encoded = self.policy.tokenizer([p.prompt for p in problems], add_special_tokens=False)
            prompt = max(map(len, encoded["input_ids"]))
            check_room(self.policy, prompt, sampling.max_new_tokens, f"{section}.max_new_tokens")
            longest = max(longest, prompt + sampling.max_new_tokens)
        self.sampler = make_sampler(self.policy, config, longest)
        self.finished = 0
        self.stop_requested = False

    def resume(self, from_step: int | None = None, fall_back: bool = False) -> None:
        """Load the last checkpoint, or that of `from_step`; without any, the run starts at its beginning.

        fall_back: where the last is damaged, say so and take the last one that is whole.
        """
        path = ranks.broadcast_from_main(lambda: self.run.choose_checkpoint(from_step, fall_back))
        if path is not None:
            self.finished, self.state = self.run.restore(path, self.engine)
            self.sampler.push(self.engine.weights())
            self.check_push(self.finished)

    def fit(self, on_step: Callable[[int, dict], None] = lambda step, metrics: None) -> bool:
        """Train to the end; False where `stop_requested` ended it early.

        Metrics, evaluations and checkpoints go to the run folder; `on_step` gets each rollout's
        metrics. A requested stop takes effect after the rollout in hand, with a checkpoint.
        """
        config = self.config
        total, every = config.train.rollouts, config.evaluation.every
        self.run.rewind(self.finished)
        ranks.barrier()
        with track(self.run, self.finished) as show:
            for step in range(self.finished + 1, total + 1):
                metrics = self.step(step)
                evaluation = self.evaluate(step) if every and (step % every == 0 or step == total) else {}
                self.run.log(step, metrics)
                show(step, metrics | evaluation)
                self.finished = step
                on_step(step, metrics)
                stop = bool(ranks.all_reduce_sum(self.stop_requested, self.model.device))
                if step % config.train.checkpoint_every == 0 or step == total or stop:
                    score = evaluation.get(f"evaluation/pass@{config.evaluation.pass_at[0]}")
                    self.run.save_checkpoint(step, self.policy, self.engine, self.state, score)
                if stop:
                    break
        return self.finished == total

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluate the policy on the held-out problems, log it, and return what a chart of it needs."""
        config = self.config
        seed = derive_seed(config.train.seed, "evaluation", step)
        began = time.perf_counter()
        budget = (config.optimizer.micro_batch_tokens, self.packed)
        result = evaluate(self.policy, self.sampler, self.task, self.held_out, config.evaluation, seed, *budget)
        row = result.to_dict(config.evaluation.pass_at)
        self.run.log(step, {**row, "time/seconds": time.perf_counter() - began}, "evaluations.jsonl")
        return {f"evaluation/{name}": value for name, value in row.items() if isinstance(value, float)}

    def step(self, step: int) -> dict[str, float]:
        """One rollout and its optimiser steps; the metrics of both, over all ranks."""
        config, group = self.config, self.config.rollout.responses
        began = time.perf_counter()
        places = self.own_places()
        everyone = self.problems_of(step)
        problems = [everyone[place] for place in places]
        seed = derive_seed(config.train.seed, "rollout", step)
        rollout = self.sampler.generate([p.prompt for p in problems], group, config.rollout, seed, places)
        mask = rollout.response_mask_BT.bool()
        if not mask.any(-1).all():
            raise SteerError(
                f"rollout {step}: the sampler returned a response without a token; check the model's end token and "
                f"rollout.max_new_tokens ({config.rollout.max_new_tokens}), then --resume {self.run.path}"
            )
        sampled = time.perf_counter()

        verdicts = self.task.grade([problem for problem in problems for _ in range(group)], rollout.texts)
        solved = [verdict.correct for verdict in verdicts]
        reals = {"dtype": self.scoring_dtype, "device": self.model.device}
        rewards_B = torch.tensor([float(right) for right in solved], **reals)
        cut_B = torch.tensor([reason == "length" for reason in rollout.finish_reasons], **reals)
        lost_B = torch.tensor([verdict.status in UNJUDGED for verdict in verdicts], **reals)
        mine_BK = torch.stack([rewards_B, mask.sum(-1).to(rewards_B), cut_B, lost_B], -1)
        rewards_PG, lengths_PG, cut_PG, lost_PG = (x.view(-1, group) for x in ranks.all_gather_rows(mine_BK).unbind(-1))
        self.note_unjudged(step, verdicts, lost_PG)
        all_advantages_B = ADVANTAGES[config.algorithm.advantage](rewards_PG, lengths_PG).flatten()
        advantages_B = ranks.local_rows(all_advantages_B, rewards_B)
        old = self.score_rollout(rollout)
        scored = time.perf_counter()

        rows = [place * group + i for place in places for i in range(group)]
        batches = list(self.batches(rollout, old, advantages_B, step, rows))
        readings, norms, probed = self.update(batches, step)
        self.sampler.push(self.engine.weights())
        self.check_push(step)
        updated = time.perf_counter()

        entropy_N, logprob_N = ranks.all_gather_rows(torch.stack([old.entropy[mask], old.logprob[mask]], -1)).unbind(-1)
        silent_P = (all_advantages_B.view(-1, group) == 0).all(-1)
        metrics = rollout_metrics(entropy_N, logprob_N, lengths_PG, cut_PG, rewards_PG, silent_P)
        metrics["reward/unjudged"] = float(lost_PG.mean())
        if metrics["reward/groups_without_signal"] == 1:
            note = "within every group all rewards were equal: no gradient (AdamW's momentum, if any, still moves)"
            self.run.log(step, {"note": note}, "notes.jsonl")
        if rollout.logprobs_BT is not None:
            metrics |= gap_metrics(ranks.all_gather_rows(rollout.logprobs_BT[mask]), logprob_N)
        seen = of_all_ranks(readings)
        metrics |= update_metrics(seen, self.clip, list(ENTROPY_CHANGE), self.form) | probed
        metrics |= {f"intervention/{name}": value for name, value in self.state.items()}
        taken = [norm for norm in norms if norm is not None]
        if taken:
            metrics["grad_norm/mean"], metrics["grad_norm/max"] = sum(taken) / len(taken), max(taken)
        metrics["steps/skipped"] = len(norms) - len(taken)
        metrics["loss"] = float(seen["loss"].sum(dtype=torch.float64)) / len(norms)
        metrics["batch/padding"] = padding(batches, self.packed)
        tokens = int(lengths_PG.sum())
        metrics |= {
            "time/rollout_seconds": sampled - began,
            "time/score_seconds": scored - sampled,
            "time/update_seconds": updated - scored,
            "time/sampling_tokens_per_second": tokens / (sampled - began),
            "time/training_tokens_per_second": tokens / (updated - scored),
        }
        self.log_responses(step, problems, rollout, solved, advantages_B, old, batches, readings)
        return metrics

    def note_unjudged(self, step: int, verdicts: list[Verdict], lost_PG: Tensor) -> None:
        """Note how many responses were not judged, for a reward of 0 that means nothing. All ranks make this call.

        Raises SteerError where the grader crashed on every response: there is no reward to learn from.
        """
        lost, told = int(lost_PG.sum()), [verdict for verdict in verdicts if verdict.status in UNJUDGED]
        why = f"{told[0].status}: {told[0].detail}" if told else "other ranks know why"
        crashed = ranks.all_reduce_sum(sum(verdict.status == "crashed" for verdict in verdicts), self.model.device)
        if crashed == lost_PG.numel():
            raise SteerError(
                f"rollout {step}: the grader crashed on every response ({why}); mend what it says, "
                f"then --resume {self.run.path}"
            )
        if lost:
            note = f"{lost} of {lost_PG.numel()} responses were not judged, their reward is 0 ({why})"
            self.run.log(step, {"note": note}, "notes.jsonl")

    def own_places(self) -> list[int]:
        """Which prompts of a rollout are this rank's: an equal share of every mini-batch."""
        mini = self.config.optimizer.mini_batch_prompts
        share = mini // ranks.world_size()
        first = ranks.rank() * share
        return [i for i in range(self.config.rollout.prompts) if first <= i % mini < first + share]

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

    def check_push(self, step: int) -> None:
        """Raise SteerError where a sampler with weights of its own and the trainer disagree on log-probs."""
        if self.config.rollout.engine != "vllm":
            return
        longest = min(_PROBE_TOKENS, self.config.rollout.max_new_tokens)
        config = replace(self.config.rollout, max_new_tokens=longest, top_p=1.0)
        prompts = [problem.prompt for problem in self.problems[:_PROBE_PROMPTS]]
        probe = self.sampler.generate(prompts, 1, config, derive_seed(self.config.train.seed, "push", step))
        mask = probe.response_mask_BT.bool()
        own = self.score_rollout(probe).logprob[mask]
        gap = float((probe.logprobs_BT[mask].to(own) - own).abs().max())
        if not gap <= self.config.rollout.logprob_tolerance:
            raise SteerError(
                f"rollout {step}: after the push of weights, log-probs of vllm and trainer differ by {gap:.2g} "
                f"(rollout.logprob_tolerance {self.config.rollout.logprob_tolerance:g}): its weights are stale or read "
                "in another precision; raise the tolerance only if model.dtype explains it"
            )

    def log_responses(
        self,
        step: int,
        problems: list[Problem],
        rollout: Rollout,
        solved: list[bool],
        advantages_B: Tensor,
        old: TokenStats,
        batches: list[list[Batch]],
        readings: dict[str, Tensor],
    ) -> None:
        """Write one response to each of the first problems of a rollout to the run folder, token by token."""
        if not ranks.is_main():
            return
        group, rows = self.config.rollout.responses, {}
        wanted = {p * group: problem for p, problem in enumerate(problems[: self.config.train.logged_responses])}
        lengths = {row: n for batch in batches for part in batch for row, n in part.lengths().items()}
        split = {name: readings[name].split(list(lengths.values())) for name in ("lambda", "omega")}
        for k, row in enumerate(lengths):
            if row not in wanted:
                continue
            mask = rollout.response_mask_BT[row].bool()
            ids, logprob = rollout.response_ids_BT[row][mask].tolist(), old.logprob[row][mask]
            rows[row] = Response(
                problem=wanted[row].id,
                prompt=wanted[row].prompt,
                response=rollout.texts[row],
                reward=float(solved[row]),
                advantage=float(advantages_B[row]),
                finish_reason=rollout.finish_reasons[row],
                sample=0,
                tokens=token_texts(self.policy.tokenizer, ids, rollout.finish_reasons[row] == "stop"),
                token_ids=ids,
                probability=logprob.exp().tolist(),
                logprob=logprob.tolist(),
                entropy=old.entropy[row][mask].tolist(),
                lambda_=split["lambda"][k].tolist(),
                omega=split["omega"][k].tolist(),
            )
        self.run.write_rollout(step, [rows[row] for row in wanted])


def of_all_ranks(readings: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per-token readings of every rank behind one another."""
    if ranks.world_size() == 1:
        return readings
    columns = ranks.all_gather_rows(torch.stack([values.double() for values in readings.values()], -1)).unbind(-1)
    return {name: column.to(readings[name].dtype) for name, column in zip(readings, columns, strict=True)}
