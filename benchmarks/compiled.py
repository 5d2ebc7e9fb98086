"""Does torch.compile pay in the main job? Scoring and updates of one rollout, every decoder layer compiled or not.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py --out benchmarks/results/compiled.json

The layers are compiled with dynamic shapes, for every micro-batch has its own; attention, which is ours and changes
with the micro-batch, stays outside. The first pass of the compiled layers is their compilation, and is told apart.
About 2 minutes; it needs a C++ compiler.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measure import about, interval, rounds, show, timed
from transformers import AttentionInterface

from steer_core import ADVANTAGES, Trainer, load_config
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.policy import attention


def main() -> None:
    """Time both and print the figures; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(2), default=5, help="rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    trainer = Trainer(load_config(None, ["train.probe_sequences=0", "train.threads=1", "evaluation.every=0"]))
    AttentionInterface.register(attention._NAME, torch._dynamo.disable(attention._attention))
    layers = list(trainer.model.model.layers)
    compiled = [torch.compile(layer.forward, dynamic=True) for layer in layers]
    sampled = trainer.sample(1)
    advantages_B = ADVANTAGES["grpo"](sampled.rewards_PG, sampled.lengths_PG).flatten()
    old = trainer.score_rollout(sampled.rollout)
    batches = list(trainer.batches(sampled.rollout, old, advantages_B))

    def use(arm: str) -> None:
        for layer, forward in zip(layers, compiled, strict=True):
            if arm.startswith("compiled"):
                layer.forward = forward
            else:
                layer.__dict__.pop("forward", None)

    def score() -> None:
        trainer.score_rollout(sampled.rollout)

    def update() -> None:
        trainer.optimizer_steps(batches, 1)

    use("compiled")
    first = timed(score) + timed(update)
    arms = {
        f"{how}, {what}": work for how in ("plain", "compiled") for what, work in (("score", score), ("update", update))
    }
    seconds = rounds(arms, args.repeats, before=use)
    ratios = {what: interval(seconds[f"compiled, {what}"] / seconds[f"plain, {what}"]) for what in ("score", "update")}
    medians = {arm: float(torch.tensor(values).median()) for arm, values in seconds.items()}
    show({"about": about(), "first_pass_seconds": first, "seconds": medians, "compiled_over_plain": ratios}, args.out)


if __name__ == "__main__":
    end(main)
