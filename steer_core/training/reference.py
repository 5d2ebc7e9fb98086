"""The reference model of a KL term, and what shapes rewards before advantages are made of them.

The reference is the model that the run began from (`model.path`), whose weights a checkpoint does not hold: a resumed
run loads them again, and `Checkpoints.check_base` makes sure that they are the same.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from steer_core.common import ranks, reductions
from steer_core.config.config import Config
from steer_core.formulas.shaping import kl_estimate, overlong_punishment
from steer_core.formulas.token_stats import TokenStats
from steer_core.policy.model import load_policy
from steer_core.rollout.rollout import Rollout
from steer_core.training.batch import score_rollout
from steer_core.training.sampling import SampledRollout
from steer_core.training.scoring import make_scoring


class Reference:
    """A frozen copy of the model that the run began from; nothing is loaded where `algorithm.kl_coefficient` is 0."""

    def __init__(self, config: Config) -> None:
        self.config, self.policy = config, None
        if config.algorithm.kl_coefficient:
            self.policy = load_policy(**vars(config.model))
            self.policy.model.requires_grad_(False)
            self.scoring = make_scoring(self.policy, config)

    def logprobs(self, rollout: Rollout) -> Tensor | None:
        """ln p (B, T) of the sampled tokens under the reference, at the rollout's temperature; None without one."""
        if self.policy is None:
            return None
        return score_rollout(self.policy.model, replace(rollout, stats=None), self.config, self.scoring).logprob


def shaped_rewards(
    sampled: SampledRollout, old: TokenStats, reference_BT: Tensor | None, config: Config
) -> tuple[Tensor, dict[str, float]]:
    """(rewards (prompts, group) of all ranks that advantages are made of, metrics of what was changed).

    old: statistics (B, T) of this rank's tokens under the policy that sampled. reference_BT: ln p under the reference.
    """
    algorithm, rewards_PG, told = config.algorithm, sampled.rewards_PG, {}
    if algorithm.overlong_buffer:
        lengths_PG = sampled.lengths_PG.to(rewards_PG.dtype)
        punishment_PG = overlong_punishment(lengths_PG, config.rollout.max_new_tokens, algorithm.overlong_buffer)
        rewards_PG = rewards_PG + algorithm.overlong_penalty * punishment_PG
        told["reward/overlong"] = algorithm.overlong_penalty * float(punishment_PG.mean())
    if reference_BT is not None:
        mask_BT = sampled.rollout.response_mask_BT.bool()
        kl_BT = kl_estimate(old.logprob, reference_BT, algorithm.kl_estimator).masked_fill(~mask_BT, 0)
        told[f"kl/{algorithm.kl_estimator}"] = reductions.mean(kl_BT[mask_BT])
        if algorithm.kl_in == "reward":
            kl_PG = ranks.all_gather_rows(kl_BT.sum(-1)).view_as(rewards_PG)
            rewards_PG = rewards_PG - algorithm.kl_coefficient * kl_PG.to(rewards_PG.dtype)
    if rewards_PG is not sampled.rewards_PG:
        told["reward/shaped"] = float(rewards_PG.mean())
    return rewards_PG, told
