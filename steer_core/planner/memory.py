"""What a run needs, from its configuration alone: memory of a GPU and of a node, part by part.

    plan = memory(config, shape_of(config.model.path), Machine())

Nothing is loaded and nothing is measured: every number follows from formulas (below, in `states` for the training
engine, in `times` for the time of a step), the model's shape and the stated assumptions. Memory is in
bytes, GiB where it is shown. P is the number of parameters, n of ranks, e the bytes of a number in model.dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from steer_core.common.errors import SteerError
from steer_core.config.config import Config
from steer_core.formulas.token_stats import CHUNK_ELEMENTS
from steer_core.interventions.base import ROLLOUT_NUMBERS, STEP_NUMBERS
from steer_core.planner.machine import GIB, Machine
from steer_core.planner.shapes import Shape
from steer_core.planner.states import BACKWARD, BYTES, ROLLOUT, STEP, host_states, states
from steer_core.policy.score import LOGITS_AT_ONCE

STATISTICS_COPIES = 4
"""Copies of a reduced chunk in float32: shifted logits, exponentials, their squares, and one of slack."""
WORKSPACE = 2 * GIB
"""What a vLLM engine takes beside weights and cache: its profiling pass's activations and its captured graphs."""
COUNTDOWN_PROMPT = 24
"""Tokens of a long Countdown prompt, a character each."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU by part at each moment of a step, and of a node's host.

    moments: {"rollout" | "backward pass" | "optimiser step": {part: bytes}}. host: {part: bytes}. cache_tokens:
    tokens that the sampler's cache holds, all its GPUs together. limit, host_limit: what there is.
    """

    moments: dict[str, dict[str, float]]
    host: dict[str, float]
    cache_tokens: float
    needed_tokens: int
    limit: float
    host_limit: float

    @property
    def peak(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def total(self) -> float:
        """Bytes of a GPU at that moment."""
        return sum(self.moments[self.peak].values())

    @property
    def shortfalls(self) -> list[str]:
        """What does not fit, in words; empty where the run fits."""
        found = []
        if self.total > self.limit:
            found.append(f"a GPU needs {self.total / GIB:.1f} GiB of {self.limit / GIB:.0f} in the {self.peak}")
        if self.cache_tokens < self.needed_tokens:
            found.append(
                f"the sampler's cache has room for {max(self.cache_tokens, 0):,.0f} tokens and one sequence may have "
                f"{self.needed_tokens:,}"
            )
        if sum(self.host.values()) > self.host_limit:
            needed = sum(self.host.values()) / GIB
            found.append(f"a node's host needs {needed:.0f} GiB of {self.host_limit / GIB:.0f}")
        return found

    @property
    def fits(self) -> bool:
        """Whether nothing is short."""
        return not self.shortfalls


def memory(config: Config, shape: Shape, machine: Machine) -> Memory:
    """Memory of a run; see `Memory`. Raises SteerError where the number of GPUs is none that it can train on."""
    check_gpus(config, machine.ranks)
    ranks, limit = machine.ranks, machine.gpu_memory * GIB
    held = states(config, shape, ranks, machine.on_cpu)
    sampler, cache = sampler_memory(config, shape, limit, machine.on_cpu)
    other = {"other": reserve(limit, machine.on_cpu)}
    asleep = sampler if machine.on_cpu else {k: v for k, v in sampler.items() if k == "vLLM workspace"}
    stays = asleep if config.rollout.engine == "vllm" else {}
    tokens, rows = micro_batch(config, shape)
    backward = {
        **({"tokens of all ranks": rule_bytes(config, shape)} if ranks > 1 and rule_bytes(config, shape) else {}),
        "activations": activations(config, shape, tokens, rows),
        "logits statistics": token_stats_bytes(config, shape, tokens),
    }
    moments = {
        ROLLOUT: {**held[ROLLOUT], **sampler, **other},
        BACKWARD: {**held[BACKWARD], **backward, **stays, **other},
        STEP: {**held[STEP], **stays, **other},
    }
    longest = min(longest_prompt(config) + config.rollout.max_new_tokens, shape.positions)
    return Memory(moments, host(config, shape, machine), cache, longest, limit, machine.host_memory * GIB)


def rule_bytes(config: Config, shape: Shape) -> float:
    """Bytes of the tokens of all ranks that a rule sees on each of them, twice while they are gathered, in float32.

    A rule of scope `step` sees an optimiser step, one that looks at rollouts a rollout, at full length. The log needs
    none: its means and quantiles are reduced.
    """
    longest = min(longest_prompt(config) + config.rollout.max_new_tokens, shape.positions)
    return 2 * max(rule_numbers(config, float(min(config.rollout.max_new_tokens, longest))))


def rule_numbers(config: Config, tokens: float) -> tuple[float, float]:
    """Bytes that cross ranks for the rules, (a step, a rollout), where responses have so many tokens."""
    rule, group = config.intervention, config.rollout.responses * tokens
    step = 4.0 * STEP_NUMBERS * config.optimizer.mini_batch_prompts * group if rule.scope == "step" else 0.0
    return step, 4.0 * ROLLOUT_NUMBERS * config.rollout.prompts * group if rule.sees_rollouts else 0.0


def check_gpus(config: Config, ranks: int) -> None:
    """Raise SteerError where a mini-batch's prompts, or an engine's GPUs, do not divide, as the trainer does."""
    mini, parallel = config.optimizer.mini_batch_prompts, config.rollout.tensor_parallel
    if mini % ranks:
        raise SteerError(
            f"optimizer.mini_batch_prompts: {mini} prompts do not divide among {ranks} GPUs; choose a multiple, "
            "or other --gpus and --nodes"
        )
    if config.rollout.engine == "vllm" and ranks % parallel:
        raise SteerError(f"rollout.tensor_parallel: {parallel} does not divide the {ranks} GPUs; choose a divisor")


def longest_prompt(config: Config) -> int:
    """Tokens of the longest prompt: task.prompt_tokens, else 1024; Countdown's are short."""
    if config.task.name == "countdown":
        return COUNTDOWN_PROMPT
    return config.task.prompt_tokens or 1024


def micro_batch(config: Config, shape: Shape) -> tuple[int, int]:
    """(tokens, sequences) of the largest forward pass of training: full of sequences of full length."""
    longest = min(longest_prompt(config) + config.rollout.max_new_tokens, shape.positions)
    mini = config.optimizer.mini_batch_prompts * config.rollout.responses
    if config.optimizer.micro_batch_tokens is None:
        rows = min(config.optimizer.micro_batch_sequences, mini)
        return rows * longest, rows
    tokens = min(max(config.optimizer.micro_batch_tokens, longest), mini * longest)
    return tokens, max(tokens // longest, 1)


def layer_bytes(shape: Shape, size: int) -> int:
    """Bytes that one layer keeps of a token for its backward pass; size: bytes of a number, d the hidden size.

    Two norms, each its input in float32, the normalised and the scaled vector: 2 d (max(4, e) + 2 e). Attention:
    queries, keys and values repeated to all heads, and the result: 4 e a. The gated MLP: 4 e i. A float32 a head.
    """
    norms = 2 * shape.hidden * (max(4, size) + 2 * size)
    return norms + 4 * size * (shape.query_width + shape.intermediate) + 4 * shape.heads


def activations(config: Config, shape: Shape, tokens: int, sequences: int) -> float:
    """Bytes of a micro-batch's activations at the peak of its backward pass.

    `keep`: `layer_bytes` of every layer and the last norm. `recompute`: each layer's input, e d, and one layer whole.
    Both: three gradients of the MLP's width, and the causal mask of padded sequences, (1 + e) bytes a pair of tokens.
    """
    size = BYTES[config.model.dtype]
    layer, last = layer_bytes(shape, size), shape.hidden * (max(4, size) + 2 * size)
    kept = shape.layers * layer
    if config.engine.activations == "recompute":
        kept = shape.layers * size * shape.hidden + layer
    unmasked = config.optimizer.packing == "packed" or config.model.attention == "flash_attention_2"
    mask = 0 if unmasked else (1 + size) * tokens * tokens / sequences
    return tokens * (kept + last + 3 * size * shape.intermediate) + mask


def token_stats_bytes(config: Config, shape: Shape, tokens: int) -> float:
    """Bytes for log-probs and entropies of a micro-batch: logits and their gradient for some rows at a time.

    Rows of LOGITS_AT_ONCE elements in e, twice; STATISTICS_COPIES of CHUNK_ELEMENTS elements in float32; the
    hidden states of all rows and their gradient; and two gradients of the output layer: the sum so far, and the
    next rows' before it is added.
    """
    size = BYTES[config.model.dtype]
    elements = tokens * shape.vocabulary
    logits = 2 * size * min(elements, max(LOGITS_AT_ONCE, shape.vocabulary))
    chunk = STATISTICS_COPIES * 4 * min(elements, max(CHUNK_ELEMENTS, shape.vocabulary))
    head = 2 * size * shape.head
    return logits + chunk + 2 * size * tokens * shape.hidden + head


def sampler_memory(config: Config, shape: Shape, limit: float, on_cpu: int = 0) -> tuple[dict[str, float], float]:
    """(bytes of the sampler by part on a GPU, tokens that its cache holds over all its GPUs).

    vLLM takes rollout.gpu_memory of the GPU: its own weights, e P / t, a workspace, and the cache in what is left.
    While the trainer works it sleeps: the weights lie on the host, the cache is given up, the workspace stays.
    Hugging Face's `generate` reads the trained weights; its cache holds one batch at full length.
    """
    rollout, size = config.rollout, BYTES[config.model.dtype]
    a_token, longest = shape.kv_bytes(size), longest_prompt(config) + rollout.max_new_tokens
    if rollout.engine == "huggingface":
        rows = min(rollout.batch_sequences, rollout.prompts * rollout.responses)
        logits = 3 * 4 * rows * shape.vocabulary
        return {"cache": float(rows * longest * a_token), "logits sampled": float(logits)}, float(rows * longest)
    own = size * shape.parameters / rollout.tensor_parallel
    cache = GIB if on_cpu else rollout.gpu_memory * limit - own - WORKSPACE
    split = min(rollout.tensor_parallel, shape.kv_heads)
    parts = {"vLLM weights": own, "vLLM cache": max(cache, 0.0)} | ({} if on_cpu else {"vLLM workspace": WORKSPACE})
    return parts, cache / (a_token / split)


def reserve(limit: float, on_cpu: int = 0) -> float:
    """Bytes for CUDA's and NCCL's contexts (2 GiB) and fragmentation (5% of the GPU); on a CPU, of the libraries."""
    return 0.6 * GIB if on_cpu else 2 * GIB + 0.05 * limit


def host(config: Config, shape: Shape, machine: Machine) -> dict[str, float]:
    """Bytes of a node's host memory: a process for each GPU with the weights it loads, and what is offloaded.

    vLLM's weights lie there while it sleeps.
    """
    if machine.on_cpu:
        return {}
    parts = {
        "processes": machine.gpus * 6.0 * GIB,
        "weights while loading": machine.gpus * BYTES[config.model.dtype] * float(shape.parameters),
    }
    if config.rollout.engine == "vllm":
        asleep = BYTES[config.model.dtype] * shape.parameters / config.rollout.tensor_parallel
        parts["vLLM asleep"] = machine.gpus * asleep
    return parts | host_states(config, shape, machine.ranks, machine.gpus)


def fewest_gpus(config: Config, shape: Shape, machine: Machine, most: int = 1024) -> int | None:
    """The smallest number of GPUs on which the run fits, of those it can train on: within a node, then whole nodes.

    None where it fits on none, up to `most`.
    """
    within = [replace(machine, gpus=n, nodes=1) for n in range(1, machine.gpus)]
    beyond = [replace(machine, nodes=nodes) for nodes in range(1, max(most // machine.gpus, 1) + 1)]
    for one in [*within, *beyond]:
        try:
            if memory(config, shape, one).fits:
                return one.ranks
        except SteerError:  # a number of GPUs that the run's prompts do not divide among
            continue
    return None
