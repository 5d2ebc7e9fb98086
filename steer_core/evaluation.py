"""Held-out evaluation: sample, verify, and estimate pass@k without bias."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from steer_core.config import EvaluationConfig
from steer_core.measures import pass_at_k
from steer_core.policy import Policy, score
from steer_core.rollout import RolloutEngine
from steer_core.statistics import bootstrap_over_problems
from steer_core.tasks import Problem, Task

_SCORED_SAMPLES = 4
_SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """What a policy did on held-out problems.

    correct: how many of the `samples` responses solved each problem. policy_entropy: mean over the
    response tokens of the first 4 samples a problem, nats. truncated: share of responses cut off.
    length: mean response tokens.
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
    policy: Policy, engine: RolloutEngine, task: Task, problems: list[Problem], config: EvaluationConfig, seed: int
) -> Evaluation:
    """Sample `config.samples` responses to each problem, verify them, score their entropy."""
    rollout = engine.generate([p.prompt for p in problems], config.samples, config, seed)
    right = task.verify_all([problem for problem in problems for _ in range(config.samples)], rollout.texts)
    scored = [i for i in range(len(right)) if i % config.samples < _SCORED_SAMPLES]
    entropy, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(scored), _SCORED_AT_ONCE):
            part = rollout.rows(scored[start : start + _SCORED_AT_ONCE])
            stats = score(policy.model, part, config.temperature)
            entropy += float((stats.entropy * part.response_mask_BT).sum(dtype=torch.float64))
            tokens += int(part.response_mask_BT.sum())
    return Evaluation(
        correct=np.reshape(right, (len(problems), config.samples)).sum(-1).tolist(),
        samples=config.samples,
        policy_entropy=entropy / tokens,
        truncated=rollout.finish_reasons.count("length") / len(right),
        length=int(rollout.response_mask_BT.sum()) / len(right),
    )


def evaluation_table(result: Evaluation, title: str, ks: tuple[int, ...]) -> Table:
    """An evaluation for the terminal, pass@k with its interval over problems."""
    table = Table(title=title)
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("95% interval over problems")
    for k in ks:
        interval = bootstrap_over_problems([pass_at_k(result.correct, result.samples, k)])
        table.add_row(f"pass@{k}", f"{interval.mean:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    table.add_row("policy entropy (nats a token)", f"{result.policy_entropy:.3f}", "")
    table.add_row("response length (tokens)", f"{result.length:.1f}", "")
    table.add_row("truncated", f"{result.truncated:.1%}", "")
    return table
