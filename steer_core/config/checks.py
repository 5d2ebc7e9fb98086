"""What the sections of a configuration cannot do together, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from steer_core.common.errors import SteerError
from steer_core.config.sections import (
    AlgorithmConfig,
    EngineConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
)
from steer_core.config.tasks import TaskConfig
from steer_core.interventions.base import Intervention

MOST_SEQUENCES = 2**24
"""Responses of a rollout or an evaluation, whose tokens are in memory at once."""
MOST_TOKENS = 2**32
"""Their tokens: 34 GB of ids alone."""


class Sections(Protocol):
    """The sections of a `Config`."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def task(self) -> TaskConfig: ...

    @property
    def rollout(self) -> RolloutConfig: ...

    @property
    def algorithm(self) -> AlgorithmConfig: ...

    @property
    def intervention(self) -> Intervention: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def engine(self) -> EngineConfig: ...

    @property
    def evaluation(self) -> EvaluationConfig: ...

    @property
    def train(self) -> TrainConfig: ...


def check(config: Sections) -> None:
    """Raise SteerError for the first thing that does not go together."""
    for rule in (_batches, _advantage, _shaping, _schedule, _sizes, _attention, _engine, _sampler, _evaluation):
        for message in rule(config):
            raise SteerError(message)


def _batches(config: Sections) -> Iterator[str]:
    prompts, mini, problems = config.rollout.prompts, config.optimizer.mini_batch_prompts, config.task.train_problems
    if prompts % mini:
        yield f"optimizer.mini_batch_prompts: {mini} does not divide rollout.prompts ({prompts}); choose a divisor"
    if prompts > problems:
        yield (
            f"rollout.prompts: {prompts} is more than task.train_problems ({problems}); "
            "lower the one or raise the other"
        )


def _advantage(config: Sections) -> Iterator[str]:
    k, group = config.algorithm.pass_k, config.rollout.responses
    if config.algorithm.advantage == "pass-at-k" and k > group:
        yield f"algorithm.pass_k: {k} is more than rollout.responses ({group}); lower the one or raise the other"


def _shaping(config: Sections) -> Iterator[str]:
    algorithm, longest = config.algorithm, config.rollout.max_new_tokens
    if algorithm.overlong_buffer > longest:
        yield (
            f"algorithm.overlong_buffer: {algorithm.overlong_buffer} is more than rollout.max_new_tokens ({longest}); "
            "lower it"
        )
    shaped = algorithm.overlong_buffer or (algorithm.kl_coefficient and algorithm.kl_in == "reward")
    if shaped and algorithm.advantage == "pass-at-k":
        name = "overlong_buffer" if algorithm.overlong_buffer else "kl_in"
        yield (
            f"algorithm.{name}: {getattr(algorithm, name)} changes rewards, and algorithm.advantage=pass-at-k reads "
            "only whether they are above 0; take it out, or choose another advantage"
        )


def _schedule(config: Sections) -> Iterator[str]:
    optimizer = config.optimizer
    if optimizer.schedule == "constant":
        for name, value in (
            ("warmup_steps", optimizer.warmup_steps),
            ("schedule_settings", optimizer.schedule_settings),
        ):
            if value:
                yield (
                    f"optimizer.{name}: {value} is of a schedule, and optimizer.schedule is constant; set "
                    "optimizer.schedule=constant_with_warmup or another, or take it out"
                )


def _sizes(config: Sections) -> Iterator[str]:
    rollout, held_out = config.rollout, config.evaluation
    for section, groups, group, sampling in (
        ("rollout.responses", rollout.prompts, rollout.responses, rollout),
        ("evaluation.samples", held_out.problems, held_out.samples, held_out),
    ):
        tokens = groups * group * sampling.max_new_tokens
        if groups * group > MOST_SEQUENCES or tokens > MOST_TOKENS:
            yield (
                f"{section}: {group} for each of {groups} problems are {groups * group:.3g} responses of up to "
                f"{tokens:.3g} tokens, and no memory holds more than {MOST_SEQUENCES:.3g} responses or "
                f"{MOST_TOKENS:.3g} tokens at once; lower it, or {section.partition('.')[0]}.max_new_tokens"
            )


def _attention(config: Sections) -> Iterator[str]:
    device, dtype = config.model.device, config.model.dtype
    if config.model.attention == "flash_attention_2" and (device, dtype) != ("cuda", "bfloat16"):
        yield (
            f"model.attention: flash_attention_2 is for bfloat16 on a GPU, not {dtype} on {device}; "
            "set model.device=cuda and model.dtype=bfloat16, or model.attention=auto"
        )


def _engine(config: Sections) -> Iterator[str]:
    if config.engine.activations == "recompute" and config.model.dtype == "float64":
        yield "engine.activations: recompute would make activations anew in float32; set keep, or model.dtype=float32"
    yield from (_local if config.engine.name == "local" else _deepspeed)(config)


def _local(config: Sections) -> Iterator[str]:
    plain = EngineConfig()
    for name in ("zero_stage", "offload"):
        value, default = getattr(config.engine, name), getattr(plain, name)
        if value != default:
            yield f"engine.{name}: {value} is DeepSpeed's; set engine.name=deepspeed, or {default}"
    if config.model.dtype == "bfloat16":
        yield (
            "model.dtype: bfloat16 needs an optimiser with float32 weights to train; "
            "set engine.name=deepspeed, or model.dtype=float32"
        )
    if config.optimizer.name == "cpu-adam":
        yield "optimizer.name: cpu-adam is DeepSpeed's; set engine.name=deepspeed, or adamw"


def _deepspeed(config: Sections) -> Iterator[str]:
    stage, probed = config.engine.zero_stage, config.train.probe_sequences
    if config.model.dtype == "float64":
        yield "model.dtype: float64 is not for deepspeed; set float32, or engine.name=local"
    if config.intervention.name == "influence":
        yield (
            "intervention.name: influence reads whole gradients and moments, which deepspeed shares out; "
            "set engine.name=local"
        )
    if config.engine.offload == "all" and stage != 3:
        yield f"engine.offload: all needs engine.zero_stage=3, not {stage}; set it"
    if config.engine.offload == "optimizer" and stage == 0:
        yield "engine.offload: optimizer needs engine.zero_stage 1 to 3, not 0; raise it"
    if config.algorithm.kl_coefficient and stage == 3:
        yield (
            f"algorithm.kl_coefficient: {config.algorithm.kl_coefficient:g} needs a reference model, which every rank "
            "would hold whole beside engine.zero_stage=3; set engine.zero_stage=2, or 0"
        )
    if config.rollout.resample and stage == 3:
        yield (
            f"rollout.resample: {config.rollout.resample} lets a rank sample alone, and with engine.zero_stage=3 none "
            "can; set engine.zero_stage=2, or 0"
        )
    if probed and stage == 3:
        yield (
            f"train.probe_sequences: {probed} sequences cannot be probed, for the probe reads whole weights, "
            "which engine.zero_stage=3 shares out; set it to 0"
        )


def _sampler(config: Sections) -> Iterator[str]:
    told = "the policy that is scored and trained is another distribution"
    if config.rollout.temperature == 0:
        yield f"rollout.temperature: 0 is greedy, and {told}; raise it above 0 (evaluation.temperature may be 0)"
    if config.rollout.top_k is not None:
        yield f"rollout.top_k: {config.rollout.top_k} keeps the likeliest tokens alone, and {told}; set it to null"
    engine, draws = config.rollout.engine, config.rollout.draws
    if draws == "batch" and engine != "huggingface":
        yield "rollout.draws: batch is huggingface's; set rollout.engine=huggingface, or rollout.draws=prompt"
    if config.rollout.old == "sampler" and engine in ("huggingface", "vllm"):
        yield "rollout.old: sampler reads the logits of native; set rollout.engine=native, or rollout.old=score"
    if config.rollout.resample and config.rollout.tensor_parallel > 1:
        yield (
            f"rollout.resample: {config.rollout.resample} lets a rank sample alone, and rollout.tensor_parallel="
            f"{config.rollout.tensor_parallel} has ranks share an engine; set it to 1, or 0 tries"
        )
    if engine == "vllm":
        return
    if config.rollout.tensor_parallel > 1:
        parallel = config.rollout.tensor_parallel
        yield f"rollout.tensor_parallel: {parallel} is vLLM's; set rollout.engine=vllm, or 1"
    if config.algorithm.importance_cap is not None:
        cap = config.algorithm.importance_cap
        yield f"algorithm.importance_cap: {cap} needs log-probs of the sampler; set rollout.engine=vllm, or null"


def _evaluation(config: Sections) -> Iterator[str]:
    samples = config.evaluation.samples
    for k in config.evaluation.pass_at:
        if not 1 <= k <= samples:
            yield (
                f"evaluation.pass_at: {k} is not within 1 and evaluation.samples ({samples}); "
                "drop it or raise evaluation.samples"
            )
