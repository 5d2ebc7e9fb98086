"""What `steer plan` says an update needs beside what it took here: the local engine on a CPU, float32.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py --out benchmarks/results/plan_memory.json

Models have random weights: Qwen2.5-0.5B's shape cut to a few layers, where the vocabulary decides, and a small
vocabulary, where activations do. Each case is two optimiser steps in a process of its own (Linux), so that the second
backward pass meets the moments. Measured is what they add to the process at their peak, weights not included; the plan
is gradients, moments, and the larger of a backward pass's and a step's own needs. The C library is told to give freed
blocks back (MALLOC_MMAP_THRESHOLD_): kept by its heap, they added 17% where activations are many small blocks. About 5
minutes on a quiet core, and 5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from throughput import resident, show

from steer_core.config import Config, load_config
from steer_core.environment import environment
from steer_core.planner import CPU, Machine, memory
from steer_core.rollout import Rollout
from steer_core.shapes import read_shape
from steer_core.smoke import byte_tokenizer

PROMPT = 24
"""Tokens of a prompt: what the plan takes for Countdown's."""
CASES = {
    "whole vocabulary, 1 layer, 256 tokens": (1, 151936, 2, 128, "keep"),
    "whole vocabulary, 4 layers, 512 tokens": (4, 151936, 2, 256, "keep"),
    "whole vocabulary, 4 layers, 512 tokens, recomputed": (4, 151936, 2, 256, "recompute"),
    "vocabulary of 4096, 6 layers, 1024 tokens": (6, 4096, 4, 256, "keep"),
    "vocabulary of 4096, 6 layers, 1024 tokens, recomputed": (6, 4096, 4, 256, "recompute"),
}
"""(layers, vocabulary, sequences a micro-batch, tokens of a sequence, activations) of each case."""


def configured(name: str, folder: Path) -> Config:
    """The configuration of a case; each optimiser step has two micro-batches."""
    _, _, sequences, length, activations = CASES[name]
    return load_config(
        None,
        [
            f"model.path={folder}",
            f"engine.activations={activations}",
            f"rollout.max_new_tokens={length - PROMPT}",
            "rollout.prompts=4",
            f"rollout.responses={sequences}",
            "optimizer.mini_batch_prompts=2",
            f"optimizer.micro_batch_sequences={sequences}",
            "evaluation.max_new_tokens=8",
            "train.probe_sequences=0",
        ],
    )


def make_model(name: str, folder: Path) -> None:
    """A model of the case's shape with random weights, and a tokenizer of bytes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    layers, vocabulary, _, length, _ = CASES[name]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2,
        num_hidden_layers=layers, max_position_embeddings=length, tie_word_embeddings=True,
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
    """The updates of a case; then, on the last line, the MiB they added to this process at their peak."""
    from steer_core.run import RunFolder
    from steer_core.trainer import Trainer

    config = configured(name, folder)
    trainer = Trainer(RunFolder(folder / "run", config))
    rollout = rollout_of(config, trainer.model.config.vocab_size)
    old = trainer.score_rollout(rollout)
    advantages = torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0))
    batches = list(trainer.batches(rollout, old, advantages))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    trainer.update(batches, step=1)
    print(resident("VmHWM") - before)


def planned(name: str, folder: Path) -> dict[str, float]:
    """MiB that the plan expects the updates to add, by part."""
    config = configured(name, folder)
    moments = memory(config, read_shape(folder, name), Machine(**CPU)).moments
    own = {moment: sum(held.values()) for moment, held in moments.items() if moment != "rollout"}
    parts = moments[max(own, key=lambda moment: own[moment])]
    return {part: size / 2**20 for part, size in parts.items() if part not in ("weights", "other", "buffers") and size}


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
    main()
