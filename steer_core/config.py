"""Every setting of a run, typed, with its range; YAML files and `key=value` overrides are read here.

An unknown key, a wrong type or a value out of range raises `SteerError` with the field, the value
and the remedy (for an unknown key: the nearest known name).
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from steer_core.errors import SteerError

T = TypeVar("T")
_Decay = Annotated[float, Field(ge=0, lt=1)]
_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class ModelConfig:
    """Which language model is trained."""

    path: str = "embedded"
    """`embedded` (the Countdown model shipped here) or a Hugging Face model folder."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights and arithmetic; float64 is for measuring estimates on small models."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
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


@dataclass(config=_STRICT, kw_only=True, frozen=True)
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


@dataclass(config=_STRICT, kw_only=True, frozen=True)
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


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class RolloutConfig(SamplingConfig):
    """What a rollout is made of."""

    engine: Literal["huggingface"] = "huggingface"
    """What generates: Hugging Face `generate`."""
    prompts: int = Field(64, ge=1)
    """Prompts a rollout."""
    responses: int = Field(8, ge=1)
    """Responses a prompt: the group that advantages are taken over."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class AlgorithmConfig:
    """From rewards to the loss: advantage, clip, reduction."""

    advantage: Literal["grpo"] = "grpo"
    """Advantage estimator."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """With A < 0 the gradient stops where the ratio falls below 1 - clip_low."""
    clip_high: float = Field(0.28, ge=0)
    """With A > 0 the gradient stops where the ratio rises above 1 + clip_high."""
    dual_clip: float | None = Field(10.0, gt=1)
    """With A < 0 the gradient stops where the ratio exceeds this; `null` switches it off."""
    reduction: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = "token-mean"
    """How per-token losses of a mini-batch become one number."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class SteerConfig:
    """STEER's weights."""

    form: Literal["none", "paper", "released", "exact", "covariance"] = "none"
    """Estimate of the entropy change that sets the weights; `none` is plain GRPO."""
    lambda_min: float = Field(0.7, gt=0, le=1)
    """Weight of the token at the normaliser; 1 is plain GRPO bit for bit."""
    normaliser: Literal["max", "quantile"] = "max"
    """What |Omega| is divided by: its maximum (the paper) or a quantile."""
    quantile: float = Field(0.9, gt=0, le=1)
    """Which quantile of the non-zero |Omega|, where normaliser is `quantile`; tokens above get lambda_min."""
    scope: Literal["step", "rollout", "micro"] = "step"
    """Tokens the normaliser is taken over: an optimiser step, a rollout, or a micro-batch."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class QuadrantConfig:
    """Factors on the loss of each quadrant: sign of the advantage x likely (ln p > -H) or not; 1 changes nothing."""

    positive_likely: float = Field(1.0, ge=0)
    """Tokens with A > 0 and ln p > -H: the theory says they lower entropy."""
    positive_unlikely: float = Field(1.0, ge=0)
    """Tokens with A > 0 and ln p <= -H: they raise it."""
    negative_likely: float = Field(1.0, ge=0)
    """Tokens with A < 0 and ln p > -H: they raise it."""
    negative_unlikely: float = Field(1.0, ge=0)
    """Tokens with A < 0 and ln p <= -H: they lower it."""


@dataclass(config=_STRICT, kw_only=True, frozen=True)
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


@dataclass(config=_STRICT, kw_only=True, frozen=True)
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


@dataclass(config=_STRICT, kw_only=True, frozen=True)
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


@dataclass(config=_STRICT, kw_only=True, frozen=True)
class Config:
    """One training run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    task: Annotated[TaskConfig, Field(discriminator="name"), BeforeValidator(_named)] = Field(
        default_factory=CountdownConfig
    )
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    steer: SteerConfig = Field(default_factory=SteerConfig)
    quadrants: QuadrantConfig = Field(default_factory=QuadrantConfig)
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
        if self.steer.form == "covariance" and self.steer.scope == "rollout":
            raise SteerError(
                "steer.scope: rollout is not for steer.form covariance, whose means are taken over an optimiser step; "
                "use step"
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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping a YAML file holds. Raises SteerError where it is missing, unreadable or no mapping."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SteerError(f"configuration {path}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        where = " ".join(str(error).split())
        raise SteerError(f"configuration {path}: not YAML ({where}); mend that line") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SteerError(f"configuration {path}: holds a {type(data).__name__}; write `section:` and `key: value`")
    return data


def apply_overrides(data: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A copy of `data` with each `section.key=value` set; values are read as YAML."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for override in overrides:
        path, separator, text = override.partition("=")
        *sections, key = path.split(".")
        if not separator or not all(sections) or not key:
            raise SteerError(
                f"override {override!r}: not of the form section.key=value; write for example train.seed=1"
            )
        node = result
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise SteerError(f"override {override!r}: {section} is a value, no section; drop `.{key}`")
        try:
            node[key] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise SteerError(f"override {override!r}: the value is not YAML; quote it") from error
    return result


def build(kind: type[T], data: dict[str, Any]) -> T:
    """`data` as the settings dataclass `kind`. Raises SteerError naming the first field that does not fit."""
    _refuse_booleans(data)
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path, section = _place(kind, first["loc"])
        name = ".".join(path)
        if first["type"] == "unexpected_keyword_argument":
            known = [field.name for field in dataclasses.fields(section)]
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise SteerError(f"{name}: unknown key; {hint}") from error
        if first["type"] == "missing" and not isinstance(first["input"], list | tuple):
            raise SteerError(f"{name}: is missing; add `{path[-1]}:` with its value") from error
        if first["type"] == "union_tag_invalid":
            value, known = first["input"]["name"], first["ctx"]["expected_tags"]
            raise SteerError(f"{name}.name: {value!r} is not allowed; input should be one of {known}") from error
        if first["type"].startswith(("dataclass", "model_attributes")):
            raise SteerError(f"{name}: {first['input']!r} is no section; write `key: value` below it") from error
        raise SteerError(f"{name}: {first['input']!r} is not allowed; {_lower(first['msg'])}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """A settings dataclass as plain YAML-ready data."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def describe(kind: type, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(dotted key, default, meaning) of every setting, for `--help`."""
    rows = []
    hints = get_type_hints(kind)
    for name, field in kind.__pydantic_fields__.items():
        sections = _sections(hints[name])
        for section in sections:
            rows += describe(section, f"{prefix}{name}.")
        if not sections:
            own = next(k for k in reversed(kind.__mro__) if name in vars(k).get("__annotations__", {}))
            default = None if field.is_required() else field.default
            rows.append((prefix + name, default, own.__pydantic_fields__[name].description or ""))
    return rows


def _refuse_booleans(value: Any, name: str = "") -> None:
    """No setting is a yes or a no, and pydantic would read one as 1 or 0."""
    if isinstance(value, bool):
        raise SteerError(f"{name}: {value} is not allowed; write a number or a word in quotes")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in items:
        _refuse_booleans(part, f"{name}.{key}" if name else str(key))


def _sections(hint: Any) -> list[Any]:
    """The settings dataclasses that a type holds: itself, the members of a union, the values of a mapping."""
    return [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]


def _place(kind: Any, location: tuple[str | int, ...]) -> tuple[list[str], Any]:
    """(key, section that the key lies in) of an error: its location without the tags of union members."""
    path, section = [], kind
    for part in location:
        if len(_sections(kind)) > 1:
            kind = next(member for member in _sections(kind) if member.name == part)
            continue
        path.append(str(part))
        if dataclasses.is_dataclass(kind):
            section, kind = kind, get_type_hints(kind).get(part)
        else:
            kind = next(iter(_sections(kind)), None)
    return path, section


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
