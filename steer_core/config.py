"""Every setting of a run, typed, with its range."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, SerializeAsAny
from pydantic.dataclasses import dataclass

from steer_core.errors import SteerError
from steer_core.interventions.base import Intervention
from steer_core.settings import STRICT, apply_overrides, build, read_yaml

_Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ModelConfig:
    """Which language model is trained."""

    path: str = "embedded"
    """`embedded` (the Countdown model shipped here) or a Hugging Face model folder."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights and arithmetic; float64 is for measuring estimates on small models."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class CountdownConfig:
    """The Countdown task and its problems."""

    name: Literal["countdown"] = "countdown"
    """Which task."""
    numbers: int = Field(4, ge=2, le=6)
    """How many numbers a problem gives; each must be used exactly once."""
    largest_number: int = Field(10, ge=2, le=99)
    """Numbers are drawn from 1 to this."""
    smallest_target: int = Field(10, ge=1)
    """Smallest target of a problem."""
    largest_target: int = Field(99, le=999)
    """Largest target of a problem."""
    train_problems: int = Field(4096, ge=1)
    """How many distinct training problems there are; an epoch visits each once."""

    def __post_init__(self) -> None:
        if self.smallest_target > self.largest_target:
            raise SteerError(
                f"task.smallest_target: {self.smallest_target} is above "
                f"task.largest_target ({self.largest_target}); lower it"
            )


@dataclass(config=STRICT, kw_only=True, frozen=True)
class MathsConfig:
    """Mathematics problems with a final answer, read from a parquet file in verl's format."""

    name: Literal["maths"] = "maths"
    """Which task; with `maths`, the settings below take the place of Countdown's."""
    file: str = Field(min_length=1)
    """Parquet file with the columns `prompt` (chat messages) and `reward_model` (with a `ground_truth`)."""
    train_problems: int = Field(1024, ge=1)
    """How many distinct training problems, the first of the file's training split; an epoch visits each once."""


TaskConfig = CountdownConfig | MathsConfig


def _named(task: Any) -> Any:
    """Settings of a task, as those of Countdown where they name none."""
    return {"name": "countdown", **task} if isinstance(task, dict) else task


def _intervention(settings: Any) -> Any:
    """The intervention that a mapping names, with its settings checked."""
    from steer_core.interventions import intervention

    return intervention(settings)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class SamplingConfig:
    """How responses are sampled."""

    max_new_tokens: int = Field(40, ge=1)
    """Longest response in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probs and entropies are those of the tempered policy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass; below 1 the sampler is no longer the policy that is trained."""
    batch_sequences: int = Field(512, ge=1)
    """Sequences generated at once: a memory setting, which also deals out the random numbers."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class RolloutConfig(SamplingConfig):
    """What a rollout is made of."""

    engine: Literal["huggingface"] = "huggingface"
    """What generates: Hugging Face `generate`."""
    prompts: int = Field(64, ge=1)
    """Prompts a rollout."""
    responses: int = Field(8, ge=1)
    """Responses a prompt: the group that advantages are taken over."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class AlgorithmConfig:
    """From rewards to the loss: advantage, clip, reduction."""

    advantage: Literal["grpo", "dr-grpo", "rloo", "opo", "reinforce++", "reinforce++-baseline"] = "grpo"
    """Advantage estimator."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """With A < 0 the gradient stops where the ratio falls below 1 - clip_low."""
    clip_high: float = Field(0.28, ge=0)
    """With A > 0 the gradient stops where the ratio rises above 1 + clip_high."""
    dual_clip: float | None = Field(10.0, gt=1)
    """With A < 0 the gradient stops where the ratio exceeds this; `null` switches it off."""
    reduction: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = (
        "token-mean"
    )
    """How per-token losses of a mini-batch become one number; -norm divides by rollout.max_new_tokens (Dr. GRPO)."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class OptimizerConfig:
    """The optimiser and its mini-batches."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Which optimiser of torch.optim."""
    learning_rate: float = Field(1e-4, gt=0)
    """Constant learning rate."""
    learning_rate_factor: float = Field(1.0, gt=0)
    """Multiplies the learning rate; a control that learns more slowly sets this alone."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (AdamW) or L2 penalty (SGD)."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """SGD's momentum."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    mini_batch_prompts: int = Field(4, ge=1)
    """Prompts an optimiser step; prompts / mini_batch_prompts steps are taken a rollout."""
    micro_batch_sequences: int = Field(32, ge=1)
    """Sequences a forward pass: a memory setting that does not change the step."""

    @property
    def step_size(self) -> float:
        """The learning rate in force."""
        return self.learning_rate * self.learning_rate_factor


@dataclass(config=STRICT, kw_only=True, frozen=True)
class EvaluationConfig(SamplingConfig):
    """Evaluation on held-out problems during the run."""

    every: int = Field(12, ge=0)
    """Evaluate after every this many rollouts, and after the last; 0 never evaluates."""
    split: Literal["validation", "test"] = "test"
    """Which held-out problems."""
    problems: int = Field(150, ge=1)
    """How many of them."""
    samples: int = Field(32, ge=1)
    """Samples a problem: the n of the unbiased pass@k."""
    pass_at: tuple[int, ...] = (1, 16, 32)
    """Which k to report; none above `samples`."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class BenchmarkConfig(SamplingConfig):
    """How a model is evaluated on benchmarks; the defaults are the paper's."""

    engine: Literal["huggingface", "vllm"] = "huggingface"
    """What generates: Hugging Face `generate`, or vLLM where it is installed."""
    max_new_tokens: int = Field(3072, ge=1)
    """Longest response in tokens, cut to the room that a benchmark's longest prompt leaves in the model's positions."""
    top_p: float = Field(0.7, gt=0, le=1)
    """Nucleus mass."""
    batch_sequences: int = Field(32, ge=1)
    """Responses that are generated, graded and saved together; it also deals out the random numbers."""
    samples: int | None = Field(None, ge=1)
    """Samples a problem; null: the paper's for each benchmark (32 for AIME and AMC, 4 for LiveCodeBench, else 1)."""
    problems: int | None = Field(None, ge=1)
    """How many problems, the first of each benchmark; null: all."""
    style: str = "shipped"
    """How a problem becomes a prompt: one of the named styles; `steer data list` shows them."""
    sandbox: Literal["bubblewrap", "limits"] = "bubblewrap"
    """What model-written code runs in; `limits` is for machines without bubblewrap and is no wall."""
    seed: int = Field(0, ge=0)
    """Sets every draw, by (seed, benchmark, batch)."""
    threads: int = Field(2, ge=1)
    """torch's threads."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class BenchmarksConfig:
    """One evaluation on benchmarks."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    task: CountdownConfig = Field(default_factory=CountdownConfig)
    """The problems of the benchmark `countdown`."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class TrainConfig:
    """Length, seed and checkpoints of the run."""

    rollouts: int = Field(48, ge=1)
    """Rollouts of the run."""
    seed: int = Field(0, ge=0)
    """Sets data order, sampling and nothing else: every draw follows from (seed, purpose, rollout)."""
    checkpoint_every: int = Field(10, ge=1)
    """Rollouts between checkpoints; the last is always kept."""
    checkpoints_kept: int = Field(2, ge=1)
    """How many checkpoints stay; older ones go."""
    logged_responses: int = Field(8, ge=0)
    """Responses written to the run folder each rollout, one a problem."""
    probe_sequences: int = Field(16, ge=0)
    """Sequences (of one micro-batch at most) on which a rollout logs predicted and measured entropy change; 0: none."""
    threads: int = Field(1, ge=1)
    """torch's threads; on a model this small one is faster than two."""


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
        for k in self.evaluation.pass_at:
            if not 1 <= k <= self.evaluation.samples:
                raise SteerError(
                    f"evaluation.pass_at: {k} is not within 1 and evaluation.samples ({self.evaluation.samples}); "
                    "drop it or raise evaluation.samples"
                )


def load_config(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration of a YAML file (or the defaults) with `section.key=value` overrides on top."""
    data = {} if path is None else read_yaml(path)
    return build(Config, apply_overrides(data, overrides))
