"""How time and memory of an update grow: with tokens a micro-batch, vocabulary, response length and group size.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --out benchmarks/results/growth.json

An update is one optimiser step by STEER over one micro-batch: scores, backward pass, AdamW's step. One factor at a time
is varied around a base case, on a small Qwen2 with random weights and random responses of full length: `tokens` varies
the prompts of a micro-batch at a fixed group, `group` the responses to each of its prompts, `response` their length,
`vocabulary` the rows of the embedding (and of the output layer, which is tied to it). All cases take turns within one
process, in another order each round, after one turn that is not counted. The exponent is the slope of log time on log
size, its interval a 95% bootstrap over rounds: 1 is proportional, below 1 a part of the cost does not grow. Memory is
what a first update adds at its peak, moments and gradients included, in a process of its own (Linux) that gives freed
memory back at once. About 2 minutes.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import about, added, in_own_process, interval, rounds, show, slope, spread
from training import make_model

from steer_core import Trainer, load_config
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.planner.shapes import Shape
from steer_core.rollout.rollout import Rollout


@dataclass(frozen=True)
class Case:
    """A micro-batch: prompts, responses to each, tokens of a prompt and of a response; the model's vocabulary."""

    prompts: int = 2
    group: int = 4
    prompt: int = 64
    response: int = 64
    vocabulary: int = 4096

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch, each prompt counted with each of its responses."""
        return self.prompts * self.group * (self.prompt + self.response)

    def name(self) -> str:
        """All of it in a word."""
        return "-".join(map(str, asdict(self).values()))


BASE = Case()
FACTORS = {
    "tokens": [replace(BASE, prompts=n) for n in (1, 2, 4, 8)],
    "vocabulary": [replace(BASE, vocabulary=n) for n in (1024, 4096, 16384, 65536)],
    "response": [replace(BASE, response=n) for n in (32, 64, 128, 256)],
    "group": [replace(BASE, group=n) for n in (2, 4, 8, 16)],
}
CASES = {case.name(): case for cases in FACTORS.values() for case in cases}


def shape(case: Case) -> Shape:
    """4 layers of 128 features; everything but the vocabulary is the same in every case."""
    return Shape("growth", 4, 128, 4, 2, 32, 384, case.vocabulary, 1024, 1, 1)


def update_of(case: Case, device: str):
    """A function that takes one optimiser step of a case, by a trainer of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(shape(case), Path(folder), torch.float32)
        trainer = Trainer(load_config(None, settings(case, folder, device)))
    rollout = rollout_of(case, device)
    advantages = torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0)).to(device)
    batches = list(trainer.batches(rollout, trainer.score_rollout(rollout), advantages))
    return partial(trainer.optimizer_steps, batches, 1)


def settings(case: Case, folder: str, device: str) -> list[str]:
    """One mini-batch a rollout, of one micro-batch, by STEER."""
    return [
        f"model.path={folder}",
        f"model.device={device}",
        "intervention.name=steer",
        f"rollout.prompts={case.prompts}",
        f"rollout.responses={case.group}",
        f"rollout.max_new_tokens={case.response}",
        f"optimizer.mini_batch_prompts={case.prompts}",
        f"optimizer.micro_batch_sequences={case.prompts * case.group}",
        "evaluation.max_new_tokens=8",
        "train.probe_sequences=0",
        "train.threads=1",
    ]


def rollout_of(case: Case, device: str) -> Rollout:
    """Random prompts, each repeated for its group, and random responses of full length."""
    source, rows = torch.Generator().manual_seed(0), case.prompts * case.group
    prompt = torch.randint(case.vocabulary, (case.prompts, case.prompt), generator=source)
    prompt, response = (
        ids.to(device)
        for ids in (
            prompt.repeat_interleave(case.group, 0),
            torch.randint(case.vocabulary, (rows, case.response), generator=source),
        )
    )
    masks = torch.ones_like(prompt), torch.ones_like(response).bool()
    return Rollout(prompt, masks[0], response, masks[1], [""] * rows, ["length"] * rows)


def memory(device: str) -> dict[str, float]:
    """MiB that the first update of every case adds at its peak; a case not counted comes first."""
    update_of(BASE, device)()
    found = {}
    for name, case in CASES.items():
        gc.collect()
        found[name] = added(update_of(case, device), device)
    return found


def growth(factor: str, times: dict[str, np.ndarray], peaks: dict[str, float]) -> dict:
    """A factor's sizes with times and memory, and the exponents that fit them."""
    cases = FACTORS[factor]
    sizes, names = np.array([getattr(case, factor) for case in cases]), [case.name() for case in cases]
    seconds = np.array([times[name] for name in names])
    return {
        "sizes": sizes.tolist(),
        "seconds": [spread(row) for row in seconds],
        "peak_mib": [round(peaks[name], 1) for name in names],
        "time_exponent": interval(np.array([slope(sizes, column) for column in seconds.T])),
        "memory_exponent": slope(sizes, np.array([peaks[name] for name in names])),
    }


def main() -> None:
    """Measure and print; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=7, help="counted turns of each case (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (%(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--memory", action="store_true", help="only print the MiB of every case, on one line")
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory(args.device)), flush=True)
        return
    peaks = json.loads(in_own_process(__file__, "--memory", "--device", args.device))
    updates = {name: update_of(case, args.device) for name, case in CASES.items()}
    for update in updates.values():
        update()
    times = rounds(updates, args.rounds, "updates")
    result = {
        "base": asdict(BASE) | {"tokens": BASE.tokens},
        "factors": {factor: growth(factor, times, peaks) for factor in FACTORS},
        "repeats": args.rounds,
        "environment": about(),
    }
    show(result, args.out)


if __name__ == "__main__":
    end(main)
