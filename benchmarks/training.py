"""An update at a real shape on one card: tokens per second, share of the bf16 peak, peak memory beside the plan's.

    python benchmarks/training.py --device cuda --shape Qwen/Qwen2.5-Math-1.5B --out training_cuda.json
    python benchmarks/training.py --shape embedded                     # on a CPU: shows that it runs

Random weights and random responses of full length, STEER, no sampler. On a GPU in bfloat16 with DeepSpeed ZeRO-1 (its
float32 weights are the optimiser's), or in float32 with the local engine (`--engine local`); the first update warms up
and is not counted. Arithmetic counted: forward, backward and, with --recompute, the forward pass again, as
`steer plan` counts it; the share is of the dense bfloat16 peak given by --peak-tflops.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import interval, resident, show
from transformers import AutoConfig, AutoModelForCausalLM

from steer_core import Config, Trainer, load_config
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import environment
from steer_core.planner.machine import CPU, Machine
from steer_core.planner.memory import memory
from steer_core.planner.shapes import Shape, shape_of
from steer_core.policy.model import EMBEDDED
from steer_core.policy.smoke import byte_tokenizer
from steer_core.rollout.rollout import Rollout


def make_model(shape: Shape, folder: Path, dtype: torch.dtype) -> None:
    """A Qwen2 of the shape with random weights, and a tokenizer of bytes."""
    config = AutoConfig.from_pretrained(EMBEDDED)
    config.update(
        {
            "vocab_size": max(shape.vocabulary, 512),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "num_hidden_layers": shape.layers,
            "layer_types": ["full_attention"] * shape.layers,
            "max_position_embeddings": shape.positions,
            "tie_word_embeddings": bool(shape.tied),
        }
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def configured(args: argparse.Namespace, folder: Path) -> Config:
    """One optimiser step an update: 2 prompts of `--sequences` / 2 responses."""
    bf16 = args.engine == "deepspeed" and args.device == "cuda"
    return load_config(
        None,
        [
            f"model.path={folder}",
            f"model.device={args.device}",
            f"model.dtype={'bfloat16' if bf16 else 'float32'}",
            f"engine.name={args.engine}",
            *(["engine.zero_stage=1"] if args.engine == "deepspeed" else []),
            f"engine.activations={'recompute' if args.recompute else 'keep'}",
            "intervention.name=steer",
            "rollout.prompts=2",
            f"rollout.responses={args.sequences // 2}",
            f"rollout.max_new_tokens={args.tokens}",
            "optimizer.mini_batch_prompts=2",
            f"optimizer.micro_batch_sequences={args.micro_batch}",
            "evaluation.max_new_tokens=8",
            "train.probe_sequences=0",
        ],
    )


def random_rollout(args: argparse.Namespace, vocabulary: int) -> Rollout:
    """Random prompts and responses of full length."""
    ids = torch.randint(0, vocabulary, (args.sequences, args.prompt + args.tokens), device=args.device)
    mask, texts = torch.ones_like(ids), [""] * args.sequences
    prompt, response = ids[:, : args.prompt], ids[:, args.prompt :]
    return Rollout(
        prompt, mask[:, : args.prompt], response, mask[:, args.prompt :].bool(), texts, ["length"] * args.sequences
    )


def flops(args: argparse.Namespace, shape: Shape) -> float:
    """Arithmetic of an update: 3 forward passes' worth, 4 with recomputation, and a values pass for STEER's maximum."""
    length = args.prompt + args.tokens
    forward = shape.forward_flops(args.sequences * length, args.sequences * args.tokens, length)
    values = 1 if args.sequences > args.micro_batch else 0
    return forward * (3 + args.recompute + values)


def peak(args: argparse.Namespace, start: bool) -> float:
    """MiB held at the peak since the last call with `start`."""
    if args.device == "cuda":
        if start:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if start:
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmHWM")


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="Qwen/Qwen2.5-Math-1.5B", help="a model that `steer plan` knows, or a folder"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engine", choices=("local", "deepspeed"), default="deepspeed")
    parser.add_argument("--sequences", type=at_least(1), default=8, help="responses an update (default %(default)s)")
    parser.add_argument(
        "--micro-batch", type=at_least(1), default=4, help="sequences a forward pass (default %(default)s)"
    )
    parser.add_argument("--prompt", type=at_least(1), default=32, help="tokens of a prompt (default %(default)s)")
    parser.add_argument("--tokens", type=at_least(1), default=64, help="tokens of a response (default %(default)s)")
    parser.add_argument("--recompute", type=int, choices=(0, 1), default=0, help="gradient checkpointing")
    parser.add_argument("--repeats", type=at_least(1), default=8, help="counted updates (default %(default)s)")
    parser.add_argument(
        "--peak-tflops", type=at_least(0, float), default=989.0, help="dense bf16 peak (default: H100's)"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    args = parser.parse_args()
    shape = shape_of(args.shape)
    with tempfile.TemporaryDirectory() as folder:
        config = configured(args, Path(folder))
        make_model(shape, Path(folder), getattr(torch, config.model.dtype))
        trainer = Trainer(config)
        made = shape_of(folder)
        plan = memory(config, made, Machine(gpus=1) if args.device == "cuda" else Machine(**CPU))
    rollout = random_rollout(args, trainer.model.config.vocab_size)
    advantages = torch.randn(args.sequences, generator=torch.Generator().manual_seed(0)).to(args.device)
    batches = list(trainer.batches(rollout, trainer.score_rollout(rollout), advantages))
    peak(args, start=True)
    seconds = []
    for _ in range(1 + args.repeats):
        began = time.perf_counter()
        trainer.optimizer_steps(copy.copy(batches), 1)
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    times, tokens = np.array(seconds[1:]), args.sequences * (args.prompt + args.tokens)
    moments = {name: sum(parts.values()) / 2**20 for name, parts in plan.moments.items() if name != "rollout"}
    result = {
        "shape": args.shape,
        "parameters": made.parameters,
        "settings": {name: str(value) for name, value in vars(args).items() if name != "out"},
        "tokens_per_second": interval(tokens / times),
        "share_of_bf16_peak": interval(flops(args, made) / times / (args.peak_tflops * 1e12)),
        "peak_memory_mib": round(peak(args, start=False)),
        "planned_memory_mib": {name: round(size) for name, size in moments.items()},
        "environment": environment() | {"command": "python benchmarks/training.py"},
    }
    show(result, args.out)


if __name__ == "__main__":
    end(main)
