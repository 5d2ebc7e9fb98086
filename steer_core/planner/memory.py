"""What a run needs, from its configuration alone: memory of a GPU and of a node, part by part.

    plan = memory(config, shape_of(config.model.path), Machine())

Nothing is loaded and nothing is measured: every number follows from formulas (below, in `states` for the training
engine, in `passes` for its forward passes, in `times` for the time of a step), the model's shape and the stated
assumptions. Memory is in bytes, GiB where it is shown. P is the number of parameters, n of ranks, e the bytes of a
number in model.dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from steer_core.common.errors import SteerError
from steer_core.config.config import Config
from steer_core.interventions.base import ROLLOUT_NUMBERS, STEP_NUMBERS
from steer_core.planner.machine import GIB, Machine
from steer_core.planner.passes import (
    activations,
    longest_prompt,
    longest_response,
    longest_sequence,
    micro_batch,
    most_prompts,
    shared_out,
    tied_bytes,
    token_stats_bytes,
)
from steer_core.planner.shapes import Shape
from steer_core.planner.states import BACKWARD, BYTES, ROLLOUT, STEP, host_states, states

PICKED_AT_ONCE = 1 << 24
"""Most elements of logits that a token is picked from at a time, in float64, by the sampler `native`."""
WORKSPACE = 2 * GIB
"""What a vLLM engine takes beside weights and cache: its profiling pass's activations and its captured graphs."""


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
    sampler, cache = sampler_memory(config, shape, machine)
    other = {"other": reserve(limit, machine.on_cpu)}
    asleep = sampler if machine.on_cpu else {k: v for k, v in sampler.items() if k == "vLLM workspace"}
    stays = asleep if config.rollout.engine == "vllm" else {}
    batch = micro_batch(config, shape)
    backward = {
        **({"tokens of all ranks": rule_bytes(config, shape)} if ranks > 1 and rule_bytes(config, shape) else {}),
        "activations": activations(config, shape, batch),
        "logits statistics": token_stats_bytes(config, shape, batch.rows, machine),
    }
    gone = backward["activations"] + backward["logits statistics"]
    backward |= {"tied gradients": tied_bytes(config, shape, gone)} if tied_bytes(config, shape, gone) else {}
    always = reference(config, shape) | other
    moments = {
        ROLLOUT: {**held[ROLLOUT], **sampler, **always},
        BACKWARD: {**held[BACKWARD], **backward, **stays, **always},
        STEP: {**held[STEP], **stays, **always},
    }
    longest = longest_sequence(config, shape)
    return Memory(moments, host(config, shape, machine), cache, longest, limit, machine.host_memory * GIB)


def reference(config: Config, shape: Shape) -> dict[str, float]:
    """The reference model of a KL term, whole on every GPU all the time, e P; nothing without one."""
    if not config.algorithm.kl_coefficient:
        return {}
    return {"reference weights": BYTES[config.model.dtype] * float(shape.parameters)}


def rule_bytes(config: Config, shape: Shape) -> float:
    """Bytes of the tokens of all ranks that a rule sees on each of them, twice while they are gathered, in float32.

    A rule of scope `step` sees an optimiser step, one that looks at rollouts a rollout, at full length. The log needs
    none: its means and quantiles are reduced.
    """
    return 2 * max(rule_numbers(config, float(longest_response(config, shape))))


def rule_numbers(config: Config, tokens: float) -> tuple[float, float]:
    """Bytes that cross ranks for the rules, (a step, a rollout), where responses have so many tokens."""
    rule, group = config.intervention, config.rollout.responses * tokens
    step = 4.0 * STEP_NUMBERS * config.optimizer.mini_batch_prompts * group if rule.scope == "step" else 0.0
    return step, 4.0 * ROLLOUT_NUMBERS * config.rollout.prompts * group if rule.sees_rollouts else 0.0


def check_gpus(config: Config, ranks: int) -> None:
    """Raise SteerError, as the trainer does, where prompts or an engine's GPUs do not divide, or native cannot."""
    mini, parallel = config.optimizer.mini_batch_prompts, config.rollout.tensor_parallel
    if mini % ranks:
        raise SteerError(
            f"optimizer.mini_batch_prompts: {mini} prompts do not divide among {ranks} GPUs; choose a multiple, "
            "or other --gpus and --nodes"
        )
    if config.rollout.engine == "vllm" and ranks % parallel:
        raise SteerError(f"rollout.tensor_parallel: {parallel} does not divide the {ranks} GPUs; choose a divisor")
    native = config.rollout.engine == "native" or config.rollout.old == "sampler"
    if native and shared_out(config, ranks):
        raise SteerError(
            "rollout.engine: native cannot sample where ranks hold parts of every weight (engine.zero_stage=3); set "
            "rollout.engine=huggingface and rollout.old=score"
        )


def sampler_of(config: Config, ranks: int) -> str:
    """What samples: `auto` is native, for a model that it computes, but where ranks hold parts of every weight."""
    if config.rollout.engine != "auto":
        return config.rollout.engine
    return "huggingface" if shared_out(config, ranks) else "native"


def sampler_memory(config: Config, shape: Shape, machine: Machine) -> tuple[dict[str, float], float]:
    """(bytes of the sampler by part on a GPU, tokens of sequences that its cache holds over all its GPUs).

    vLLM takes rollout.gpu_memory of the GPU: its own weights, e P / t, a workspace, and the cache in what is left.
    While the trainer works it sleeps: the weights lie on the host, the cache is given up, the workspace stays.
    The others read the trained weights, and hold one batch. Hugging Face's `generate`: every row at full length, three
    times its logits in float32. Native: every prompt once for its rows, the longest response for each of them at once,
    the logits of two tokens in e, and three times what is picked from at a time in float64. Not counted: the
    activations of the pass over prompts.
    """
    rollout, size, engine = config.rollout, BYTES[config.model.dtype], sampler_of(config, machine.ranks)
    a_token, prompt, response = shape.kv_bytes(size), longest_prompt(config), rollout.max_new_tokens
    if engine != "vllm":
        rows = min(rollout.batch_sequences, rollout.prompts * rollout.responses)
        held, elements = rows * (prompt + response), rows * shape.vocabulary
        cache, logits = held * a_token, 3 * 4 * elements
        if engine == "native":
            prompts = min(most_prompts(rows, rollout.responses), rollout.prompts)
            cache = (prompts * prompt + rows * response) * a_token
            logits = 2 * size * elements + 3 * 8 * min(elements, max(PICKED_AT_ONCE, shape.vocabulary))
        return {"cache": float(cache), "logits sampled": float(logits)}, float(held)
    own = size * shape.parameters / rollout.tensor_parallel
    left = GIB if machine.on_cpu else rollout.gpu_memory * machine.gpu_memory * GIB - own - WORKSPACE
    split = min(rollout.tensor_parallel, shape.kv_heads)
    parts = {"vLLM weights": own, "vLLM cache": max(left, 0.0)}
    return parts | ({} if machine.on_cpu else {"vLLM workspace": WORKSPACE}), left / (a_token / split)


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
