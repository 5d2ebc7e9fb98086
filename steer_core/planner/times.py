"""How long a step of a run takes on a machine, part by part, and what becomes the bottleneck on more nodes.

A calculation from stated assumptions, not a measurement: communication is not hidden behind arithmetic, every GPU
works at the assumed share of its peak, and grading and the padding of padded rows are left out. Times are in seconds,
bandwidths in GB/s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2

from steer_core.config.config import Config
from steer_core.planner.machine import Machine
from steer_core.planner.memory import rule_numbers, sampler_memory, sampler_of
from steer_core.planner.passes import layout, longest_sequence, made_again, prompts_read
from steer_core.planner.shapes import Shape
from steer_core.planner.states import BYTES, moment_bytes

ADAM_ON_HOST = {"cpu-adam": 1.0, "adamw": 5.0, "sgd": 5.0}
"""Passes over the host's memory that an offloaded optimiser needs, where DeepSpeed's own needs one."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of prompts and responses, and the longest a response may be."""

    prompt: float
    response: float
    longest: int

    @property
    def sequence(self) -> float:
        """Mean tokens of a prompt and its response."""
        return self.prompt + self.response


@dataclass(frozen=True)
class Step:
    """Seconds of one rollout and its optimiser steps by part, and why the longest part takes as long."""

    parts: dict[str, float]
    reasons: dict[str, str]

    @property
    def seconds(self) -> float:
        """All parts together: they follow one another."""
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """The longest part, and what it is bound by."""
        longest = max(self.parts, key=lambda part: self.parts[part])
        return f"{longest}: {self.reasons[longest]}" if longest in self.reasons else longest


def lengths(config: Config, machine: Machine) -> Lengths:
    """The lengths that are assumed: those of the machine's settings, or its defaults."""
    longest = config.rollout.max_new_tokens
    prompt = machine.prompt_tokens or (16.0 if config.task.name == "countdown" else 250.0)
    return Lengths(prompt, min(machine.response_tokens or longest / 3, longest), longest)


def tokens_per_step(config: Config, machine: Machine) -> dict[str, float]:
    """Mean tokens of a rollout (prompts and responses) and of an optimiser step, all GPUs together."""
    told, group = lengths(config, machine), config.rollout.responses
    rollout, mini = config.rollout.prompts * group, config.optimizer.mini_batch_prompts * group
    return {
        "responses a rollout": rollout * told.response,
        "tokens a rollout": rollout * told.sequence,
        "responses an optimiser step": mini * told.response,
        "tokens an optimiser step": mini * told.sequence,
    }


def step_time(config: Config, shape: Shape, machine: Machine) -> Step:
    """Seconds of a step by part: rollout, scoring, update, its communication, optimiser, weight sync."""
    steps = config.rollout.prompts // config.optimizer.mini_batch_prompts * config.optimizer.repeats
    rollout, bound = rollout_time(config, shape, machine)
    update = steps * update_time(config, shape, machine)
    parts = {
        "rollout": rollout,
        "scoring": scoring_time(config, shape, machine),
        "update": update,
        "communication": steps * communication_time(config, shape, machine) + rule_time(config, machine),
        "optimiser": steps * optimiser_time(config, shape, machine),
        "weight sync": weight_sync_time(config, shape, machine),
    }
    reasons = {
        "rollout": bound,
        "update": "arithmetic",
        "scoring": "arithmetic",
        "communication": f"gradients and weights over {collective_bandwidth(machine):.0f} GB/s",
    }
    return Step(parts, reasons)


def rollout_time(config: Config, shape: Shape, machine: Machine) -> tuple[float, str]:
    """(seconds to sample, what bounds it): reading prompts, decoding full, and the tail of the longest response.

    `generate` reads a prompt for each of its responses; native reads it once in every batch that has one of them, and
    vLLM, whose cache of prefixes is on, once.

    An engine of t GPUs decodes C sequences at once: its share, at most `concurrency` and what its cache holds. Full,
    it takes responses x mean length / C steps; after that the longest response goes on with few beside it, for
    (longest - mean) steps: the tail, which no number of GPUs shortens.
    """
    told, rollout = lengths(config, machine), config.rollout
    split = rollout.tensor_parallel if rollout.engine == "vllm" else 1
    engines = max(machine.ranks // split, 1)
    prompts = ceil(rollout.prompts / engines)
    sequences = prompts * rollout.responses
    cached = sampler_memory(config, shape, machine)[1] / told.sequence
    most = machine.concurrency if rollout.engine == "vllm" else rollout.batch_sequences
    at_once = max(1, min(sequences, most, int(cached)))
    read = {"vllm": prompts, "huggingface": sequences, "native": prompts_read(prompts, rollout.responses, most)}[
        sampler_of(config, machine.ranks)
    ]
    reading = shape.forward_flops(read * told.prompt, read, told.prompt) / (flops(machine) * split)
    full_step, bound = decode_step(config, shape, machine, at_once, told)
    tail_step, _ = decode_step(config, shape, machine, 1, told)
    full = sequences * told.response / at_once * full_step
    tail = (told.longest - told.response) * tail_step
    if tail > full:
        bound = "the tail of the longest response"
    elif at_once < min(sequences, most):
        bound += f" ({at_once} at once for want of cache)"
    return reading + full + tail, bound


def decode_step(config: Config, shape: Shape, machine: Machine, sequences: int, told: Lengths) -> tuple[float, str]:
    """(seconds of one decoding step, what bounds it): the longer of reading memory and arithmetic, plus the overhead.

    Read once a step: all weights, e P / t, and the cache of every sequence at its mean length so far, half of it
    response; t GPUs share both. Native reads a prompt's part once for all of its responses.
    """
    size = BYTES[config.model.dtype]
    split = config.rollout.tensor_parallel if config.rollout.engine == "vllm" else 1
    bandwidth = machine.bandwidth * 1e9 * machine.decode * split
    weights = size * shape.parameters / bandwidth
    native = sampler_of(config, machine.ranks) == "native"
    prompts = ceil(sequences / config.rollout.responses) if native else sequences
    cache = (prompts * told.prompt + sequences * told.response / 2) * shape.kv_bytes(size) / bandwidth
    peak = machine.peak_tflops * 1e12 * machine.decode * split
    arithmetic = shape.forward_flops(sequences, sequences, told.sequence) / peak
    overhead = machine.decode_overhead / 1e3
    what = {
        "reading weights": weights,
        "reading the cache": cache,
        "arithmetic": arithmetic if arithmetic > weights + cache else 0.0,
        "the fixed time of a decoding step": overhead,
    }
    return max(weights + cache, arithmetic) + overhead, max(what, key=lambda name: what[name])


def flops(machine: Machine) -> float:
    """FLOP/s that a GPU is assumed to reach in training and scoring."""
    return machine.peak_tflops * 1e12 * machine.utilisation


def prompts_of_passes(config: Config, shape: Shape, machine: Machine, prompts: int) -> float:
    """How often prompts are read in the forward passes over the sequences of some prompts on one GPU.

    Once for every response, unless they are shared; then once in each pass that has one of their responses. A pass by
    tokens begins within a group but for one time in G.
    """
    group, settings = config.rollout.responses, config.optimizer
    if layout(config) != "shared":
        return prompts * group
    if settings.micro_batch_tokens is None:
        return prompts_read(prompts, group, settings.micro_batch_sequences)
    return prompts + (micro_batches(config, machine, shape, prompts) - 1) * (1 - 1 / group)


def pass_time(config: Config, shape: Shape, machine: Machine, prompts: int, layers: float, head: float) -> float:
    """Seconds of passes over the sequences of some prompts on one GPU.

    layers, head: how many forward passes' arithmetic the layers and the output layer take; a backward pass is two. A
    token of a response attends to its prompt and, on average, to half of the response: as one of a sequence of 2
    prompt + response tokens does.
    """
    told = lengths(config, machine)
    responses = prompts * config.rollout.responses * told.response
    read = prompts_of_passes(config, shape, machine, prompts) * told.prompt
    body = shape.forward_flops(read, 0, told.prompt)
    body += shape.forward_flops(responses, 0, 2 * told.prompt + told.response)
    return (layers * body + head * shape.forward_flops(0, responses, 0)) / flops(machine)


def scoring_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds of a forward pass over the rollout, and another by the reference of a KL term; at least a prompt a GPU.

    No pass of the policy's own where the sampler keeps the statistics (rollout.old=sampler).
    """
    passes = (config.rollout.old != "sampler") + (config.algorithm.kl_coefficient > 0)
    if not passes:
        return 0.0
    prompts = ceil(config.rollout.prompts / machine.ranks)
    arithmetic = pass_time(config, shape, machine, prompts, 1, 1)
    whole = arithmetic + micro_batches(config, machine, shape, prompts) * gather_time(config, shape, machine)
    return passes * whole


def update_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds of arithmetic of one optimiser step on the fullest GPU.

    Forward 1, backward 2, recomputed activations 1, logits that are beyond the budget 1 of the output layer; an
    intervention that must see the whole step first takes one more forward pass where there are several micro-batches.
    """
    prompts = prompts_a_rank(config, machine)
    values = values_pass(config, machine, shape)
    again = config.engine.activations == "recompute"
    tiles = made_again(config, shape, mean_rows(config, machine, shape, prompts), machine)
    return pass_time(config, shape, machine, prompts, 3 + again + values, 3 + tiles + values)


def mean_rows(config: Config, machine: Machine, shape: Shape, prompts: int) -> float:
    """Response tokens of a forward pass over the sequences of some prompts on a GPU, at their mean length."""
    responses = prompts * config.rollout.responses * lengths(config, machine).response
    return responses / micro_batches(config, machine, shape, prompts)


def prompts_a_rank(config: Config, machine: Machine) -> int:
    """Prompts of a mini-batch on the fullest GPU: never less than one."""
    return ceil(config.optimizer.mini_batch_prompts / machine.ranks)


def values_pass(config: Config, machine: Machine, shape: Shape) -> int:
    """1 where the intervention sees a whole optimiser step and there are several micro-batches on a GPU, else 0."""
    several = micro_batches(config, machine, shape, prompts_a_rank(config, machine)) > 1
    return int(config.intervention.scope == "step" and several)


def micro_batches(config: Config, machine: Machine, shape: Shape, prompts: int) -> int:
    """Forward passes that the sequences of some prompts take on a GPU, at their mean length."""
    sequences = prompts * config.rollout.responses
    if config.optimizer.micro_batch_tokens is None:
        return ceil(sequences / config.optimizer.micro_batch_sequences)
    budget = max(config.optimizer.micro_batch_tokens, longest_sequence(config, shape))
    return ceil(sequences * lengths(config, machine).sequence / budget)


def collective_bandwidth(machine: Machine) -> float:
    """GB/s that a collective reaches a GPU: within a node NVLink's; over nodes no more than all its cards together."""
    if machine.nodes == 1:
        return machine.nvlink
    return min(machine.nvlink, machine.interconnect * machine.gpus)


def ring(machine: Machine, size: float) -> float:
    """Seconds to gather (or reduce and scatter) `size` bytes over all ranks: size (n - 1) / n / bandwidth + latency."""
    n = machine.ranks
    if n == 1:
        return 0.0
    return size * (n - 1) / n / (collective_bandwidth(machine) * 1e9) + machine.latency / 1e6 * log2(n)


def gather_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds to gather all weights once for a pass under ZeRO-3, layer by layer; 0 where every rank holds them.

    Offloaded weights come over PCIe first, each rank its share.
    """
    if config.engine.name == "local" or config.engine.zero_stage < 3:
        return 0.0
    size = BYTES[config.model.dtype] * shape.parameters
    host = size / machine.ranks / (machine.pcie * 1e9) if config.engine.offload == "all" else 0.0
    return host + shape.layers * ring(machine, size / shape.layers)


def communication_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds of communication of one optimiser step: sums of gradients in float32, 4 P, weights as they are, e P.

    ZeRO-3: a micro-batch gathers the weights twice and scatters the gradients; the values pass gathers once more.
    ZeRO-2 all-reduces the gradients of a micro-batch (use_multi_rank_bucket_allreduce), as a scatter and a gather,
    ZeRO-0 and 1 those of a step; ZeRO-1 and 2 gather the weights after it. The local engine all-reduces e P.
    """
    weights = ring(machine, BYTES[config.model.dtype] * shape.parameters)
    sums = ring(machine, 4 * shape.parameters)
    if config.engine.name == "local":
        return 2 * weights
    stage, count = config.engine.zero_stage, micro_batches(config, machine, shape, prompts_a_rank(config, machine))
    if stage == 3:
        gathers = 2 + values_pass(config, machine, shape)
        return count * (gathers * gather_time(config, shape, machine) + sums)
    return 2 * sums * (count if stage == 2 else 1) + (weights if stage else 0.0)


def rule_time(config: Config, machine: Machine) -> float:
    """Seconds to gather the tokens that rules see of all ranks, in a rollout and its optimiser steps."""
    steps = config.rollout.prompts // config.optimizer.mini_batch_prompts
    step, rollout = rule_numbers(config, lengths(config, machine).response)
    return (steps * ring(machine, step) if step else 0.0) + (ring(machine, rollout) if rollout else 0.0)


def optimiser_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds of the optimiser's arithmetic: it reads and writes its numbers once, and is bound by memory.

    On the GPU over its bandwidth; offloaded, over the host's, shared by a node's GPUs, ADAM_ON_HOST times, with float32
    gradients down and weights up over PCIe. Where the host holds the sum over micro-batches (ZeRO-3, and ZeRO-2 in
    float32 with several), each of them brings it up and takes it down.
    """
    engine, size = config.engine, BYTES[config.model.dtype]
    shared = engine.name == "deepspeed" and engine.zero_stage >= 1
    own = shape.parameters / (machine.ranks if shared else 1)
    traffic = own * (2 * moment_bytes(config) + 8 + 4 + size)
    if engine.name == "local" or engine.offload == "none":
        return traffic / (machine.bandwidth * 1e9)
    count = micro_batches(config, machine, shape, prompts_a_rank(config, machine))
    through = 4 + size
    if engine.zero_stage == 3:
        through += 8 * count
    elif engine.zero_stage == 2 and config.model.dtype == "float32" and count > 1:
        through += 8 * count - 4
    passes = ADAM_ON_HOST[config.optimizer.name]
    return passes * traffic * machine.gpus / (machine.host_bandwidth * 1e9) + own * through / (machine.pcie * 1e9)


def weight_sync_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds to put the trained weights into vLLM, once a rollout.

    vLLM's old weights go to the host as it falls asleep and come back as it wakes, over PCIe; the trained ones are
    gathered under ZeRO-3, then copied on the GPU.
    """
    if config.rollout.engine != "vllm":
        return 0.0
    own = BYTES[config.model.dtype] * shape.parameters / config.rollout.tensor_parallel
    slept = 0.0 if machine.on_cpu else 2 * own / (machine.pcie * 1e9)
    return slept + gather_time(config, shape, machine) + 2 * own / (machine.bandwidth * 1e9)


def evaluation_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds of one evaluation on held-out problems: a rollout of its own size."""
    settings = config.evaluation
    sampled = {name: getattr(settings, name) for name in ("max_new_tokens", "batch_sequences")}
    rollout = replace(config.rollout, prompts=settings.problems, responses=settings.samples, **sampled)
    optimizer = replace(config.optimizer, mini_batch_prompts=settings.problems)
    task = replace(config.task, train_problems=max(config.task.train_problems, settings.problems))
    return rollout_time(replace(config, rollout=rollout, optimizer=optimizer, task=task), shape, machine)[0]


def run_time(config: Config, shape: Shape, machine: Machine) -> float:
    """Seconds of the whole run: every step, and the evaluations."""
    total, every = config.train.rollouts, config.evaluation.every
    evaluations = ceil(total / every) if every else 0
    return total * step_time(config, shape, machine).seconds + (
        evaluations * evaluation_time(config, shape, machine) if evaluations else 0.0
    )


def widened(config: Config, ranks: int) -> Config | None:
    """The configuration with the smallest mini-batch, no smaller than its own, that gives every rank a prompt.

    A larger mini-batch is another run: fewer optimiser steps a rollout. None where no mini-batch divides both ways.
    """
    prompts, mini = config.rollout.prompts, config.optimizer.mini_batch_prompts
    fitting = [n for n in range(mini, prompts + 1) if prompts % n == 0 and n % ranks == 0]
    if not fitting:
        return None
    return replace(config, optimizer=replace(config.optimizer, mini_batch_prompts=fitting[0]))


def scale_out(config: Config, shape: Shape, machine: Machine, most: int = 64) -> list[tuple[Machine, Config, Step]]:
    """(machine, configuration, step) on 1, 2, 4, ... nodes like the machine's, as far as the prompts go."""
    rows = []
    nodes = 1
    while nodes <= most:
        larger = replace(machine, nodes=nodes)
        wide = widened(config, larger.ranks)
        if wide is not None:
            rows.append((larger, wide, step_time(wide, shape, larger)))
        nodes *= 2
    return rows
