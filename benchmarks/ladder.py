"""Time and memory of every rung of the ladder, beside the training step that it describes.

    OMP_NUM_THREADS=1 python benchmarks/ladder.py --out benchmarks/results/ladder_cpu.json
    python benchmarks/ladder.py --model models/smollm2-135m --sequences 4 --tokens 128
    python benchmarks/ladder.py --model qwen2.5-0.5b --device cuda --sequences 8 --tokens 512

The training step is a forward pass, a backward pass and an AdamW step over the same sequences. All are
run in turn within one process, in another order each repeat; a rung's cost is the median of its ratios to
the step of the same repeat, with a 95% bootstrap interval. Memory is what a piece of work adds to the
peak (CUDA: allocated; CPU: resident, Linux only). Tokens are random: cost does not depend on them.
`qwen2.5-0.5b` to `qwen2.5-7b` are made on the spot with random weights at those shapes.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import interval, show
from rich.progress import track
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from steer_core import ENTROPY_CHANGE, ClipRange, Lens, load_policy, score
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import environment
from steer_core.ladder.attribution import influence, mean_entropy_gradient, step_of_output_layer
from steer_core.ladder.passes import derivative, gradient, lens_stats
from steer_core.ladder.real_step import taken_step
from steer_core.policy.sequences import Sequences

SHAPES = {
    "qwen2.5-0.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
}


def model_of(name: str, device: str) -> PreTrainedModel:
    """A model folder's model, or one of SHAPES with random weights, in float32."""
    if name not in SHAPES:
        return load_policy(name, device).model
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.float32).eval()


def random_sequences(model: PreTrainedModel, count: int, prompt: int, tokens: int) -> Sequences:
    """Prompts and responses of random tokens, none of them padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (count, prompt + tokens), generator=generator).to(model.device)
    mask = torch.ones_like(ids)
    return Sequences(ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:])


def works(lens: Lens, optimizer: torch.optim.Optimizer) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    model, new = lens.model, lens_stats(lens)
    count = len(new.entropy)
    generator = torch.Generator().manual_seed(1)
    advantages_N = torch.randn(count, generator=generator).to(model.device)
    slope_N = advantages_N / count
    ascent = gradient(lens, slope_N)
    with taken_step(model, optimizer, ascent) as step:
        pass
    head = replace(lens, output_layer=True)

    def training_step() -> None:
        for sequences, tokens in lens.micro_batches():
            stats = score(model, sequences, lens.temperature)
            (-(stats.logprob.flatten() * slope_N[tokens]).sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def measured() -> None:
        with taken_step(model, optimizer, ascent):
            lens_stats(lens)

    clip = ClipRange()
    return {
        "training step": training_step,
        "forms of one state, all four": lambda: [f(new, new, advantages_N, clip) for f in ENTROPY_CHANGE.values()],
        "output layer": lambda: derivative(head, step_of_output_layer(head, step, gradient(head, slope_N)).update),
        "first order": lambda: derivative(lens, step.update),
        "measured": measured,
        "influence": lambda: influence(lens, slope_N, step, mean_entropy_gradient(lens)),
    }


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """(seconds, MiB added to the peak) of one piece of work."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = resident("VmRSS")
    began = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    del result
    return seconds, (peak - before) / 2**20


def resident(field: str) -> int:
    """Bytes of a memory field of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help=f"a model folder or {', '.join(SHAPES)} (%(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where it runs (%(default)s)")
    parser.add_argument("--sequences", type=at_least(1), default=32, help="sequences of the step (%(default)s)")
    parser.add_argument("--prompt", type=at_least(1), default=16, help="prompt tokens of each (%(default)s)")
    parser.add_argument("--tokens", type=at_least(1), default=24, help="response tokens of each (%(default)s)")
    parser.add_argument("--micro-batch", type=at_least(1), default=8, help="sequences a forward pass (%(default)s)")
    parser.add_argument("--repeats", type=at_least(1), default=20, help="measurements of each (%(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    args = parser.parse_args()
    model = model_of(args.model, args.device)
    lens = Lens(model, random_sequences(model, args.sequences, args.prompt, args.tokens), micro_batch=args.micro_batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, foreach=True)  # too small to change what is timed
    pieces = works(lens, optimizer)
    for work in pieces.values():
        work()
    seconds, memory = {name: [] for name in pieces}, dict.fromkeys(pieces, 0.0)
    order = random.Random(0)
    for _ in track(range(args.repeats), description="ladder"):
        for name in order.sample(list(pieces), len(pieces)):
            spent, added = timed(pieces[name], args.device)
            seconds[name].append(spent)
            memory[name] = max(memory[name], added)
    step = np.array(seconds["training step"])
    result = {
        "model": args.model,
        "parameters": model.num_parameters(),
        "tokens": args.sequences * args.tokens,
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "time over a training step": {name: interval(np.array(values) / step) for name, values in seconds.items()},
        "peak_mib_added": {name: round(value, 1) for name, value in memory.items()},
        "repeats": args.repeats,
        "environment": environment()
        | {
            "command": "python benchmarks/ladder.py "
            + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in vars(args).items() if k != "out"),
        },
    }
    show(result, args.out)


if __name__ == "__main__":
    end(main)
