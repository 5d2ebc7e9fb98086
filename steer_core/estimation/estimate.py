"""How well each estimate tells the entropy change of real updates: a model, its own rollouts, every rung.

The batch is what training would see: prompts, groups of responses, rewards, advantages, mini-batches.
For every mini-batch the optimiser's step is taken from the same policy, its effect measured at every
token, and undone. What is asked of each estimate then stands in `scores`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch.optim import Optimizer

from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import json_ready
from steer_core.common.seeding import derive_seed
from steer_core.common.settings import to_dict
from steer_core.config.config import Config
from steer_core.engines import LocalEngine
from steer_core.estimation.scores import summarise
from steer_core.estimation.unfinished import Sample, Unfinished
from steer_core.evaluation.sample_and_grade import sample_and_grade
from steer_core.formulas.advantages import ADVANTAGES
from steer_core.formulas.loss import ClipRange, denominator, token_coefficients
from steer_core.ladder.attribution import Attribution, UpdateBatch, attribute
from steer_core.ladder.passes import Lens, check_ladder
from steer_core.policy.model import Policy, base_digest, load_policy
from steer_core.policy.preflight import check_policy, ragged_pair
from steer_core.problems import Task, make_task
from steer_core.rollout.rollout import join
from steer_core.rollout.samplers import local_sampler
from steer_core.runs.folder import RunFolder

Progress = Callable[[Iterable, str], Iterable]


@dataclass(frozen=True)
class Update:
    """An optimiser and its step size, such as `sgd:0.01`."""

    optimizer: str
    eta: float

    @classmethod
    def parse(cls, text: str) -> Update:
        """From NAME:ETA. Raises SteerError for another name, and for a step size that is not above 0."""
        name, _, eta = text.partition(":")
        if name not in ("sgd", "adamw"):
            raise SteerError(f"update {text!r}: the optimiser {name!r} is neither sgd nor adamw; write sgd:0.01")
        try:
            value = float(eta)
        except ValueError as error:
            raise SteerError(f"update {text!r}: the step size {eta!r} is no number; write {name}:0.01") from error
        if not 0 < value < math.inf:
            raise SteerError(f"update {text!r}: the step size {value} is not above 0; write for example {name}:0.01")
        return cls(name, value)

    def __str__(self) -> str:
        return f"{self.optimizer}:{self.eta:g}"


DEFAULT_UPDATES = [Update("sgd", 1e-3), Update("adamw", 1e-4)]
"""What `steer estimate` measures where nothing else is asked."""


def sample(
    policy: Policy,
    task: Task,
    config: Config,
    with_signal: bool = False,
    progress: Progress = lambda items, title: items,
) -> Sample:
    """A rollout of `config.rollout.prompts` training problems in a shuffle set by `config.train.seed`.

    with_signal: keep only groups whose rewards differ, going on through the problems until there are
    enough (DAPO's dynamic sampling, Yu et al. 2025, section 3.2). Raises SteerError where they run out.
    """
    wanted, group = config.rollout.prompts, config.rollout.responses
    problems = task.problems("train", config.task.train_problems)
    order = torch.randperm(
        len(problems), generator=torch.Generator().manual_seed(derive_seed(config.train.seed, "epoch", 0))
    )
    sampler, kept, rewards, sampled = local_sampler(policy), [], [], 0
    starts = range(0, len(problems) if with_signal else wanted, wanted)
    for start in progress(starts, "sampling"):
        chosen = [problems[i] for i in order[start : start + wanted]]
        seed = derive_seed(config.train.seed, "estimate", start)
        answers = sample_and_grade(sampler, chosen, group, config.rollout, seed, [task.rollout_grader(seed)])
        scores_PG = torch.tensor(answers.rewards).view(-1, group)
        sampled += len(chosen)
        for p, row in enumerate(scores_PG):
            if len(kept) < wanted and (not with_signal or row.min() < row.max()):
                kept.append(answers.rollout.take(range(p * group, (p + 1) * group)))
                rewards.append(row)
        if len(kept) == wanted:
            return Sample(join(kept, policy.tokenizer.pad_token_id), torch.stack(rewards), sampled)
    raise SteerError(
        f"rollout.prompts: {wanted} groups with differing rewards are asked for and {len(kept)} were found among "
        f"{sampled} problems; lower it, or raise rollout.responses or task.train_problems"
    )


def optimizers_of(
    policy: Policy, config: Config, updates: Iterable[Update], run: RunFolder | None
) -> dict[str, Optimizer]:
    """A fresh optimiser for every update; one of the run's own kind holds the moments of its last checkpoint.

    Raises SteerError where DeepSpeed holds them: its ranks have them in parts, which are not read here.
    """
    found = {}
    for update in updates:
        settings = {"name": update.optimizer, "learning_rate": update.eta, "learning_rate_factor": 1.0}
        engine = LocalEngine(policy.model, dataclasses.replace(config.optimizer, **settings))
        optimizer = engine.optimizer
        own = run is not None and run.config.optimizer.name.replace("cpu-adam", "adamw") == update.optimizer
        remembers = own and (update.optimizer != "sgd" or run.config.optimizer.momentum > 0)
        if remembers and run.config.engine.name == "deepspeed":
            raise SteerError(
                f"update {update}: DeepSpeed's moments of {run.path} cannot be read here, and without them the step "
                f"is another one; name another optimiser, or to start without moments give "
                f"{run.checkpoints.saved()[-1]} with {run.path / 'config.yaml'}"
            )
        if own and run.config.engine.name == "local":
            (group,) = optimizer.param_groups
            asked = {name: value for name, value in group.items() if name != "params"}
            path = run.checkpoints.saved()[-1]
            run.checkpoints.check(path)
            run.checkpoints.restore(path, engine)
            optimizer.param_groups[0].update(asked)  # the checkpoint's moments, the settings asked for here
        found[str(update)] = optimizer
    return found


def attributions(
    policy: Policy,
    drawn: Sample,
    config: Config,
    optimizers: dict[str, Optimizer],
    unfinished: Unfinished | None = None,
) -> Iterator[dict[str, Attribution]]:
    """What each optimiser's step did to each mini-batch of the sample; empty where no reward differs within a group.

    Indices of groups and sequences count through the whole sample. unfinished: keeps every mini-batch, and gives
    those that it has.
    """
    algorithm, group, model = config.algorithm, config.rollout.responses, policy.model
    size, real = config.optimizer.mini_batch_prompts, torch.promote_types(model.dtype, torch.float32)
    rewards_PG = drawn.rewards_PG.to(model.device, model.dtype)
    lengths_PG = drawn.rollout.response_mask_BT.sum(-1).view(rewards_PG.shape)
    advantages_PG = ADVANTAGES[algorithm.advantage](rewards_PG, lengths_PG, **algorithm.advantage_settings)

    def measure(first: int) -> dict[str, Attribution]:
        sequences = drawn.rollout.rows(slice(first * group, (first + size) * group))
        mask = sequences.response_mask_BT.bool()
        rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
        advantages_N = advantages_PG[first : first + size].flatten()[rows]
        if not advantages_N.any():
            return {}
        count = denominator(mask, algorithm.reduction)
        batch = UpdateBatch(
            Lens(model, sequences, config.rollout.temperature, micro_batch=config.optimizer.micro_batch_sequences),
            rows // group,
            None,
            advantages_N,
            token_coefficients(mask, algorithm.reduction, count, real)[mask].to(model.dtype),
            ClipRange(algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip),
            config.optimizer.max_grad_norm,
        )
        results = attribute(batch, optimizers)
        for result in results.values():
            result.tokens["group"] += first
            result.tokens["sequence"] += first * group
            result.tokens["states"] = len(result.tokens)
        return results

    for first in range(0, len(advantages_PG), size):
        yield (unfinished or Unfinished()).mini_batch(first, partial(measure, first))


@dataclass(frozen=True)
class Estimate:
    """The outcome of `estimate`: a JSON-ready record, and by update the token table."""

    record: dict[str, Any]
    tokens: dict[str, pd.DataFrame]


def estimate(
    model: str,
    config: Config,
    updates: Iterable[Update],
    with_signal: bool = False,
    run: RunFolder | None = None,
    progress: Progress = lambda items, title: items,
    unfinished: Unfinished | None = None,
    resume: bool = False,
) -> Estimate:
    """Measure every estimate on a model and its own rollouts, for each update from the same policy.

    model: `embedded` or a model folder. run: the training run whose last checkpoint the model is; an
    update by the run's own optimiser then starts from its moments. progress(items, title) shows
    progress. unfinished: keeps what is measured; with `resume` the estimate goes on from what it
    has. Raises SteerError where model, task and settings do not fit, or nothing is learnt.
    """
    updates = list(updates)
    if not updates:
        raise SteerError("update: none is given; name at least one, such as sgd:0.001")
    torch.set_num_threads(config.train.threads)
    policy = load_policy(**vars(config.model) | {"path": model})
    check_policy(policy)
    check_ladder(policy.model, ragged_pair(policy))
    task = make_task(config.task, policy.tokenizer)
    optimizers = optimizers_of(policy, config, updates, run)
    unfinished = unfinished or Unfinished()
    settings = {"weights": base_digest(model), "config": to_dict(config), "with_signal": with_signal}
    unfinished.begin(settings | {"updates": list(optimizers), "moments": run is not None}, resume)
    drawn = unfinished.sample(lambda: sample(policy, task, config, with_signal, progress), policy.model.device)
    record = _about(config.model.path if run else model, run, config, drawn)
    starts = range(0, len(drawn.rewards_PG), config.optimizer.mini_batch_prompts)
    found = list(progress(attributions(policy, drawn, config, optimizers, unfinished), f"{len(starts)} mini-batches"))
    results = [result for result in found if result]
    if not results:
        raise SteerError(
            "rewards: equal within every group, so nothing is learnt and nothing changes; raise rollout.prompts "
            "or rollout.responses, or sample until rewards differ (--with-signal)"
        )
    tables = {}
    for update, optimizer in optimizers.items():
        summary, tables[update] = summarise([result[update] for result in results], policy.tokenizer)
        summary |= {"moments": bool(optimizer.state), "mini_batches_without_signal": len(found) - len(results)}
        record["updates"][update] = summary
    record["sample"]["entropy"] = float(tables[update]["entropy"].mean())
    return Estimate(json_ready(record), tables)


def _about(model: str, run: RunFolder | None, config: Config, drawn: Sample) -> dict[str, Any]:
    """The record of an estimate before any update is measured."""
    return {
        "model": model,
        "run": run.path.name if run else None,
        "config": to_dict(config),
        "environment": environment(),
        "sample": {
            "prompts": len(drawn.rewards_PG),
            "prompts_sampled": drawn.prompts_sampled,
            "mean_reward": float(drawn.rewards_PG.mean()),
            "response_tokens": int(drawn.rollout.response_mask_BT.sum()),
            "truncated": drawn.rollout.finish_reasons.count("length") / len(drawn.rollout.texts),
        },
        "updates": {},
    }
