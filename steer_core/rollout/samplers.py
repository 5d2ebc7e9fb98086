"""Which sampler a configuration asks for."""

from __future__ import annotations

from typing import Literal

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.config.config import Config
from steer_core.policy.model import Policy
from steer_core.policy.preflight import check_sampling, ragged_pair
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.local import LocalSampler
from steer_core.rollout.native import NativeSampler, not_native
from steer_core.rollout.rollout import Sampler


def make_sampler(policy: Policy, config: Config, longest: int | None = None) -> Sampler:
    """The sampler that `rollout.engine` asks for.

    longest: most tokens of a prompt and its response; by default all that the model has positions for. Raises
    SteerError where it does not sample from the policy.
    """
    rollout = config.rollout
    if rollout.engine == "vllm":
        from steer_core.rollout.vllm import VllmSampler

        return VllmSampler.for_training(policy, config, longest or policy.positions)
    lockstep = config.engine.name == "deepspeed" and config.engine.zero_stage == 3 and ranks.world_size() > 1
    return local_sampler(policy, rollout.engine, rollout.draws, lockstep, rollout.old == "sampler")


def local_sampler(
    policy: Policy,
    engine: Literal["auto", "native", "huggingface"] = "auto",
    draws: Literal["batch", "prompt"] = "prompt",
    lockstep: bool = False,
    keep_stats: bool = False,
) -> LocalSampler:
    """A sampler on a policy's own weights: native where it is asked for, or computes what the model does.

    draws, lockstep: see `HuggingFaceSampler`. keep_stats: see `NativeSampler`. Raises SteerError where native is asked
    for, by itself or for its statistics, and does not know the model.
    """
    reason = None
    if engine != "huggingface":
        reason = "ranks that hold parts of every weight must make the same passes" if lockstep else not_native(policy)
        if reason is None:
            return NativeSampler(policy, keep_stats)
        if engine == "native" or keep_stats:
            raise SteerError(
                f"rollout.engine: native cannot sample from {type(policy.model).__name__} ({reason}); set "
                "rollout.engine=huggingface and rollout.old=score"
            )
    check_sampling(policy.model, ragged_pair(policy))
    return HuggingFaceSampler(policy, draws, lockstep, reason or "")
