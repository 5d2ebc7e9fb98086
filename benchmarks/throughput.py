"""Speed of the main job's parts on one core, and what STEER adds to a training step.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py --out benchmarks/results/throughput.json

Sampling and training are timed on the embedded model at the main job's settings. Each cost is a
ratio: the same optimiser steps on the same rollout by two arms, taken in turn within one run, so
that a noisy machine slows both. `bare` is GRPO without the readings that every arm logs (the
entropy-change forms, quadrants, ratios). The probe, which the other arms go without, watches one of
the 16 optimiser steps. With 4 micro-batches a step, scope `step` needs a values pass and scope
`rollout` does not. Memory is what one rollout's updates add at their peak by a fresh trainer of each arm, in a
process apart (Linux) that gives freed memory back at once. Every registered method at its default settings is
timed against GRPO on the first 4 of the 16 optimiser steps. About 4 minutes. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import about, added, in_own_process, interval, resident, rounds, show

from steer_core import INTERVENTIONS, Trainer, load_config
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.rollout.rollout import Rollout

__all__ = ["resident", "show"]  # other benchmarks find them here too

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

METHOD_STEPS = 4
"""Optimiser steps of the rollout's 16 that the methods are timed on."""
METHODS = {f"method {name}": [f"intervention.name={name}", UNWATCHED] for name in INTERVENTIONS}
"""Every registered method at its default settings; `method none` is GRPO."""


def sample(trainer: Trainer, seed: int) -> tuple[Rollout, float]:
    """One rollout at the trainer's settings, and its response tokens per second."""
    prompts, config = (
        [problem.prompt for problem in trainer.problems_of(1)],
        trainer.config.rollout,
    )
    began = time.perf_counter()
    rollout = trainer.sampler.generate(prompts, config.responses, config, seed)
    return rollout, int(rollout.response_mask_BT.sum()) / (time.perf_counter() - began)


def memory() -> dict[str, int]:
    """MiB that one rollout's updates add at their peak, by arm; an update that is not counted comes first."""
    rollout, _ = sample(Trainer(load_config(None, ARMS["grpo"])), seed=0)
    found = {}
    for arm in ("grpo", *ARMS):
        trainer = Trainer(load_config(None, ARMS[arm]))
        batches = list(trainer.batches(rollout, trainer.score_rollout(rollout), signs(rollout)))
        gc.collect()
        found[arm] = round(added(partial(trainer.optimizer_steps, batches, 1)))
        del trainer, batches
    return found


def signs(rollout: Rollout) -> torch.Tensor:
    """Advantages of every response, drawn at random."""
    return torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0))


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(1), default=6, help="measurements of each (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--memory", action="store_true", help="only print the MiB that the updates add, on one line")
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory()), flush=True)
        return

    trainers = {arm: Trainer(load_config(None, changes)) for arm, changes in (ARMS | METHODS).items()}
    trainers["bare"].update.token_log = lambda *_: {}
    rollout, _ = sample(trainers["grpo"], seed=0)
    sampling = [sample(trainers["grpo"], seed)[1] for seed in range(1, 1 + max(3, args.repeats // 3))]
    advantages, old = signs(rollout), trainers["grpo"].score_rollout(rollout)
    batches = {arm: list(trainer.batches(rollout, old, advantages)) for arm, trainer in trainers.items()}
    batches |= {arm: batches[arm][:METHOD_STEPS] for arm in METHODS}
    start = copy.deepcopy(trainers["grpo"].model.state_dict())
    updates = {arm: partial(trainer.optimizer_steps, batches[arm], 1) for arm, trainer in trainers.items()}
    for arm, trainer in trainers.items():
        trainer.optimizer_steps(batches[arm][:1], 1)  # what comes once, such as moments, is made before the clock runs
    times = rounds(updates, args.repeats, "training", lambda arm: trainers[arm].model.load_state_dict(start))

    tokens = int(rollout.response_mask_BT.sum())
    result = {
        "sampling_tokens_per_second": {"median": float(np.median(sampling)), "best": max(sampling)},
        "training_tokens_per_second": {
            "median": tokens / float(np.median(times["grpo"])),
            "best": tokens / float(times["grpo"].min()),
        },
        "update_time_ratios": {name: interval(times[a] / times[b]) for name, (a, b) in RATIOS.items()},
        "method_time_ratios": {
            arm.removeprefix("method "): interval(times[arm] / times["method none"])
            for arm in METHODS
            if arm != "method none"
        },
        "repeats": args.repeats,
        "tokens_a_rollout": tokens,
        "update_peak_memory_mib": json.loads(in_own_process(__file__, "--memory")),
        "environment": about(),
    }
    show(result, args.out)


if __name__ == "__main__":
    end(main)
