"""The sections of a configuration: every setting, typed, with its range and its help."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT

_Decay = Annotated[float, Field(ge=0, lt=1)]
_Text = Annotated[str, Field(min_length=1)]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ModelConfig:
    """Which language model is trained."""

    path: str = "embedded"
    """`embedded` (the Countdown model shipped here), `smoke` (a tiny one with random weights that reads any text), or a
    Hugging Face model folder."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Precision of weights and arithmetic. bfloat16 trains with engine.name=deepspeed, whose optimiser keeps float32
    weights; float64 is for measuring estimates on small models."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Implementation of attention in transformers; `auto`: its own choice. With flash_attention_2 (a GPU, bfloat16 and
    the package flash-attn) micro-batches of optimizer.micro_batch_tokens go without padding."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class EngineConfig:
    """What trains: the sum of gradients over ranks, the optimiser's step, its part of a checkpoint.

    Several ranks are started by `torchrun` or `deepspeed`; each samples and trains on its share of the prompts.
    """

    name: Literal["local", "deepspeed"] = "local"
    """`local`: plain torch, the whole model on every rank; `deepspeed`: ZeRO."""
    zero_stage: int = Field(default=2, ge=0, le=3)
    """With deepspeed, what ranks share out: 1 the optimiser, 2 gradients too, 3 weights too; 0 nothing."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """With deepspeed, what lies in CPU memory: the optimiser (stage 1 to 3), or the weights too (stage 3)."""
    activations: Literal["keep", "recompute"] = "keep"
    """`recompute`: gradient checkpointing, a quarter more work for much less memory."""
    logits_mib: float | None = Field(default=None, gt=0)
    """Most MiB that the float32 logits of a forward pass may take; beyond it they are made tile by tile, and made again
    in the backward pass. `null`: a sixteenth of the memory of the machine, or of the GPU."""
    timeout_minutes: float = Field(default=30.0, gt=0)
    """How long a rank waits for the others before the run ends with an error."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class SamplingConfig:
    """How responses are sampled."""

    max_new_tokens: int = Field(default=40, ge=1)
    """Longest response in tokens."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; log-probs and entropies are those of the tempered policy. 0, in evaluation: greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass; below 1 the sampler is no longer the policy that is trained."""
    top_k: int | None = Field(default=None, ge=1)
    """In evaluation, sample among this many most likely tokens alone; `null`: all."""
    stop: tuple[_Text, ...] = ()
    """Texts that end a response, beside the model's end tokens; the response is cut before the first of them."""
    batch_sequences: int = Field(default=512, ge=1)
    """Sequences generated at once: a memory setting, which also deals out the random numbers."""


def _greedy_once(section: str, samples: int | None, temperature: float, remedy: str) -> None:
    """Raise SteerError where greedy decoding is asked for several samples of a problem."""
    if temperature == 0 and samples is not None and samples > 1:
        raise SteerError(
            f"{section}.temperature: 0 is greedy, which gives one response to a problem, the same in all "
            f"{samples} samples; {remedy}"
        )


@dataclass(config=STRICT, kw_only=True, frozen=True)
class RolloutConfig(SamplingConfig):
    """What a rollout is made of."""

    engine: Literal["auto", "native", "huggingface", "vllm"] = "auto"
    """What generates: on the weights in training our own decoding loop (`native`) or Hugging Face `generate`, or a vLLM
    engine in every rank; `auto`: native where it computes what the model does, else huggingface."""
    draws: Literal["batch", "prompt"] = "prompt"
    """What a random number belongs to: a prompt, so that neither ranks nor batch_sequences nor the engine in this
    process change a response; or, with engine=huggingface and one rank, a batch of sequences."""
    old: Literal["score", "sampler"] = "score"
    """Where log-probs and entropies of the policy that sampled come from: a scoring pass, or the logits that native
    sampled from, which saves the pass; how far apart they lie is logged (`rollout/logprob_gap`)."""
    tensor_parallel: int = Field(default=1, ge=1)
    """vLLM: ranks that share one engine's weights."""
    gpu_memory: float = Field(default=0.4, gt=0, lt=1)
    """vLLM: share of a GPU's memory for its weights and cache."""
    logprob_tolerance: float = Field(default=1e-4, gt=0)
    """vLLM: after each push of weights, largest |log-prob difference| to the trainer; beyond it the run ends. The
    default is for float32; bfloat16 needs about 0.1."""
    prompts: int = Field(default=64, ge=1)
    """Prompts a rollout."""
    resample: int = Field(default=0, ge=0, le=100)
    """Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): a group whose responses all have one reward gives its
    place to the next problem, so many times at most; what is still without signal stays. 0: never. What it costs is
    logged (`resampled/...`)."""
    responses: int = Field(default=8, ge=1)
    """Responses a prompt: the group that advantages are taken over."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class AlgorithmConfig:
    """From rewards to the loss: advantage, clip, reduction."""

    advantage: Literal[
        "grpo", "dr-grpo", "rloo", "opo", "reinforce++", "reinforce++-baseline", "pass-at-k", "quantile"
    ] = "grpo"
    """Advantage estimator."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the reference, the model that the run began from; 0: there is no reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Its estimate at a sampled token, with d = ln p_ref - ln p: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d (Schulman,
    joschu.net/blog/kl-approx.html; k3 is GRPO's, arXiv 2402.03300, eq. 4). In the loss k2 has the gradient of the
    reverse KL, and k1 none in the mean."""
    kl_in: Literal["loss", "reward"] = "loss"
    """`loss`: coefficient x estimate is added to every token's loss, unweighted by the method; `reward`: coefficient x
    the sum over a response's tokens, under the policy that sampled, is taken off its reward (as verl does)."""
    overlong_buffer: int = Field(default=0, ge=0)
    """DAPO's soft punishment of long responses (arXiv 2503.14476, eq. 13): with L tokens, C the buffer and M =
    rollout.max_new_tokens, the reward changes by -min(max(L - (M - C), 0) / C, 1). 0: none."""
    overlong_penalty: float = Field(default=1.0, gt=0)
    """What the longest response loses with overlong_buffer: a factor on that punishment."""
    pass_k: int = Field(default=4, ge=1)
    """With advantage=pass-at-k, the k of the pass@k that is trained; at most rollout.responses."""
    quantile: float = Field(default=0.4, gt=0, lt=1)
    """With advantage=quantile, which quantile of a group's rewards is the baseline. The higher, the more groups are
    taught by their failures alone, and not by their successes."""
    clip_low: float = Field(default=0.2, ge=0, le=1)
    """With A < 0 the gradient stops where the ratio falls below 1 - clip_low."""
    clip_high: float = Field(default=0.28, ge=0)
    """With A > 0 the gradient stops where the ratio rises above 1 + clip_high."""
    dual_clip: float | None = Field(default=10.0, gt=1)
    """With A < 0 the gradient stops where the ratio exceeds this; `null` switches it off."""
    importance_cap: float | None = Field(default=None, gt=0)
    """Truncated importance correction of a sampler that is not quite the policy: each token's advantage, wherever
    a rule reads it, times min(p_policy / p_sampler, this). It needs rollout.engine=vllm; `null`: none."""
    reduction: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = (
        "token-mean"
    )
    """How per-token losses of a mini-batch become one number; -norm divides by rollout.max_new_tokens (Dr. GRPO)."""

    @property
    def advantage_settings(self) -> dict[str, float]:
        """What the estimator is given by name, beside rewards and lengths."""
        if self.advantage == "pass-at-k":
            return {"k": self.pass_k}
        return {"quantile": self.quantile} if self.advantage == "quantile" else {}


@dataclass(config=STRICT, kw_only=True, frozen=True)
class OptimizerConfig:
    """The optimiser and its mini-batches."""

    name: Literal["adamw", "sgd", "cpu-adam"] = "adamw"
    """Which optimiser of torch.optim, or DeepSpeed's CPUAdam for offloaded ones: faster, and inexact on resume."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate: constant, or the largest of a schedule."""
    schedule: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
        "cosine_with_min_lr", "warmup_stable_decay",
    ] = "constant"  # fmt: skip
    """What the learning rate follows over the optimiser steps: a schedule of transformers by its name there
    (`get_scheduler`); optimiser step s, from 0, has the rate times the schedule's factor at s, which with a warm-up
    begins at 0."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps over which a schedule's factor rises from 0 to 1, linearly."""
    schedule_rollouts: int | None = Field(default=None, ge=1)
    """Rollouts at whose end a schedule ends; its last factor stays. `null`: train.rollouts."""
    schedule_settings: dict[str, float | int | str] = Field(default_factory=dict)
    """More arguments of the schedule, by transformers' names: num_cycles, power, min_lr_rate, num_decay_steps."""
    learning_rate_factor: float = Field(default=1.0, gt=0)
    """Multiplies the learning rate; a control that learns more slowly sets this alone."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (AdamW) or L2 penalty (SGD)."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """SGD's momentum."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    mini_batch_prompts: int = Field(default=4, ge=1)
    """Prompts an optimiser step; prompts / mini_batch_prompts steps are taken a rollout, in every epoch of it."""
    repeats: int = Field(default=1, ge=1, le=100)
    """How often a rollout is learnt from, mini-batch by mini-batch in one order (PPO's K, arXiv 1707.06347, algorithm
    1; GRPO's mu, arXiv 2402.03300, algorithm 1): ratios are then further from 1, and the clip stops more."""
    micro_batch_sequences: int = Field(default=32, ge=1)
    """Sequences a forward pass: a memory setting that does not change the step."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Instead: most tokens a forward pass, of sequences sorted by length; one longer sequence goes alone."""
    packing: Literal["auto", "none", "packed"] = "auto"
    """With micro_batch_tokens: `packed` puts sequences behind one another without padding; `auto` does so where the
    attention implementation reads their borders without a mask (flash attention)."""
    shared_prompts: Literal["auto", "none"] = "auto"
    """`auto`: a prompt is read once, with its responses behind it in a row without padding, where the model computes
    the same; `none`: every response has a row with its prompt."""
    skipped_steps: int = Field(default=3, ge=0)
    """How many optimiser steps running may be skipped for gradients that are not finite, before the run ends."""

    @property
    def schedule_ends(self) -> bool:
        """Whether the schedule depends on when it ends."""
        return self.schedule not in ("constant", "constant_with_warmup", "inverse_sqrt")

    @property
    def step_size(self) -> float:
        """The learning rate in force, or the largest of its schedule."""
        return self.learning_rate * self.learning_rate_factor


@dataclass(config=STRICT, kw_only=True, frozen=True)
class EvaluationConfig(SamplingConfig):
    """Evaluation on held-out problems during the run."""

    every: int = Field(default=12, ge=0)
    """Evaluate after every this many rollouts, and after the last; 0 never evaluates."""
    split: Literal["validation", "test"] = "test"
    """Which held-out problems."""
    problems: int = Field(default=150, ge=1, le=1_000_000)
    """How many of them."""
    samples: int = Field(default=32, ge=1)
    """Samples a problem: the n of the unbiased pass@k."""
    pass_at: tuple[int, ...] = Field(default=(1, 16, 32), min_length=1)
    """Which k to report, at least one; none above `samples`."""

    def __post_init__(self) -> None:
        remedy = "set evaluation.samples=1 and evaluation.pass_at=[1]"
        _greedy_once("evaluation", self.samples, self.temperature, remedy)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class BenchmarkConfig(SamplingConfig):
    """How a model is evaluated on benchmarks; the defaults are the paper's."""

    engine: Literal["auto", "native", "huggingface", "vllm", "vllm-process"] = "auto"
    """What generates: as `rollout.engine`; vLLM in this process or, `vllm-process`, in one of its own."""
    max_new_tokens: int = Field(default=3072, ge=1)
    """Longest response in tokens, cut to the room that a benchmark's longest prompt leaves in the model's positions."""
    top_p: float = Field(default=0.7, gt=0, le=1)
    """Nucleus mass."""
    batch_sequences: int = Field(default=32, ge=1)
    """Responses that are generated, graded and saved together; it also deals out the random numbers."""
    samples: int | None = Field(default=None, ge=1)
    """Samples a problem; null: the paper's for each benchmark (32 for AIME and AMC, 4 for LiveCodeBench, else 1), and
    1 with temperature=0."""
    problems: int | None = Field(default=None, ge=1)
    """How many problems, the first of each benchmark; null: all."""
    style: str = "shipped"
    """How a problem becomes a prompt: one of the named styles (`steer data list` shows them), or a template of your
    own: a text file with {question} where the question is to stand."""
    sandbox: Literal["bubblewrap", "limits"] = "bubblewrap"
    """What model-written code runs in; `limits` is for machines without bubblewrap and is no wall."""
    thinking: Literal["skip", "read"] = "skip"
    """Mathematics: `skip` takes what stands before `</think>` for no answer, `read` grades it with the rest."""
    seed: int = Field(default=0, ge=0)
    """Sets every draw, by (seed, benchmark, batch)."""
    threads: int = Field(default=2, ge=1, le=1024)
    """torch's threads."""

    def __post_init__(self) -> None:
        _greedy_once("benchmark", self.samples, self.temperature, "set benchmark.samples=1, or leave it out")

    def samples_of(self, usual: int) -> int:
        """Samples a problem of a benchmark that usually has so many."""
        return self.samples or (1 if self.temperature == 0 else usual)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class TrainConfig:
    """Length, seed and checkpoints of the run."""

    rollouts: int = Field(default=48, ge=1)
    """Rollouts of the run."""
    seed: int = Field(default=0, ge=0)
    """Sets data order, sampling and nothing else: every draw follows from (seed, purpose, rollout)."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Rollouts between checkpoints; the last is always kept."""
    checkpoints_kept: int = Field(default=2, ge=1)
    """How many checkpoints stay; older ones go."""
    best_kept: int = Field(default=1, ge=0)
    """How many more stay for their pass@k (the first of evaluation.pass_at), of those evaluated at their rollout."""
    logged_responses: int = Field(default=8, ge=0)
    """Responses written to the run folder each rollout, one a problem."""
    logged_groups: int = Field(default=0, ge=0)
    """Of the first of these problems, how many have their whole group written, for `steer show`."""
    dump_every: int = Field(default=0, ge=0)
    """Write every token of a whole rollout into dumps/, for `steer diagnose`, after this many rollouts; 0: never. Of
    several ranks, the first writes its own responses."""
    probe_sequences: int = Field(default=16, ge=0)
    """Sequences (of one micro-batch at most) on which a rollout logs predicted and measured entropy change; 0: none."""
    threads: int = Field(default=1, ge=1, le=1024)
    """torch's threads; on a model this small one is faster than two."""
    tracker: Literal["none", "wandb"] = "none"
    """Where metrics go besides metrics.jsonl and TensorBoard; wandb reads its own WANDB_* variables."""
