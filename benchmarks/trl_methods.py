"""What every method adds to TRL: time over plain TRL, side by side, and memory beside TRL's own entropy bonus.

    OMP_NUM_THREADS=1 python benchmarks/trl_methods.py --out benchmarks/results/trl_methods.json

Each arm is a real trainer of the embedded model. Its work is what TRL does with one generation batch apart from
sampling: rewards, old log-probs, and every optimiser step; the completions are the same for all arms. Arms are taken in
turn within one run, so that a noisy machine slows all of them; a ratio is that of two times of one round. Twice: with
one micro-batch an optimiser step, where scope `step` needs no further pass, and with two, where it needs a values pass.
`TRL, entropy bonus` is TRL's own `entropy_coef`. Memory is what such work adds at its peak, in a process apart (Linux)
that gives freed memory back at once. Every method is at its default settings. About 10 minutes with 6 repeats.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import about, added, in_own_process, interval, rounds, show

from steer_core import INTERVENTIONS, load_policy, make_task
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.config.config import load_config
from steer_core.integrations.support import refusal_in_trl

PLAIN, BONUS = "TRL", "TRL, entropy bonus"
SPLITS = {"one micro-batch a step": 1, "two micro-batches a step": 2}
METHODS = [name for name in INTERVENTIONS if name != "none" and refusal_in_trl(INTERVENTIONS[name]()) is None]
STEPS = 2
"""Optimiser steps that a generation batch feeds."""


class Arm:
    """A trainer and the generation batch that it works on. completions: those of another arm; else it samples."""

    def __init__(self, name: str, split: int, responses: int, folder: str, completions: Any = None) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        from steer_core.integrations.trl import InterventionGRPOTrainer

        policy, task = load_policy("embedded"), make_task(load_config(None, []).task, None)
        prompts = [problem.prompt for problem in task.problems("train", responses // 8)]
        settings = GRPOConfig(
            folder,
            max_steps=1,
            num_generations=8,
            per_device_train_batch_size=responses // STEPS // split,
            gradient_accumulation_steps=split,
            steps_per_generation=STEPS * split,
            max_completion_length=64,
            learning_rate=1e-4,
            epsilon_high=0.28,
            delta=10.0,
            entropy_coef=0.001 if name == BONUS else 0.0,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        kind, named = GRPOTrainer, {}
        if name not in (PLAIN, BONUS):
            kind, named = InterventionGRPOTrainer, {"intervention": INTERVENTIONS[name]()}
        self.trainer = kind(
            policy.model, self.reward, settings, Dataset.from_dict({"prompt": prompts}),
            processing_class=policy.tokenizer, **named,
        )  # fmt: skip
        generate = self.trainer._generate

        def kept(prompts: list[str]) -> Any:
            self.completions = copy.deepcopy(generate(prompts) if completions is None else completions)
            return copy.deepcopy(self.completions)

        self.trainer._generate = kept
        self.rows = [{"prompt": prompt} for prompt in prompts for _ in range(8)]
        self.trainer.train()
        if completions is None:
            completions = self.completions
        self.start = copy.deepcopy(policy.model.state_dict())

    @staticmethod
    def reward(completions: list[str], **_: Any) -> list[float]:
        """Something that differs within a group."""
        return [len(text) / 64 - 0.3 for text in completions]

    def begin(self) -> None:
        """The weights and the place in TRL's loop that the work starts from."""
        self.trainer.model.load_state_dict(self.start)
        self.trainer.model.train()
        self.trainer._step = 0

    def work(self) -> None:
        """What TRL does with one generation batch, sampling apart."""
        trainer = self.trainer
        split = trainer.args.gradient_accumulation_steps
        trainer.current_gradient_accumulation_steps = split
        for i in range(STEPS * split):
            trainer.accelerator.gradient_state._set_sync_gradients((i + 1) % split == 0)
            trainer.training_step(trainer.model, self.rows, None)
            if (i + 1) % split == 0:
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()


def arms_of(split: int, responses: int, folder: str) -> dict[str, Arm]:
    """Every arm, all with the completions of the first."""
    first = Arm(PLAIN, split, responses, folder)
    others = {name: Arm(name, split, responses, folder, first.completions) for name in (BONUS, *METHODS)}
    return {PLAIN: first, **others}


def memory(responses: int, folder: str) -> dict[str, int]:
    """MiB that the work adds at its peak, by arm, with two micro-batches a step; the first time does not count."""
    first = Arm(PLAIN, 2, responses, folder)
    found = {}
    for name in (PLAIN, PLAIN, BONUS, *METHODS):
        arm = Arm(name, 2, responses, folder, first.completions)
        arm.begin()
        arm.work()
        arm.begin()
        gc.collect()
        found[name] = round(added(arm.work))
        del arm
    return found


def timed(split: int, args: argparse.Namespace, what: str, folder: str) -> dict[str, np.ndarray]:
    """Seconds of every arm in every round."""
    arms = arms_of(split, args.responses, folder)
    works = {name: arm.work for name, arm in arms.items()}
    return rounds(works, args.repeats, what, lambda name: arms[name].begin())


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(2), default=6, help="rounds of every arm (default %(default)s)")
    parser.add_argument("--responses", type=at_least(16), default=64, help="of a generation batch, a multiple of 16")
    parser.add_argument("--note", help="what should be known of the machine, such as who shared it")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--memory", action="store_true", help="only print the MiB that the arms add, on one line")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            print(json.dumps(memory(args.responses, folder)), flush=True)
            return
        times = {told: timed(split, args, told, folder) for told, split in SPLITS.items()}
    peak = json.loads(in_own_process(__file__, "--memory", "--responses", str(args.responses)))
    result = {
        "seconds_of_trl": {told: float(np.median(seconds[PLAIN])) for told, seconds in times.items()},
        "time_over_trl": {
            name: {told: interval(seconds[name] / seconds[PLAIN]) for told, seconds in times.items()}
            for name in (BONUS, *METHODS)
        },
        "peak_mib_added": peak,
        "repeats": args.repeats,
        **({"note": args.note} if args.note else {}),
        "environment": about(),
    }
    show(result, args.out)


if __name__ == "__main__":
    end(main)
