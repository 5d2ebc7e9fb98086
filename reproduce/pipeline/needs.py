"""What the paper's runs of an item need by `steer plan` (memory, hours, disk), and the lines for a cluster."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from pipeline.catalogue import RULES, Item
from pipeline.stages import SCALE, Run, runs_of
from steer_core import SteerError
from steer_core.common.places import CONFIGS
from steer_core.common.settings import build
from steer_core.config.config import load_config
from steer_core.planner import tables
from steer_core.planner.machine import Machine
from steer_core.planner.shapes import shape_of
from steer_core.problems.sets import data_folder

_BYTES_CHECKPOINT, _BYTES_WEIGHTS = 14, 2
"""A parameter in a checkpoint (bfloat16 weights, float32 copy and two moments), and in weights alone."""


@dataclass(frozen=True)
class Need:
    """Of one run: GPUs, hours of training, GiB of disk, and the plan's own verdict."""

    gpus: int
    hours: float
    disk_gib: float
    verdict: str


def need_of(run: Run, scale: str) -> Need:
    """What one run needs at a scale of the paper."""
    gpus, path = SCALE[scale].ranks, CONFIGS / "paper" / f"{run.model}-grpo.yaml"
    config = load_config(path, [*run.settings(), *SCALE[scale].train])
    shape, machine = shape_of(config.model.path), build(Machine, {"gpus": gpus}, "plan")
    told = tables.plan(config, shape, machine)
    disk = shape.parameters * (2 * _BYTES_CHECKPOINT + len(RULES) * _BYTES_WEIGHTS) / 2**30
    return Need(gpus, told["run_seconds"] / 3600, disk, tables.verdict(told, machine))


def total(item: Item, scale: str) -> str:
    """The need of all runs of an item in a few words."""
    runs = runs_of(item)
    needs = [need_of(run, scale) for run in runs]
    hours, disk = sum(need.hours for need in needs), sum(need.disk_gib for need in needs)
    return f"{len(runs)} runs, {hours:.0f} hours of {needs[0].gpus} GPUs, {disk / 1024:.1f} TiB of disk"


def lacking(item: Item, scale: str) -> list[str]:
    """What is not here that the runs need, each with how to bring it: GPUs, model folders, data files."""
    import torch

    found, gpus = [], torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < SCALE[scale].ranks:
        found.append(f"GPUs: {gpus} here, {SCALE[scale].ranks} needed; run this on such a machine, or --scale smoke")
    for folder in item.paper.models().values():
        if not (Path(folder) / "config.json").is_file():
            found.append(f"model {folder}: no such folder; hf download {folder} --local-dir {folder}")
    if data_folder() is None:
        found.append("data: no folder; put the files that `steer data list` names into one and set STEER_DATA to it")
    return found


def refuse_lacking(item: Item, scale: str) -> None:
    """Raise SteerError where something is not here, before anything runs."""
    found = [] if scale == "smoke" else lacking(item, scale)
    if found:
        raise SteerError("--scale: " + scale + " lacks " + "; ".join(found))


def cluster_lines(name: str, item: Item, scale: str) -> str:
    """Every run's need, its line for one node and a Slurm script for all of them."""
    lines = []
    for run in runs_of(item):
        need = need_of(run, scale)
        lines.append(f"# {run.name}: {need.hours:.1f} hours, {need.disk_gib:.0f} GiB of disk. {need.verdict}")
        lines.append(shlex.join(["python", *_arguments(name, scale, run.arm, run.seed, run.model)]))
    arms, gpus = " ".join(item.arms), SCALE[scale].ranks
    hours = max(need_of(run, scale).hours for run in runs_of(item))
    count = len(item.arms) * 2
    script = [
        "#!/bin/bash",
        f"#SBATCH --job-name={name} --nodes=1 --gpus-per-node={gpus} --time={int(hours * 1.5) + 1}:00:00",
        f"#SBATCH --array=0-{count - 1} --requeue",
        f"arms=({arms})",
        f"python -m reproduce {name} --scale {scale} --arms ${{arms[$((SLURM_ARRAY_TASK_ID / 2))]}} "
        "--seeds $((SLURM_ARRAY_TASK_ID % 2))",
    ]
    return "\n".join(["# One line a run; the same line goes on after any end.", *lines, "", "# Slurm:", *script])


def _arguments(name: str, scale: str, arm: str, seed: int, model: str) -> list[str]:
    return ["-m", "reproduce", name, "--scale", scale, "--arms", arm, "--seeds", str(seed), "--models", model]
