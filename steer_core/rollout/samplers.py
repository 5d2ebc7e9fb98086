"""Which sampler a configuration asks for."""

from __future__ import annotations

from steer_core.common import ranks
from steer_core.config.config import Config
from steer_core.policy.model import Policy
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.rollout import Sampler


def make_sampler(policy: Policy, config: Config, longest: int | None = None) -> Sampler:
    """The sampler that `rollout.engine` asks for.

    longest: most tokens of a prompt and its response; by default all that the model has positions for.
    """
    if config.rollout.engine == "vllm":
        from steer_core.rollout.vllm import VllmSampler

        return VllmSampler.for_training(policy, config, longest or policy.positions)
    lockstep = config.engine.name == "deepspeed" and config.engine.zero_stage == 3 and ranks.world_size() > 1
    return HuggingFaceSampler(policy, config.rollout.draws, lockstep)
