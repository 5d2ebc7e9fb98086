"""Held-out evaluation: sample, grade, and estimate pass@k without bias."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from steer_core.common import ranks
from steer_core.config.sections import EvaluationConfig
from steer_core.evaluation.sample_and_grade import sample_and_grade
from steer_core.policy.micro_batches import forward_passes
from steer_core.policy.model import Policy
from steer_core.policy.score import PLAIN, Scoring, score
from steer_core.problems import Problem, Task
from steer_core.rollout.rollout import Sampler
from steer_core.stats.pass_at_k import pass_at_k

_SCORED_SAMPLES = 4
_SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """What a policy did on held-out problems.

    correct: how many of the `samples` responses solved each problem. policy_entropy: mean over the response tokens of
    the first 4 samples a problem, nats, at the temperature they were sampled with (1 where greedy). truncated: share of
    responses cut off. length: mean response tokens.
    """

    correct: list[int]
    samples: int
    policy_entropy: float
    truncated: float
    length: float

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, mean over problems."""
        return float(pass_at_k(self.correct, self.samples, k).mean())

    def to_dict(self, ks: tuple[int, ...]) -> dict[str, Any]:
        """The evaluation as JSON, with pass@k for each k."""
        return {**{f"pass@{k}": self.pass_at(k) for k in ks}, **asdict(self)}


def evaluate(
    policy: Policy,
    sampler: Sampler,
    task: Task,
    problems: list[Problem],
    config: EvaluationConfig,
    seed: int,
    budget: int | None = None,
    scoring: Scoring = PLAIN,
) -> Evaluation:
    """Sample `config.samples` responses to each problem, grade them, score their entropy.

    budget, scoring: most tokens of a scoring pass, and how it is made; by default 64 padded sequences.
    """
    places = padded_share(len(problems))
    found = sample_and_grade(
        sampler, [problems[i] for i in places], config.samples, config, seed, [task.grader], places
    )
    rollout = found.rollout
    scored = [row for row in range(len(rollout.texts)) if row % config.samples < _SCORED_SAMPLES]
    sums_PK = torch.zeros(len(places), 5, dtype=torch.float64)  # correct, entropy, its tokens, cut off, tokens
    sums_PK[:, 0] = torch.tensor(found.correct).view(-1, config.samples).sum(-1)
    sums_PK[:, 3] = torch.tensor([x == "length" for x in rollout.finish_reasons]).view(-1, config.samples).sum(-1)
    sums_PK[:, 4] = rollout.response_mask_BT.sum(-1).view(-1, config.samples).sum(-1).cpu()
    with torch.no_grad():
        for rows in forward_passes(scored, rollout, _SCORED_AT_ONCE, budget, scoring.layout):
            part = rollout.rows(rows)
            stats = score(policy.model, part, config.temperature or 1.0, scoring)
            problem = torch.tensor(rows) // config.samples
            entropy_B = (stats.entropy * part.response_mask_BT).sum(-1, dtype=torch.float64).cpu()
            sums_PK[:, 1].index_add_(0, problem, entropy_B)
            sums_PK[:, 2].index_add_(0, problem, part.response_mask_BT.sum(-1).double().cpu())
    everyone = ranks.all_gather_rows(torch.cat([torch.tensor(places)[:, None].double(), sums_PK], dim=1))
    by_place = {int(row[0]): row[1:] for row in everyone}  # a problem that fills up a rank's share counts once
    sums = torch.stack([by_place[place] for place in range(len(problems))])
    entropy, tokens, cut, length = sums[:, 1:].sum(0).tolist()
    count = len(problems) * config.samples
    return Evaluation(
        correct=sums[:, 0].long().tolist(),
        samples=config.samples,
        policy_entropy=entropy / tokens,
        truncated=cut / count,
        length=length / count,
    )


def padded_share(count: int) -> list[int]:
    """Which of so many problems this rank evaluates: equally many on each, the last one again where they do not fit."""
    each = -(-count // ranks.world_size())
    return [min(ranks.rank() * each + i, count - 1) for i in range(each)]
