"""Short runs of every method, advantage, reduction, engine and number of ranks, as plain numbers.

    python tests/record_runs.py FILE.json     # all of them; `--only local` leaves engines and several ranks out

`tests/test_recorded_runs.py` compares a fresh recording with the kept one, `tests/fixtures/recorded_runs.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from steer_core.common.environment import environment

SHORT = (
    "rollout.prompts=8", "rollout.responses=4", "optimizer.mini_batch_prompts=4", "optimizer.micro_batch_sequences=8",
    "optimizer.learning_rate=3e-4", "task.train_problems=64", "evaluation.problems=8", "evaluation.samples=4",
    "evaluation.pass_at=[1, 4]", "evaluation.every=3", "train.rollouts=3", "train.checkpoint_every=3",
    "train.probe_sequences=4", "train.logged_responses=2",
)  # fmt: skip
METHODS = {
    "none": (),
    "steer": (),
    "steer rollout quantile": ("intervention.scope=rollout", "intervention.normaliser=quantile"),
    "steer micro linear": ("intervention.scope=micro", "intervention.map=linear", "intervention.form=released"),
    "steer lowering binary": ("intervention.sides=lowering", "intervention.form=exact", "intervention.map=binary"),
    "steer covariance": ("intervention.form=covariance",),
    "clip-higher": (),
    "entropy-loss": (),
    "adaptive-entropy-loss": ("intervention.target=0.5",),
    "fork-tokens": (),
    "w-reinforce": (),
    "entropy-advantage": (),
    "clip-cov": ("intervention.low=0", "intervention.share=0.02"),
    "kl-cov": ("intervention.share=0.02",),
    "quadrants": (),
    "influence": (),
    "stare": ("intervention.target=9",),
    "entropic": (),
    "entropic line": ("intervention.target=0.4 to 0.2 over 3",),
    "entrocraft": ("intervention.target=0.5",),
    "erc": (),
    "ce-gppo": ("algorithm.clip_low=0.02", "algorithm.clip_high=0.02"),
    "influence target": ("intervention.target=0.35",),
    "steer-control": (),
    "steer-control uniform": ("intervention.control=uniform",),
}  # fmt: skip
"""A method's name, anything behind it to tell settings apart, and those settings."""
ADVANTAGES = ("dr-grpo", "rloo", "opo", "reinforce++", "reinforce++-baseline")
REDUCTIONS = ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
OTHERS = {
    "sgd": ("optimizer.name=sgd", "optimizer.learning_rate=0.1"),
    "float64": ("model.dtype=float64",),
    "token budget": ("optimizer.micro_batch_tokens=300",),
    "packed": ("optimizer.micro_batch_tokens=300", "optimizer.packing=packed", "model.attention=eager"),
    "recompute": ("engine.activations=recompute",),
    "draws by prompt": ("rollout.draws=prompt",),
}
STEER = ("intervention.name=steer",)
RANKS = {
    "2 ranks steer": (*STEER, "rollout.draws=prompt"),
    "2 ranks kl-cov": ("intervention.name=kl-cov", "intervention.share=0.02", "rollout.draws=prompt"),
    "2 ranks influence": ("intervention.name=influence", "rollout.draws=prompt"),
    "2 ranks token budget": (*STEER, "rollout.draws=prompt", "optimizer.micro_batch_tokens=300"),
}
ZERO = {
    f"deepspeed {stage}": (*STEER, "engine.name=deepspeed", f"engine.zero_stage={stage}", "rollout.draws=prompt")
    + (("train.probe_sequences=0",) if stage == 3 else ())
    for stage in range(4)
} | {"deepspeed bfloat16": (*STEER, "engine.name=deepspeed", "model.dtype=bfloat16", "rollout.draws=prompt")}


def plain() -> dict[str, tuple[str, ...]]:
    """The runs of one process of plain torch: name to settings."""
    return {
        **{name: (f"intervention.name={name.split(' ')[0]}", *more) for name, more in METHODS.items()},
        **{f"advantage {name}": (f"algorithm.advantage={name}",) for name in ADVANTAGES},
        **{f"reduction {name}": (*STEER, f"algorithm.reduction={name}") for name in REDUCTIONS},
        **{name: (*STEER, *more) for name, more in OTHERS.items()},
    }


def measured(folder: Path) -> dict:
    """What a finished run wrote, clock readings apart: its last metrics and evaluation, and a hash of its weights."""
    import torch
    from safetensors.torch import load_file

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    weights = load_file(sorted((folder / "checkpoints").glob("step_*"))[-1] / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in (*rows, *evaluations)]
    everything = json.dumps(kept, sort_keys=True).encode()
    last = {key: value for key, value in kept[len(rows) - 1].items() if key in KEPT}
    return {
        "weights_sha256": digest.hexdigest(),
        "logs_sha256": hashlib.sha256(everything).hexdigest(),
        "length": float(sum(w.double().square().sum() for w in weights.values()) ** 0.5),
        "last": last,
        "correct": evaluations[-1]["correct"],
    }


KEPT = ("entropy/policy", "reward/mean", "loss", "grad_norm/mean", "lambda/mean", "entropy_change/paper",
        "entropy_change/exact", "clip/high", "probe/change/measured")  # fmt: skip


def train(settings: tuple[str, ...], folder: Path, ranks: int = 1, fresh: bool = False) -> dict:
    """One short run into a folder; in this process unless several ranks or `fresh` ask for others."""
    words = ["train", *SHORT, *settings, "--out", str(folder), "--no-report"]
    if ranks == 1 and not fresh:
        from steer_core.cli.main import main

        try:
            main(words)
        except SystemExit as end:
            if end.code:
                raise
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "steer_core"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
        done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{folder.name}: {done.stderr[-2000:]}")
    return measured(folder)


def record(only: str = "all") -> dict[str, dict]:
    """All runs by name."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name, settings in plain().items() if only != "ranks" else ():
            found[name] = train(settings, Path(place) / name.replace(" ", "_"))
        if only != "local":
            for name, settings in RANKS.items():
                found[name] = train(settings, Path(place) / name.replace(" ", "_"), ranks=2)
            for name, settings in ZERO.items():
                for ranks in (1, 2):
                    label = f"{name}, {ranks} ranks"
                    found[label] = train(settings, Path(place) / label.replace(" ", "_"), ranks, fresh=True)
    return found


def main() -> None:
    """Record into a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", choices=("all", "local", "ranks"), default="all")
    args = parser.parse_args()
    runs = record(args.only)
    args.file.write_text(json.dumps({"environment": environment(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
