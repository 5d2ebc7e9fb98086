"""Speed of the main job's parts on one core, and what STEER adds to a training step.

    python benchmarks/throughput.py --out benchmarks/results/throughput.json

Sampling and training are timed on the embedded model at the main job's settings. STEER's cost is a
ratio: the same optimiser steps on the same rollout with and without weights, taken in turn within
one run, so that a noisy machine slows both. About 2 minutes. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from steer_core.config import load_config
from steer_core.environment import environment
from steer_core.run import RunFolder
from steer_core.seeding import derive_seed
from steer_core.trainer import Trainer

ARMS = {"grpo": [], "steer": ["steer.form=paper"]}


def rollout_and_batches(trainer: Trainer):
    """One rollout at the trainer's settings: (response tokens, seconds to sample it, its mini-batches)."""
    config = trainer.config
    problems = trainer.problems_of(1)
    began = time.perf_counter()
    rollout = trainer.engine.generate(
        [problem.prompt for problem in problems], config.rollout.responses, config.rollout, derive_seed(0, "benchmark")
    )
    seconds = time.perf_counter() - began
    old = trainer.score_rollout(rollout)
    advantages = torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0))
    return int(rollout.response_mask_BT.sum()), seconds, list(trainer.batches(rollout, old, advantages))


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="measurements of each (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            arm: Trainer(RunFolder(Path(folder) / arm, load_config(None, overrides))) for arm, overrides in ARMS.items()
        }
        sampling, (tokens, _, batches) = [], rollout_and_batches(trainers["grpo"])
        for _ in range(max(3, args.repeats // 3)):
            count, seconds, _ = rollout_and_batches(trainers["grpo"])
            sampling.append(count / seconds)
        start = copy.deepcopy(trainers["grpo"].model.state_dict())
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        order = random.Random(0)
        for _ in track(range(args.repeats), description="training"):
            for arm in order.sample(list(ARMS), len(ARMS)):
                trainers[arm].model.load_state_dict(start)
                began = time.perf_counter()
                trainers[arm].update(batches, step=1)
                seconds[arm].append(time.perf_counter() - began)

    ratios = np.array(seconds["steer"]) / np.array(seconds["grpo"])
    picks = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=-1), [0.025, 0.975])
    result = {
        "sampling_tokens_per_second": {"median": float(np.median(sampling)), "best": max(sampling)},
        "training_tokens_per_second": {
            "median": tokens / float(np.median(seconds["grpo"])),
            "best": tokens / min(seconds["grpo"]),
        },
        "steer_over_grpo_update_time": {"median": float(np.median(ratios)), "low": float(low), "high": float(high)},
        "repeats": args.repeats,
        "tokens_a_rollout": tokens,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "environment": environment() | {"command": "python benchmarks/throughput.py"},
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
