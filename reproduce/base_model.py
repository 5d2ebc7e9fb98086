"""Makes the embedded base model: a Qwen2 of 0.36M parameters, taught Countdown by random play.

    python reproduce/base_model.py --out steer_core/models/countdown
    python reproduce/base_model.py --out models/countdown5 --numbers 5 --threads 1   # the tournament's harder task
    python reproduce/base_model.py --out models/rare-minus --operations 0.48 0.01 0.45 0.06 --steps 2400
    python reproduce/base_model.py --out models/countdown45 --numbers 4 5

Supervised learning on fresh (problem, trace) pairs from random play, training split only, so the
model knows the rules and many ways to play but not how to aim at the target: that is left to RL.
About 4 minutes on 2 CPU cores. The folder loads with `AutoModelForCausalLM` and `AutoTokenizer`.
"""

from __future__ import annotations

import argparse
import random
from itertools import cycle
from pathlib import Path

import torch
from rich.progress import track
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.errors import SteerError
from steer_core.common.settings import build
from steer_core.config.tasks import CountdownConfig
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems import Countdown, split_of
from steer_core.problems.countdown import CHARACTERS, OPERATIONS

CONTEXT = 128


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A freshly initialised Qwen2 with tied embeddings over the tokenizer's characters."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=3,
            num_attention_heads=3,  # heads of 32: vLLM has no CPU kernel for smaller odd sizes
            num_key_value_heads=3,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            use_sliding_window=False,
        )
    )


def batches(
    tasks: list[Countdown], tokenizer: PreTrainedTokenizerBase, size: int, seed: int, weights: list[float] | None = None
):
    """Endless batches of training-split pairs, from each task in turn: (input_ids, attention_mask, labels), (B, T)."""
    rng = random.Random(seed)
    streams = cycle([task.solved(rng, weights) for task in tasks])
    while True:
        rows = []
        while len(rows) < size:
            problem, trace = next(next(streams))
            if split_of(problem.id) == "train":
                prompt, response = tokenizer(problem.prompt)["input_ids"], tokenizer(trace)["input_ids"]
                rows.append((prompt, [*response, tokenizer.eos_token_id]))
        width = max(len(prompt) + len(response) for prompt, response in rows)
        ids = torch.full((size, width), tokenizer.pad_token_id)
        labels = torch.full((size, width), -100)
        for i, (prompt, response) in enumerate(rows):
            end = len(prompt) + len(response)
            ids[i, :end] = torch.tensor(prompt + response)
            labels[i, len(prompt) : end] = torch.tensor(response)
        mask = torch.arange(width) < torch.tensor([len(p) + len(r) for p, r in rows])[:, None]
        yield ids, mask.long(), labels


def main() -> None:
    """Train and save; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model and tokenizer to")
    parser.add_argument("--steps", type=at_least(1), default=3600, help="optimiser steps (default %(default)s)")
    parser.add_argument("--batch", type=at_least(1), default=64, help="pairs a step (default %(default)s)")
    parser.add_argument(
        "--learning-rate", type=at_least(0, float), default=3e-3, help="peak, then cosine (default %(default)s)"
    )
    parser.add_argument(
        "--numbers",
        type=at_least(1),
        nargs="+",
        default=[4],
        help="numbers a problem gives; of several, each in turn (default 4)",
    )
    parser.add_argument(
        "--operations",
        type=at_least(0, float),
        nargs="+",
        metavar="WEIGHT",
        help="how often + - * / are played, four weights (default: alike)",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="(default %(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=2, help="torch's threads (default %(default)s)")
    args = parser.parse_args()
    if args.operations is not None and (len(args.operations) != len(OPERATIONS) or not any(args.operations[::2])):
        raise SteerError(f"--operations: {args.operations} are no four weights with that of + or * above 0; give such")
    tasks = [Countdown(build(CountdownConfig, {"numbers": numbers})) for numbers in args.numbers]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = character_tokenizer(CHARACTERS)
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    stream = batches(tasks, tokenizer, args.batch, args.seed, args.operations)
    for step in track(range(args.steps), description="training"):
        ids, mask, labels = next(stream)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f} nats a token")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    end(main)
