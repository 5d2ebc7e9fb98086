"""Every setting of a run, typed, with its range."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf, SerializeAsAny
from pydantic.dataclasses import dataclass

from steer_core.common.errors import SteerError
from steer_core.common.places import SCALES
from steer_core.common.settings import STRICT, apply_overrides, build, merged, read_extended, read_yaml
from steer_core.config.sections import (
    AlgorithmConfig,
    BenchmarkConfig,
    CountdownConfig,
    EngineConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TaskConfig,
    TrainConfig,
)
from steer_core.interventions.base import Intervention


def _named(task: Any) -> Any:
    """Settings of a task, as those of Countdown where they name none."""
    return {"name": "countdown", **task} if isinstance(task, dict) else task


def _intervention(settings: Any) -> Any:
    """The intervention that a mapping names, with its settings checked."""
    from steer_core.interventions import intervention

    return intervention(settings)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class BenchmarksConfig:
    """One evaluation on benchmarks."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    task: CountdownConfig = Field(default_factory=CountdownConfig)
    """The problems of the benchmark `countdown`."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Config:
    """One training run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    task: Annotated[TaskConfig, Field(discriminator="name"), BeforeValidator(_named)] = Field(
        default_factory=CountdownConfig
    )
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    intervention: Annotated[SerializeAsAny[InstanceOf[Intervention]], BeforeValidator(_intervention)] = Field(
        default_factory=Intervention
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        prompts, mini = self.rollout.prompts, self.optimizer.mini_batch_prompts
        if prompts % mini:
            raise SteerError(
                f"optimizer.mini_batch_prompts: {mini} does not divide rollout.prompts ({prompts}); choose a divisor"
            )
        if self.rollout.prompts > self.task.train_problems:
            raise SteerError(
                f"rollout.prompts: {prompts} is more than task.train_problems ({self.task.train_problems}); "
                "lower the one or raise the other"
            )
        self._check_engine()
        for k in self.evaluation.pass_at:
            if not 1 <= k <= self.evaluation.samples:
                raise SteerError(
                    f"evaluation.pass_at: {k} is not within 1 and evaluation.samples ({self.evaluation.samples}); "
                    "drop it or raise evaluation.samples"
                )

    def _check_engine(self) -> None:
        """Refuse what the engines cannot do together, before anything is loaded."""
        engine, optimizer, algorithm = self.engine, self.optimizer, self.algorithm
        device, dtype = self.model.device, self.model.dtype
        if self.model.attention == "flash_attention_2" and (device, dtype) != ("cuda", "bfloat16"):
            raise SteerError(
                f"model.attention: flash_attention_2 is for bfloat16 on a GPU, not {dtype} on {device}; "
                "set model.device=cuda and model.dtype=bfloat16, or model.attention=auto"
            )
        if engine.name == "local":
            for name in ("zero_stage", "offload"):
                value, default = getattr(engine, name), getattr(EngineConfig(), name)
                if value != default:
                    raise SteerError(f"engine.{name}: {value} is DeepSpeed's; set engine.name=deepspeed, or {default}")
            if self.model.dtype == "bfloat16":
                raise SteerError(
                    "model.dtype: bfloat16 needs an optimiser with float32 weights to train; "
                    "set engine.name=deepspeed, or model.dtype=float32"
                )
            if optimizer.name == "cpu-adam":
                raise SteerError("optimizer.name: cpu-adam is DeepSpeed's; set engine.name=deepspeed, or adamw")
        else:
            if self.model.dtype == "float64":
                raise SteerError("model.dtype: float64 is not for deepspeed; set float32, or engine.name=local")
            if self.intervention.name == "influence":
                raise SteerError(
                    "intervention.name: influence reads whole gradients and moments, which deepspeed shares out; "
                    "set engine.name=local"
                )
            if engine.offload == "all" and engine.zero_stage != 3:
                raise SteerError(f"engine.offload: all needs engine.zero_stage=3, not {engine.zero_stage}; set it")
            if engine.offload == "optimizer" and engine.zero_stage == 0:
                raise SteerError("engine.offload: optimizer needs engine.zero_stage 1 to 3, not 0; raise it")
            if self.train.probe_sequences and engine.zero_stage == 3:
                raise SteerError(
                    f"train.probe_sequences: {self.train.probe_sequences} sequences cannot be probed, for the probe "
                    "reads whole weights, which engine.zero_stage=3 shares out; set it to 0"
                )
        if self.rollout.tensor_parallel > 1 and self.rollout.engine != "vllm":
            raise SteerError(
                f"rollout.tensor_parallel: {self.rollout.tensor_parallel} is vLLM's; set rollout.engine=vllm, or 1"
            )
        if algorithm.importance_cap is not None and self.rollout.engine != "vllm":
            raise SteerError(
                f"algorithm.importance_cap: {algorithm.importance_cap} needs log-probs of the sampler; set "
                "rollout.engine=vllm, or null"
            )


def load_config(
    path: str | Path | None, overrides: list[str] | tuple[str, ...] = (), scale: str | None = None
) -> Config:
    """The configuration of a YAML file (or the defaults), a scale's overlay on it, `section.key=value` on top.

    The file may extend others; see `read_extended`. scale: a name in `configs/scales`.
    """
    data = {} if path is None else read_extended(path)
    if scale is not None:
        data = merged(data, read_yaml(SCALES / f"{scale}.yaml"))
    return build(Config, apply_overrides(data, overrides))
