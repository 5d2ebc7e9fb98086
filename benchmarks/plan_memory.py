"""What `steer plan` says an update needs beside what it took here: on a CPU, the local engine and DeepSpeed's ZeRO.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py --out benchmarks/results/plan_memory.json

Models have random weights: Qwen2.5-0.5B's shape cut to a few layers, where the vocabulary decides, and a small
vocabulary, where activations do. ZeRO 1 to 3 is one rank, in bfloat16 and in float32: what ranks share out is then
whole. Each case is two optimiser steps of two micro-batches in a process of its own (Linux), so that the second
backward pass meets the moments. Measured is what the engine adds to the process as it is made, and the updates at their
peak, weights not included; the plan is the larger of a backward pass's and a step's needs without weights. The C
library is told to give freed blocks back (MALLOC_MMAP_THRESHOLD_): kept by its heap, they added 17% where activations
are many small blocks. A CPU is no GPU here: a bucket takes memory only as it fills, and the plan counts it full in the
backward pass; ZeRO-3's gathered weights are counted up to their limit. About 13 minutes on a quiet core, and 6 GB.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import resident, show

from steer_core import Config, load_config
from steer_core.cli.ending import end
from steer_core.common.environment import environment
from steer_core.planner.machine import CPU, Machine
from steer_core.planner.memory import memory
from steer_core.planner.shapes import read_shape
from steer_core.policy.smoke import byte_tokenizer
from steer_core.rollout.rollout import Rollout

PROMPT = 24
"""Tokens of a prompt: what the plan takes for Countdown's."""


class Case(NamedTuple):
    """A model's shape, a micro-batch and how it is trained; stage: ZeRO's, or None for the local engine."""

    layers: int
    vocabulary: int
    sequences: int
    tokens: int
    activations: str = "keep"
    dtype: str = "float32"
    stage: int | None = None


WHOLE, SMALL = Case(1, 151936, 2, 128), Case(6, 4096, 4, 256)
CASES = {
    "whole vocabulary, 1 layer, 256 tokens": WHOLE,
    "whole vocabulary, 4 layers, 512 tokens": Case(4, 151936, 2, 256),
    "whole vocabulary, 4 layers, 512 tokens, recomputed": Case(4, 151936, 2, 256, "recompute"),
    "vocabulary of 4096, 6 layers, 1024 tokens": SMALL,
    "vocabulary of 4096, 6 layers, 1024 tokens, recomputed": SMALL._replace(activations="recompute"),
} | {
    f"{name}, ZeRO-{stage}, {dtype}": shape._replace(dtype=dtype, stage=stage)
    for name, shape in (("whole vocabulary, 1 layer", WHOLE), ("vocabulary of 4096, 6 layers", SMALL))
    for dtype in ("bfloat16", "float32")
    for stage in (1, 2, 3)
}


def configured(name: str, folder: Path) -> Config:
    """The configuration of a case; each optimiser step has two micro-batches."""
    case = CASES[name]
    zero = [] if case.stage is None else ["engine.name=deepspeed", f"engine.zero_stage={case.stage}"]
    return load_config(
        None,
        [
            f"model.path={folder}",
            f"model.dtype={case.dtype}",
            *zero,
            f"engine.activations={case.activations}",
            f"rollout.max_new_tokens={case.tokens - PROMPT}",
            "rollout.prompts=4",
            f"rollout.responses={case.sequences}",
            "optimizer.mini_batch_prompts=2",
            f"optimizer.micro_batch_sequences={case.sequences}",
            "evaluation.max_new_tokens=8",
            "train.probe_sequences=0",
        ],
    )


def make_model(name: str, folder: Path) -> None:
    """A model of the case's shape with random weights, and a tokenizer of bytes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    case = CASES[name]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=case.vocabulary, hidden_size=896, intermediate_size=4864, num_attention_heads=14,
        num_key_value_heads=2, num_hidden_layers=case.layers, max_position_embeddings=case.tokens,
        tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def rollout_of(config: Config, vocabulary: int) -> Rollout:
    """Random prompts and responses of full length."""
    rows, width = config.rollout.prompts * config.rollout.responses, config.rollout.max_new_tokens
    ids = torch.randint(0, vocabulary, (rows, PROMPT + width), generator=torch.Generator().manual_seed(0))
    masks = torch.ones_like(ids), torch.ones(rows, width, dtype=torch.bool)
    return Rollout(ids[:, :PROMPT], masks[0][:, :PROMPT], ids[:, PROMPT:], masks[1], [""] * rows, ["length"] * rows)


def measure(name: str, folder: Path) -> None:
    """The updates of a case; then, on the last line, the MiB that engine and updates added at their peak."""
    from steer_core.engines import make_engine
    from steer_core.training import loop

    config, grown = configured(name, folder), []
    if CASES[name].stage is not None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        importlib.import_module("deepspeed")  # its code is no part of what the engine adds

    def watched(policy: Any, config: Config) -> Any:
        for parameter in policy.model.parameters():
            parameter.data = parameter.data.clone()  # memory of the process's own, not the file's
        gc.collect()
        before = resident("VmRSS")
        engine = make_engine(policy, config)
        gc.collect()
        grown.append(resident("VmRSS") - before)
        return engine

    loop.make_engine = watched
    trainer = loop.Trainer(config)
    rollout = rollout_of(config, trainer.model.config.vocab_size)
    old = trainer.score_rollout(rollout)
    advantages = torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0))
    batches = list(trainer.batches(rollout, old, advantages))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    trainer.optimizer_steps(batches, 1)
    print(grown[0] + resident("VmHWM") - before, flush=True)


def planned(name: str, folder: Path) -> dict[str, float]:
    """MiB that the plan expects engine and updates to add, by part."""
    config = configured(name, folder)
    moments = memory(config, read_shape(folder, name), Machine(**CPU)).moments
    own = {moment: sum(held.values()) for moment, held in moments.items() if moment != "rollout"}
    parts = moments[max(own, key=lambda moment: own[moment])]
    return {part: size / 2**20 for part, size in parts.items() if part not in ("weights", "other") and size}


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "FOLDER"), help="only print the MiB of one case")
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure[0], Path(args.measure[1]))
    cases = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            make_model(name, Path(folder))
            parts = planned(name, Path(folder))
            command = [sys.executable, __file__, "--measure", name, folder]
            given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.strip()[-2000:]}")
            measured = float(done.stdout.split()[-1])
        total = sum(parts.values())
        cases[name] = {"measured_mib": round(measured), "planned_mib": round(total), "planned_over_measured": round(
            total / measured, 3), "planned_parts_mib": {part: round(size) for part, size in parts.items()}}  # fmt: skip
        print(name, json.dumps(cases[name]), flush=True)
    about = environment() | {"command": "OMP_NUM_THREADS=1 python benchmarks/plan_memory.py"}
    show({"cases": cases, "environment": about}, args.out)


if __name__ == "__main__":
    end(main)
