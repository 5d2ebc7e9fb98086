"""One rollout of the small model, off policy and clipped here and there, and what any method makes of it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from small import small_trainer
from torch import Tensor
from torch.nn.functional import pad

from steer_core.common import ranks
from steer_core.engines import LocalEngine
from steer_core.formulas.loss import reduce_loss
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.interventions import METHODS, intervention
from steer_core.interventions.base import UNLOGGED
from steer_core.rollout.rollout import Rollout
from steer_core.training.batch import MicroBatch, score_rollout
from steer_core.training.loop import Trainer
from steer_core.training.update import Update

ACTING = {
    "none": {},
    "steer": {"lambda_min": 0.3},
    "clip-higher": {"high": 0.6},
    "entropy-loss": {"coefficient": 0.1},
    "adaptive-entropy-loss": {"target": 9.0, "step": 0.1, "maximum": 1.0},
    "fork-tokens": {},
    "w-reinforce": {},
    "entropy-advantage": {},
    "clip-cov": {"share": 0.1, "low": 0.01},
    "kl-cov": {"share": 0.1},
    "quadrants": {"positive_likely": 0.5, "negative_unlikely": 2.0},
    "influence": {},
    "stare": {"target": 9.0, "positive": 2.0},
    "entropic": {"target": 1.0},
    "entrocraft": {"target": 9.0},
    "erc": {},
    "ce-gppo": {},
    "steer-control": {"lambda_min": 0.3},
    "repo-r": {"zeta": 0.5, "adapts": False},
    "differential-smoothing": {"right": 0.1, "wrong": 0.05},
    "boundary-gate": {},
}
"""Settings under which every method does something in a step."""
assert set(ACTING) == set(METHODS)
PROBLEMS = ("first", "second")
MEMORY = {"coefficient": 0.2, "entropy": 0.1, "integral": -3.0, UNLOGGED + PROBLEMS[0]: 2.0}
"""What closed loops remember when the step begins; a problem was solved before."""


@dataclass
class Sampled:
    """Eight sequences, two groups of four: the responses, the policy that sampled them, one advantage each."""

    rollout: Rollout
    old: TokenStats
    advantages: Tensor


def trainer_of(folder: Path, *overrides: str) -> Trainer:
    """A small trainer in float64, plain SGD and no probe."""
    settings = ("model.dtype=float64", "optimizer.name=sgd", "optimizer.learning_rate=0.1", "train.probe_sequences=0")
    return small_trainer(folder, "rollout.prompts=2", "rollout.max_new_tokens=16", *settings, *overrides)


def sampled(trainer: Trainer, noise: float = 0.3) -> Sampled:
    """A rollout of the trainer, as if `noise` (standard deviation) lay between the old log-probs and the new.

    Old entropies lie off the new by a share of up to `noise`.
    """
    rollout = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
    old, source = (
        score_rollout(trainer.model, rollout, trainer.config),  # with the p^2 sums, as `equip` scores
        torch.Generator().manual_seed(5),
    )
    drift = noise * torch.randn(old.logprob.shape, generator=source, dtype=torch.float64)
    share = 1 + noise * (2 * torch.rand(old.entropy.shape, generator=source, dtype=torch.float64) - 1)
    old = replace(old, logprob=old.logprob + drift.to(old.logprob), entropy=old.entropy * share.to(old.entropy))
    advantages = torch.tensor([1.5, -0.5, -0.5, -0.5, 0.0, 0.9, -0.9, 2.0]).to(old.logprob)
    return Sampled(rollout, old, advantages)


def micro_batches(trainer: Trainer, data: Sampled, size: int) -> list[MicroBatch]:
    """The one mini-batch of the rollout, as micro-batches of so many sequences."""
    optimizer = replace(trainer.config.optimizer, micro_batch_sequences=size)
    trainer.config = replace(trainer.config, optimizer=optimizer)
    (parts,) = trainer.batches(data.rollout, data.old, data.advantages)
    return parts


def equip(trainer: Trainer, name: str, **settings: object) -> Trainer:
    """The trainer with another method, a fresh optimiser and the memory that closed loops would have."""
    trainer.config = replace(trainer.config, intervention=intervention({"name": name, **settings}))
    trainer.engine = LocalEngine(trainer.model, trainer.config.optimizer)
    trainer.update = Update(trainer.policy, trainer.engine, trainer.config)
    trainer.update.active.memory = dict(MEMORY)
    return trainer


def lengths_by_problem(trainer: Trainer) -> dict[str, list[float]]:
    """Problem to the lengths of its responses, in a rollout of two mini-batches of two prompts, as ranks gather it."""
    kept = trainer.config
    trainer.config = replace(kept, rollout=replace(kept.rollout, prompts=4))
    sampled = trainer.sample(1)
    trainer.config = kept
    return dict(zip(sampled.ids_P, sampled.lengths_PG.tolist(), strict=True))


def credited(trainer: Trainer, parts: list[MicroBatch]) -> list[MicroBatch]:
    """The micro-batches of this process with what the method makes of their responses' advantages, as a rollout does.

    Responses of an advantage above 0 are the right ones; whole groups of four must be here.
    """
    active = trainer.update.active
    if not active.method.sees_responses:
        return parts
    width = max(part.mask_BT.shape[1] for part in parts)
    old = concatenate([part.old.map(lambda x: pad(x, (0, width - x.shape[1]))) for part in parts])
    mask_BT = torch.cat([pad(part.mask_BT, (0, width - part.mask_BT.shape[1])) for part in parts])
    own_B = torch.cat([part.advantages_BT[:, 0] for part in parts])
    advantages_PG = ranks.all_gather_rows(own_B).view(-1, 4)
    rewards_PG = (advantages_PG > 0).to(advantages_PG)
    found_PG = active.credit(advantages_PG, rewards_PG, old, mask_BT, PROBLEMS)
    found = ranks.local_rows(found_PG.flatten(), own_B).split([len(part.mask_BT) for part in parts])
    return [replace(p, advantages_BT=a_B[:, None].expand_as(p.mask_BT)) for p, a_B in zip(parts, found, strict=True)]


def outcome(trainer: Trainer, parts: Iterable[MicroBatch]) -> dict[str, Tensor]:
    """One optimiser step over these micro-batches of this process, from the same weights each time: what it did."""
    parts, losses, active = credited(trainer, list(parts)), [], trainer.update.active
    of_tokens = active.token_losses
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def watched(stats, part, terms):
        losses.append(of_tokens(stats, part, terms))
        return losses[-1]

    active.token_losses = watched
    try:
        log, norms, _ = trainer.optimizer_steps([parts], 1)
        after = torch.cat([value.flatten() for value in trainer.model.state_dict().values()])
    finally:
        active.token_losses = of_tokens
        trainer.model.load_state_dict(before)
    reduction, count = trainer.config.algorithm.reduction, active.denominator(parts)
    shares = [reduce_loss(loss.detach(), p.mask_BT, reduction, count) for loss, p in zip(losses, parts, strict=True)]
    return {
        "weights": log["lambda"],
        "advantages": log["advantage"],
        "ratio": log["ratio"],
        "predicted": log["paper"],
        "loss": torch.stack(shares).sum(),
        "norm": torch.tensor(norms[0], dtype=torch.float64),
        "parameters": after,
        "state": torch.tensor(list(active.memory.values()), dtype=torch.float64),
    }
