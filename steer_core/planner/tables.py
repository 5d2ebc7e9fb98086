"""`steer plan` in words and tables: whether a run fits, the least change that makes it fit, where time goes."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

from rich.table import Table

from steer_core.common.errors import SteerError
from steer_core.common.settings import apply_overrides, build, to_dict
from steer_core.common.tables import rich_table
from steer_core.config.config import Config
from steer_core.planner.machine import GIB, Machine
from steer_core.planner.memory import Memory, fewest_gpus, memory
from steer_core.planner.passes import layout, longest_sequence, micro_batch
from steer_core.planner.shapes import Shape
from steer_core.planner.times import (
    evaluation_time,
    lengths,
    run_time,
    scale_out,
    step_time,
    tokens_per_step,
)

COLUMNS = 132
"""What the tables need."""
TENSOR_PARALLEL = (2, 4, 8)
GPU_SHARES = (0.3, 0.4, 0.5, 0.6)


def plan(config: Config, shape: Shape, machine: Machine) -> dict[str, Any]:
    """Everything that `steer plan` tells, JSON-ready: bytes, seconds and tokens, with the assumptions they rest on."""
    need, step = memory(config, shape, machine), step_time(config, shape, machine)
    told, batch = lengths(config, machine), micro_batch(config, shape)
    changes = [] if need.fits else least_change(config, shape, machine)
    return {
        "model": {**dataclasses.asdict(shape), "parameters": shape.parameters},
        "assumptions": to_dict(machine) | {"prompt_tokens": told.prompt, "response_tokens": told.response},
        "fits": need.fits,
        "shortfalls": need.shortfalls,
        "least_change": changes,
        "fewest_gpus": fewest_gpus(config, shape, machine),
        "memory": {
            "peak": need.peak,
            "total": need.total,
            "limit": need.limit,
            "moments": need.moments,
            "host": need.host,
            "host_limit": need.host_limit,
            "cache_tokens": need.cache_tokens,
            "micro_batch": {
                "layout": layout(config),
                "tokens": batch.tokens,
                "sequences_of_full_length": batch.sequences,
                "prompts_read": batch.prompts,
            },
        },
        "tokens": tokens_per_step(config, machine),
        "seconds": step.parts | {"step": step.seconds, "evaluation": evaluation_time(config, shape, machine)},
        "run_seconds": run_time(config, shape, machine),
        "bottleneck": step.bottleneck,
        "scale_out": _rows(config, shape, machine),
    }


def _rows(config: Config, shape: Shape, machine: Machine) -> list[dict[str, Any]]:
    steps = scale_out(config, shape, machine)
    return [
        {
            "nodes": larger.nodes,
            "gpus": larger.ranks,
            "mini_batch_prompts": wide.optimizer.mini_batch_prompts,
            "fits": memory(wide, shape, larger).fits,
            "seconds": step.parts,
            "step": step.seconds,
            "speed_up": steps[0][2].seconds / step.seconds,
            "bottleneck": step.bottleneck,
        }
        for larger, wide, step in steps
    ]


def candidates(config: Config, shape: Shape) -> list[list[str]]:
    """Changes that save memory, each a list of settings, the least costly first."""
    changes = []
    if config.engine.activations == "keep":
        changes.append(["engine.activations=recompute"])
    sequences, longest = micro_batch(config, shape).sequences, longest_sequence(config, shape)
    if sequences > 1:
        by_tokens = config.optimizer.micro_batch_tokens is not None
        smaller = [n for n in (sequences // 2, 1) if n]
        changes += [
            [f"optimizer.micro_batch_tokens={n * longest}" if by_tokens else f"optimizer.micro_batch_sequences={n}"]
            for n in dict.fromkeys(smaller)
        ]
    if config.rollout.engine == "vllm":
        changes += [[f"rollout.gpu_memory={share}"] for share in GPU_SHARES if share != config.rollout.gpu_memory]
        changes += [[f"rollout.tensor_parallel={t}"] for t in TENSOR_PARALLEL if t > config.rollout.tensor_parallel]
    else:
        half = config.rollout.batch_sequences
        changes += [[f"rollout.batch_sequences={n}"] for n in (half // 4, half // 16) if n]
    deepspeed = [] if config.engine.name == "deepspeed" else ["engine.name=deepspeed"]
    stages = [stage for stage in (1, 2, 3) if deepspeed or stage > config.engine.zero_stage]
    probe = ["train.probe_sequences=0"] if config.train.probe_sequences else []
    changes += [[*deepspeed, f"engine.zero_stage={stage}", *(probe if stage == 3 else [])] for stage in stages]
    if config.engine.offload == "none":
        stage = [] if config.engine.zero_stage else ["engine.zero_stage=2"]
        changes.append([*deepspeed, *stage, "engine.offload=optimizer"])
    if config.engine.offload != "all":
        changes.append([*deepspeed, "engine.zero_stage=3", *probe, "engine.offload=all"])
    return changes


def least_change(config: Config, shape: Shape, machine: Machine, most: int = 3) -> list[str]:
    """The fewest changes of settings, the least costly of them, with which the run fits this machine; or none."""
    data, options = to_dict(config), candidates(config, shape)
    for count in range(1, most + 1):
        for chosen in combinations(options, count):
            settings = list(dict.fromkeys(setting for change in chosen for setting in change))
            if len({setting.split("=")[0] for setting in settings}) < len(settings):
                continue
            try:
                if memory(build(Config, apply_overrides(data, settings)), shape, machine).fits:
                    return settings
            except SteerError:  # settings that do not go together
                continue
    return []


def verdict(told: dict[str, Any], machine: Machine) -> str:
    """Whether the run fits, in a sentence or two; where not, what to change."""
    where = "this machine" if machine.on_cpu else f"{machine.ranks} GPUs of {machine.gpu_memory:g} GiB"
    fewest = told["fewest_gpus"]
    if told["fits"]:
        need = told["memory"]
        most = f"fits: {need['total'] / GIB:.1f} of {need['limit'] / GIB:g} GiB at most, in the {need['peak']}"
        return f"{most}, on {where}." + ("" if machine.on_cpu else f" The fewest GPUs it fits on: {fewest}.")
    text = f"does not fit {where}: {'; '.join(told['shortfalls'])}."
    if told["least_change"]:
        return f"{text} The least change that makes it fit: {' '.join(told['least_change'])}"
    if fewest:
        return f"{text} No change of settings makes it fit; {fewest} GPUs would."
    return f"{text} Neither a change of settings nor more such GPUs makes it fit; take a smaller model."


def tables(told: dict[str, Any], need: Memory, machine: Machine) -> list[Table]:
    """The tables of `steer plan`."""
    return [_memory_table(need, machine), _time_table(told), *([] if machine.on_cpu else [_scale_table(told)])]


def _memory_table(need: Memory, machine: Machine) -> Table:
    parts = dict.fromkeys(part for held in need.moments.values() for part in held)
    columns = {part: [held.get(part) for held in need.moments.values()] for part in parts}
    rows = [[part, *map(_gib, sizes)] for part, sizes in columns.items() if any(sizes)]
    rows.append(["together", *(_gib(sum(held.values())) for held in need.moments.values())])
    what = "process" if machine.on_cpu else "GPU"
    return rich_table(f"memory of a {what}, GiB (limit {need.limit / GIB:g})", ["part", *need.moments], rows)


def host_line(need: Memory) -> str:
    """What a node's host needs, in one line."""
    parts = ", ".join(f"{part} {size / GIB:.0f}" for part, size in need.host.items())
    return f"host memory of a node: {sum(need.host.values()) / GIB:.0f} of {need.host_limit / GIB:.0f} GiB ({parts})"


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def _time_table(told: dict[str, Any]) -> Table:
    tokens, seconds = told["tokens"], told["seconds"]
    rows = [[name, f"{count:,.0f} tokens"] for name, count in tokens.items()]
    rows += [[name, _time(count)] for name, count in seconds.items()]
    rows += [["the whole run", _time(told["run_seconds"])], ["bottleneck", told["bottleneck"]]]
    return rich_table("a step: one rollout and its optimiser steps", ["part", "expected"], rows)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _scale_table(told: dict[str, Any]) -> Table:
    shown = ("rollout", "scoring", "update", "communication")
    rows = [
        [
            f"{row['nodes']} ({row['gpus']})",
            str(row["mini_batch_prompts"]),
            *(f"{row['seconds'][part]:.1f}" for part in shown),
            f"{sum(time for part, time in row['seconds'].items() if part not in shown):.1f}",
            f"{row['step']:.0f}",
            f"{row['speed_up']:.1f}",
            row["bottleneck"] if row["fits"] else "does not fit",
        ]
        for row in told["scale_out"]
    ]
    head = ["nodes (GPUs)", "mini-batch", *shown, "rest", "step", "speed-up", "bottleneck"]
    return rich_table("scaling out, seconds", head, rows)
