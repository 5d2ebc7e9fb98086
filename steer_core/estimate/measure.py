"""How well each estimate tells the entropy change of real updates: a model, its own rollouts, every rung.

The batch is what training would see: prompts, groups of responses, rewards, advantages, mini-batches.
For every mini-batch the optimiser's step is taken from the same policy, its effect measured at every
token, and undone. Three questions are asked of each estimate:

    target: does it tell how the entropy at the token's own state will change? (measured change)
    source: does it tell how the token's update will change the batch's mean entropy? (influence)

    size: do the largest estimates belong to the tokens with the largest influence, whichever its sign?

A method that damps tokens by |estimate| relies on the third. As influence, the change at one state is
divided by the N tokens of the mini-batch: in a tabular policy that is all there is to it. Beside the
estimates stands a baseline that looks at no entropy, -A (1 - p). Intervals are 95% percentile
bootstraps over prompts, given the steps that were taken.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich import box
from rich.table import Table
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import write_atomically
from steer_core.common.seeding import derive_seed
from steer_core.common.settings import to_dict
from steer_core.config.config import Config
from steer_core.engines import LocalEngine
from steer_core.formulas.advantages import ADVANTAGES
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.loss import ClipRange, denominator, token_coefficients
from steer_core.ladder.attribution import RUNGS, Attribution, UpdateBatch, attribute, contributions
from steer_core.ladder.passes import Lens
from steer_core.policy.model import Policy, load_policy
from steer_core.problems import Task, make_task
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.rollout import Rollout, join
from steer_core.runs.folder import RunFolder
from steer_core.stats.intervals import agreement_intervals

Progress = Callable[[Iterable, str], Iterable]
SHOWN = 8
"""Tokens listed at either end of the contributions by token."""
QUESTIONS = {"target": "state", "source": "influence", "size": "size"}
"""The three questions, and what a table calls them."""
ESTIMATE_COLUMNS = 92
"""Columns of a terminal that `estimate_table` needs."""
_BOUNDED = ("pearson", "spearman", "sign")
SOURCE_ESTIMATES = (*ENTROPY_CHANGE, "output_layer_influence", "baseline")


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


@dataclass(frozen=True)
class Sample:
    """Sampled groups with their rewards (prompts, responses), and how many prompts were sampled to get them."""

    rollout: Rollout
    rewards_PG: torch.Tensor
    prompts_sampled: int


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
    engine, kept, rewards, sampled = HuggingFaceSampler(policy), [], [], 0
    starts = range(0, len(problems) if with_signal else wanted, wanted)
    for start in progress(starts, "sampling"):
        chosen = [problems[i] for i in order[start : start + wanted]]
        seed = derive_seed(config.train.seed, "estimate", start)
        rollout = engine.generate([p.prompt for p in chosen], group, config.rollout, seed)
        verdicts = task.grade([problem for problem in chosen for _ in range(group)], rollout.texts)
        scores_PG = torch.tensor([float(verdict.correct) for verdict in verdicts]).view(-1, group)
        sampled += len(chosen)
        for p, row in enumerate(scores_PG):
            if len(kept) < wanted and (not with_signal or row.min() < row.max()):
                kept.append(rollout.take(range(p * group, (p + 1) * group)))
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
    policy: Policy, drawn: Sample, config: Config, optimizers: dict[str, Optimizer]
) -> Iterator[dict[str, Attribution]]:
    """What each optimiser's step did to each mini-batch of the sample; empty where no reward differs within a group.

    Indices of groups and sequences count through the whole sample.
    """
    algorithm, group, model = config.algorithm, config.rollout.responses, policy.model
    size = config.optimizer.mini_batch_prompts
    advantages_PG = ADVANTAGES[algorithm.advantage](drawn.rewards_PG.to(model.device, model.dtype))
    for first in range(0, len(advantages_PG), size):
        sequences = drawn.rollout.rows(slice(first * group, (first + size) * group))
        mask = sequences.response_mask_BT.bool()
        rows = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
        advantages_N = advantages_PG[first : first + size].flatten()[rows]
        if not advantages_N.any():
            yield {}
            continue
        count = denominator(mask, algorithm.reduction)
        batch = UpdateBatch(
            Lens(model, sequences, config.rollout.temperature, micro_batch=config.optimizer.micro_batch_sequences),
            rows // group,
            None,
            advantages_N,
            token_coefficients(mask, algorithm.reduction, count)[mask].to(model.dtype),
            ClipRange(algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip),
            config.optimizer.max_grad_norm,
        )
        results = attribute(batch, optimizers)
        for result in results.values():
            result.tokens["group"] += first
            result.tokens["sequence"] += first * group
            result.tokens["states"] = len(result.tokens)
        yield results


def accuracy(tokens: pd.DataFrame, truth: str, estimates: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """By estimate and measure: [value, low, high] against the column `truth`; see `statistics.agreement_intervals`.

    The interval is over prompts, all tokens of a prompt together.
    """
    return {
        name: {
            measure: [interval.mean, interval.low, interval.high]
            for measure, interval in agreement_intervals(tokens[name], tokens[truth], tokens["group"]).items()
        }
        for name in estimates
    }


def answers(tokens: pd.DataFrame) -> dict[str, dict[str, dict[str, list[float]]]]:
    """`accuracy` for each of the three questions: target, source and size.

    tokens: the token table of one or more mini-batches, with `states`, the tokens of each row's own.
    size is over tokens with an advantage, of absolute values.
    """
    tokens = tokens.assign(baseline=-tokens["advantage"] * -np.expm1(tokens["logprob"]))
    shares = tokens.assign(**{name: tokens[name] / tokens["states"] for name in ENTROPY_CHANGE})
    sizes = shares[shares["advantage"] != 0]
    sizes = sizes.assign(**{name: sizes[name].abs() for name in (*SOURCE_ESTIMATES, "influence")})
    size = accuracy(sizes, "influence", SOURCE_ESTIMATES)
    for scores in size.values():
        scores["sign"] = [math.nan] * 3  # of absolute values there is none to tell
    return {
        "target": accuracy(tokens, "measured", (*RUNGS, "baseline")),
        "source": accuracy(shares, "influence", SOURCE_ESTIMATES),
        "size": size,
    }


def summarise(results: list[Attribution], tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], pd.DataFrame]:
    """(JSON-ready summary of one update over its mini-batches, the token table of all of them).

    totals, contributions and seconds are means over the mini-batches.
    """
    for result in results:
        vocabulary = {i: tokenizer.decode([i]) for i in result.tokens["token"].unique()}
        result.tokens.insert(4, "text", result.tokens["token"].map(vocabulary))
    tokens = pd.concat([result.tokens for result in results], ignore_index=True)
    tables = {}
    for column in ("quadrant", "group", "text"):
        table = pd.concat([contributions(result.tokens, column) for result in results]).groupby(level=0).sum()
        table.iloc[:, 1:] /= len(results)
        tables[column] = table
    ranked = tables["text"].sort_values("influence")
    tables["text"] = pd.concat([ranked.head(SHOWN), ranked.tail(SHOWN)]) if len(ranked) > 2 * SHOWN else ranked
    return {
        "mini_batches": len(results),
        "tokens": len(tokens),
        **answers(tokens),
        "totals": _means([result.totals for result in results]),
        "contributions": {name: table.reset_index().to_dict("records") for name, table in tables.items()},
        "seconds": _means([result.seconds for result in results]),
    }, tokens


@dataclass(frozen=True)
class Estimate:
    """The outcome of `estimate`: a JSON-ready record, and by update the token table."""

    record: dict[str, Any]
    tokens: dict[str, pd.DataFrame]

    def write(self, folder: Path) -> Path:
        """estimate.json, tokens_*.csv.gz and estimate.png in `folder`; the path of the first."""
        from steer_core.estimate.figure import save_estimate_figure

        try:
            folder.mkdir(parents=True, exist_ok=True)
            for update, tokens in self.tokens.items():
                tokens.to_csv(folder / f"tokens_{update.replace(':', '_')}.csv.gz", index=False, float_format="%.9g")
            save_estimate_figure(self, folder / "estimate.png")
            write_atomically(folder / "estimate.json", json.dumps(self.record, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise SteerError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error
        return folder / "estimate.json"


def estimate(
    model: str,
    config: Config,
    updates: Iterable[Update],
    with_signal: bool = False,
    run: RunFolder | None = None,
    progress: Progress = lambda items, title: items,
) -> Estimate:
    """Measure every estimate on a model and its own rollouts, for each update from the same policy.

    model: `embedded` or a model folder. run: the training run whose last checkpoint the model is; an
    update by the run's own optimiser then starts from its moments. progress(items, title) shows
    progress. Raises SteerError where model, task and settings do not fit, or nothing is learnt.
    """
    updates = list(updates)
    if not updates:
        raise SteerError("update: none is given; name at least one, such as sgd:0.001")
    torch.set_num_threads(config.train.threads)
    policy = load_policy(**vars(config.model) | {"path": model})
    task = make_task(config.task, policy.tokenizer)
    optimizers = optimizers_of(policy, config, updates, run)
    drawn = sample(policy, task, config, with_signal, progress)
    record: dict[str, Any] = {
        "model": config.model.path if run else model,
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
    starts = range(0, len(drawn.rewards_PG), config.optimizer.mini_batch_prompts)
    found = list(progress(attributions(policy, drawn, config, optimizers), f"{len(starts)} mini-batches"))
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
    return Estimate(_without_nan(record), tables)


def estimate_table(record: dict[str, Any], update: str) -> Table:
    """For the terminal: every estimate of one update against the measured change and against the influence.

    state: against the measured change there. influence: against the token's effect on the batch's mean
    entropy. size: |estimate| against |influence|. factor: what the prediction must be multiplied by to
    fit best, 1 for the right scale.
    """
    summary = record["updates"][update]
    title = f"{record['run'] or record['model']}, {update}, {summary['tokens']} tokens"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("estimate", no_wrap=True)
    for name in ("MSE", "Pearson", "Spearman", "right sign", "factor"):
        table.add_column(name, justify="right", no_wrap=True)
    for question, about in QUESTIONS.items():
        table.add_row(f"[italic]{about}")
        for name, scores in summary[question].items():
            bounded = [with_interval(scores[measure]) for measure in _BOUNDED]
            mse, factor = (
                math.nan if scores[measure][0] is None else scores[measure][0] for measure in ("mse", "slope")
            )
            table.add_row(label_of(name), f"{mse:.0e}", *bounded, f"{factor:.2g}")
        table.add_section()
    return table


def label_of(estimate: str) -> str:
    """An estimate as a table names it."""
    return estimate.removesuffix("_influence").replace("_", " ")


def with_interval(scores: list[float | None]) -> str:
    """A value with its 95% interval over prompts; - for what is undefined."""
    value, low, high = ("-" if score is None else f"{score:.2f}" for score in scores)
    return f"{value} [{low}, {high}]"


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _without_nan(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
