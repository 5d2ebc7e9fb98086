"""What a run makes sure of: that settings fit the ranks and the model's room, and that the sampler is the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.common.seeding import derive_seed
from steer_core.config.config import Config
from steer_core.ladder.passes import check_ladder
from steer_core.policy.model import Policy
from steer_core.policy.preflight import check_policy, ragged_pair
from steer_core.policy.score import PLAIN, Scoring
from steer_core.policy.tokenizer import check_prompt
from steer_core.problems.task import Problem
from steer_core.rollout.local import check_memory, check_room
from steer_core.rollout.rollout import Sampler
from steer_core.training.batch import score_rollout
from steer_core.training.scoring import packs

_PROBE_PROMPTS, _PROBE_TOKENS = 4, 8


def check_ranks(config: Config) -> None:
    """Raise SteerError where the settings do not fit the number of ranks."""
    count, mini, parallel = ranks.world_size(), config.optimizer.mini_batch_prompts, config.rollout.tensor_parallel
    if mini % count:
        raise SteerError(
            f"optimizer.mini_batch_prompts: {mini} prompts do not divide among {count} ranks; choose a multiple"
        )
    if count % parallel:
        raise SteerError(f"rollout.tensor_parallel: {parallel} does not divide the {count} ranks; choose a divisor")
    if count > 1 and config.rollout.engine == "huggingface" and config.rollout.draws == "batch":
        raise SteerError(
            f"rollout.draws: batch would give each of {count} ranks the same random numbers; set rollout.draws=prompt"
        )


def check_model(policy: Policy, config: Config) -> None:
    """Raise SteerError, with the setting that helps, where training as configured does not work on the model."""
    recompute = config.engine.activations == "recompute"
    check_policy(policy, packs(policy, config.optimizer), recompute)
    if config.train.probe_sequences and ranks.is_main():
        check_ladder(policy.model, ragged_pair(policy))


def check_room_for_prompts(
    policy: Policy, config: Config, problems: Sequence[Problem], held_out: Sequence[Problem]
) -> int:
    """Most tokens of a prompt and its response, in training and evaluation.

    Raises SteerError where the tokenizer does not carry the prompts, the model has no room for a response, or the
    machine none for all of them.
    """
    check_prompt(policy.tokenizer, problems[0].prompt)
    longest = 0
    rows = (config.rollout.prompts // ranks.world_size(), config.rollout.responses, "rollout.responses")
    held_rows = (-(-len(held_out) // ranks.world_size()), config.evaluation.samples, "evaluation.samples")
    for some, sampling, section, (prompts, responses, field) in (
        (problems, config.rollout, "rollout", rows),
        (held_out, config.evaluation, "evaluation", held_rows),
    ):
        encoded = policy.tokenizer([p.prompt for p in some], add_special_tokens=False)
        prompt = max(map(len, encoded["input_ids"]))
        check_room(policy, prompt, sampling.max_new_tokens, f"{section}.max_new_tokens")
        check_memory(policy, prompts, responses, prompt + sampling.max_new_tokens, field)
        longest = max(longest, prompt + sampling.max_new_tokens)
    return longest


def check_sync(
    model: PreTrainedModel,
    sampler: Sampler,
    problems: Sequence[Problem],
    config: Config,
    rollout_index: int,
    scoring: Scoring = PLAIN,
) -> None:
    """Raise SteerError where a sampler with weights of its own and the trainer disagree on log-probs.

    rollout_index: the rollout that the weights come from, 0 before the first.
    """
    if config.rollout.engine != "vllm":
        return
    longest = min(_PROBE_TOKENS, config.rollout.max_new_tokens)
    sampling = replace(config.rollout, max_new_tokens=longest, top_p=1.0)
    prompts = [problem.prompt for problem in problems[:_PROBE_PROMPTS]]
    probe = sampler.generate(prompts, 1, sampling, derive_seed(config.train.seed, "push", rollout_index))
    mask = probe.response_mask_BT.bool()
    own = score_rollout(model, probe, config, scoring).logprob[mask]
    gap = float((probe.sampler_logprobs()[mask].to(own) - own).abs().max())
    if not gap <= config.rollout.logprob_tolerance:
        tolerance = f"(rollout.logprob_tolerance {config.rollout.logprob_tolerance:g})"
        explained = "raise the tolerance only if model.dtype explains it"
        if rollout_index == 0:
            raise SteerError(
                f"rollout.engine: vllm, given the trainer's own weights, gives log-probs that differ by {gap:.2g} "
                f"{tolerance}: it computes {type(model).__name__} otherwise; set rollout.engine=huggingface, or "
                f"{explained}"
            )
        raise SteerError(
            f"rollout {rollout_index}: after the sync of weights, log-probs of vllm and trainer differ by {gap:.2g} "
            f"{tolerance}: its weights are stale or read in another precision; {explained}"
        )
