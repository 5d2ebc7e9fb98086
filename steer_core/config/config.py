"""Every setting of a run, typed, with its range."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, InstanceOf, SerializeAsAny
from pydantic.dataclasses import dataclass

from steer_core.common.places import CONFIGS, SCALES
from steer_core.common.settings import STRICT, KindOf, apply_overrides, build, merged, read_extended, read_yaml
from steer_core.config.checks import check
from steer_core.config.elsewhere import called_here
from steer_core.config.sections import (
    AlgorithmConfig,
    BenchmarkConfig,
    EngineConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
)
from steer_core.config.tasks import CountdownConfig, TaskConfig
from steer_core.interventions.base import Intervention, Outside

_TASKS = {kind.name: kind for kind in get_args(TaskConfig)}


def _named(task: Any) -> Any:
    """Settings of a task, as those of Countdown where they name none."""
    return {"name": "countdown", **task} if isinstance(task, dict) else task


def _task_kind(task: dict[str, Any]) -> type | None:
    """The dataclass of a task's settings; None where they name no task."""
    return _TASKS.get(str(_named(task)["name"]))


def _intervention(settings: Any) -> Any:
    """The intervention that a mapping names, with its settings checked; one of another package is not imported."""
    from steer_core.interventions import intervention

    return intervention(settings, outside=False)


def _intervention_kind(settings: dict[str, Any]) -> type | None:
    """The class of the method of this package that a mapping names; None where it names none, or another's."""
    from steer_core.interventions import METHODS, method

    name = settings.get("name", "none")
    return method(name) if isinstance(name, str) and name in METHODS and name != "none" else None


@dataclass(config=STRICT, kw_only=True, frozen=True)
class BenchmarksConfig:
    """One evaluation on benchmarks."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    task: CountdownConfig = Field(default_factory=CountdownConfig)
    """The problems of the benchmark `countdown`."""

    elsewhere = staticmethod(called_here)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Config:
    """One training run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    task: Annotated[TaskConfig, Field(discriminator="name"), BeforeValidator(_named), KindOf(_task_kind)] = Field(
        default_factory=CountdownConfig
    )
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    intervention: Annotated[
        SerializeAsAny[InstanceOf[Intervention]], BeforeValidator(_intervention), KindOf(_intervention_kind)
    ] = Field(default_factory=Intervention)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    elsewhere = staticmethod(called_here)

    def __post_init__(self) -> None:
        check(self)

    def with_method(self) -> Config:
        """The same with a method of another package imported, which only what trains does.

        Raises SteerError where Python does not find it or its settings do not fit.
        """
        from steer_core.interventions import intervention

        method = self.intervention
        return replace(self, intervention=intervention(method.as_written())) if isinstance(method, Outside) else self


def load_config(
    path: str | Path | None, overrides: list[str] | tuple[str, ...] = (), scale: str | None = None
) -> Config:
    """The configuration of a YAML file (or the defaults), a scale's overlay on it, `section.key=value` on top.

    The file may extend others; see `read_extended`. A method of another package is not imported; see
    `Config.with_method`. scale: a name in `configs/scales`.
    """
    data = {} if path is None else read_extended(path)
    if scale is not None:
        data = merged(data, read_yaml(SCALES / f"{scale}.yaml"))
    return build(Config, apply_overrides(data, overrides))


def shipped() -> list[str]:
    """The shipped configurations by name; those that others extend begin with _, and overlays are no runs."""
    found = (path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml"))
    return sorted(str(name) for name in found if not name.name.startswith("_") and name.parts[0] != SCALES.name)
