"""Speed of the main job's parts on one core, and what STEER adds to a training step.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py --out benchmarks/results/throughput.json

Sampling and training are timed on the embedded model at the main job's settings. Each cost is a
ratio: the same optimiser steps on the same rollout by two arms, taken in turn within one run, so
that a noisy machine slows both. `bare` is GRPO without the readings that every arm logs (the
entropy-change forms, quadrants, ratios). The probe, which the other arms go without, watches one of
the 16 optimiser steps. With 4 micro-batches a step, scope `step` needs a values pass and scope
`rollout` does not. Memory is what one rollout's updates add to a process at their peak, each arm in a
process of its own (Linux), with freed memory given back at once. About 10 minutes. Run it on a quiet
machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from steer_core import Trainer, load_config
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import environment
from steer_core.rollout.rollout import Rollout

STEER = "intervention.name=steer"
SPLIT = "optimizer.micro_batch_sequences=8"
UNWATCHED = "train.probe_sequences=0"
ARMS = {
    "bare": [UNWATCHED],
    "grpo": [UNWATCHED],
    "grpo with the probe": [],
    "steer": [STEER, UNWATCHED],
    "grpo, 4 micro-batches": [SPLIT, UNWATCHED],
    "steer, 4 micro-batches, scope step": [STEER, SPLIT, UNWATCHED],
    "steer, 4 micro-batches, scope rollout": [STEER, SPLIT, "intervention.scope=rollout", UNWATCHED],
    "steer, 4 micro-batches, scope micro": [STEER, SPLIT, "intervention.scope=micro", UNWATCHED],
    "influence": ["intervention.name=influence", UNWATCHED],
}
RATIOS = {
    "grpo with the probe over grpo": ("grpo with the probe", "grpo"),
    "steer over grpo": ("steer", "grpo"),
    "steer with all readings over bare grpo": ("steer", "bare"),
    "steer over grpo, 4 micro-batches, scope step": ("steer, 4 micro-batches, scope step", "grpo, 4 micro-batches"),
    "influence over grpo": ("influence", "grpo"),
    "steer over grpo, 4 micro-batches, scope micro": ("steer, 4 micro-batches, scope micro", "grpo, 4 micro-batches"),
    "steer over grpo, 4 micro-batches, scope rollout": (
        "steer, 4 micro-batches, scope rollout",
        "grpo, 4 micro-batches",
    ),
}


def sample(trainer: Trainer, seed: int) -> tuple[Rollout, float]:
    """One rollout at the trainer's settings, and its response tokens per second."""
    prompts, config = (
        [problem.prompt for problem in trainer.problems_of(1)],
        trainer.config.rollout,
    )
    began = time.perf_counter()
    rollout = trainer.sampler.generate(prompts, config.responses, config, seed)
    return rollout, int(rollout.response_mask_BT.sum()) / (time.perf_counter() - began)


def interval(ratios: np.ndarray) -> dict[str, float]:
    """The median of paired ratios and its 95% bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=-1), [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def peak_memory(arm: str) -> float:
    """MiB that one rollout's updates by an arm add at most, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", arm]
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed blocks go back, or its heap hides what is needed
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
    return float(done.stdout.split()[-1])


def update_once(arm: str) -> None:
    """One rollout's updates by an arm; then, on the last line, the MiB they added to this process at their peak."""
    trainer = Trainer(load_config(None, ARMS[arm]))
    rollout, _ = sample(trainer, seed=0)
    batches = list(trainer.batches(rollout, trainer.score_rollout(rollout), signs(rollout)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    trainer.optimizer_steps(batches, 1)
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """A memory reading of this process in MiB, as Linux keeps it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def signs(rollout: Rollout) -> torch.Tensor:
    """Advantages of every response, drawn at random."""
    return torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0))


def show(result: dict, out: Path | None) -> None:
    """Print a benchmark's figures, and write them to a JSON file where one is named."""
    print(json.dumps(result, indent=2))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(1), default=30, help="measurements of each (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--memory-of", choices=ARMS, help="only print the MiB that one arm's updates add")
    args = parser.parse_args()
    if args.memory_of:
        return update_once(args.memory_of)

    trainers = {arm: Trainer(load_config(None, changes)) for arm, changes in ARMS.items()}
    trainers["bare"].update.token_log = lambda *_: {}
    rollout, _ = sample(trainers["grpo"], seed=0)
    sampling = [sample(trainers["grpo"], seed)[1] for seed in range(1, 1 + max(3, args.repeats // 3))]
    advantages = signs(rollout)
    old = trainers["grpo"].score_rollout(rollout)
    batches = {arm: list(trainer.batches(rollout, old, advantages)) for arm, trainer in trainers.items()}
    start = copy.deepcopy(trainers["grpo"].model.state_dict())
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    order = random.Random(0)
    for _ in track(range(args.repeats), description="training"):
        for arm in order.sample(list(ARMS), len(ARMS)):
            trainers[arm].model.load_state_dict(start)
            began = time.perf_counter()
            trainers[arm].optimizer_steps(batches[arm], 1)
            seconds[arm].append(time.perf_counter() - began)

    tokens = int(rollout.response_mask_BT.sum())
    times = {arm: np.array(values) for arm, values in seconds.items()}
    result = {
        "sampling_tokens_per_second": {"median": float(np.median(sampling)), "best": max(sampling)},
        "training_tokens_per_second": {
            "median": tokens / float(np.median(times["grpo"])),
            "best": tokens / float(times["grpo"].min()),
        },
        "update_time_ratios": {name: interval(times[a] / times[b]) for name, (a, b) in RATIOS.items()},
        "repeats": args.repeats,
        "tokens_a_rollout": tokens,
        "update_peak_memory_mib": {arm: round(min(peak_memory(arm) for _ in range(3))) for arm in ARMS},
        "environment": environment() | {"command": "OMP_NUM_THREADS=1 python benchmarks/throughput.py"},
    }
    show(result, args.out)


if __name__ == "__main__":
    end(main)
