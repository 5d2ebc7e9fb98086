"""Everything that is timed on a GPU, in one command: one folder of JSON, with a page of tables.

    python benchmarks/gpu.py                       # into benchmarks/results/cuda; a few minutes
    python benchmarks/gpu.py --only training_qwen2.5-1.5b sampling

First the card's peak: the product of two 8192 x 8192 matrices in bfloat16, the fastest of 30. Shares of it are then
taken of training (forward, backward and recomputed arithmetic, as `steer plan` counts it) and of sampling (2 operations
a parameter and response token). Each benchmark is a process of its own; one that fails is told, and the others go on.
On a machine without CUDA nothing is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import RESULTS, about, show
from tables import page

from steer_core import SteerError
from steer_core.cli.ending import end
from steer_core.common.files import read_json

HERE = Path(__file__).parent
SIZE, TRIES = 8192, 30
CUDA = "--device cuda"
BENCHMARKS = {
    "token_statistics": f"token_statistics.py {CUDA}",
    "ladder_embedded": f"ladder.py {CUDA}",
    "ladder_qwen2.5-0.5b": f"ladder.py {CUDA} --model qwen2.5-0.5b --sequences 8 --prompt 128 --tokens 512 "
    "--micro-batch 2 --repeats 8",
    "training_embedded": f"training.py {CUDA} --engine local --shape embedded --sequences 512 --micro-batch 32",
    "training_qwen2.5-1.5b": f"training.py {CUDA} --shape Qwen/Qwen2.5-Math-1.5B --sequences 32 --micro-batch 4 "
    "--prompt 256 --tokens 1024 --recompute 1",
    "sampling": f"sampling.py {CUDA} --dtype bfloat16 --tokens 128",
    "loop": f"loop.py {CUDA}",
    "growth": f"growth.py {CUDA}",
}
"""Name of the JSON file to the benchmark that writes it."""


def peak_tflops() -> float:
    """Bfloat16 operations a second of the fastest of some matrix products, in 10^12."""
    one, other = (torch.randn(SIZE, SIZE, device="cuda").bfloat16() for _ in range(2))
    seconds = []
    for _ in range(TRIES):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        one @ other
        stop.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(stop) / 1000)
    return 2 * SIZE**3 / min(seconds) / 1e12


def run(name: str, peak: float, out: Path) -> dict[str, object]:
    """One benchmark into its file: its seconds, and the last line of its errors where it failed."""
    words = [*BENCHMARKS[name].split(), "--out", str(out / f"{name}.json")]
    if name.startswith("training"):
        words += ["--peak-tflops", f"{peak:.1f}"]
    print(f"gpu: {' '.join(words)}", flush=True)
    (out / f"{name}.json").unlink(missing_ok=True)  # of an earlier run: a failure leaves none behind
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=HERE, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    told = {"seconds": round(time.perf_counter() - began, 1)}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        print("\n".join(lines[-20:]), file=sys.stderr)
        told["failed"] = lines[-1]
    return told


def shares(out: Path, peak: float) -> dict[str, float]:
    """Share of the peak by benchmark: of training as it says itself, of sampling by model, batch and engine."""
    found: dict[str, float] = {}
    for path in sorted(out.glob("training*.json")):
        found[path.stem] = read_json(path, "results", "make it again")["share_of_bf16_peak"]["median"]
    if (out / "sampling.json").exists():
        for name, model in read_json(out / "sampling.json", "results", "make it again")["models"].items():
            for batch, cell in model["batches"].items():
                for engine, speed in cell["tokens_a_second"].items():
                    flops = 2 * model["parameters"] * speed["median"]
                    found[f"sampling, {name}, {batch} sequences, {engine}"] = flops / peak / 1e12
    return found


def main() -> int:
    """Measure and write; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="which (all)")
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda", help="folder (benchmarks/results/cuda)")
    parser.add_argument("--peak", action="store_true", help="only print the measured peak and the card")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SteerError("gpu: this machine has no CUDA GPU that torch can use; `make bench` times on a CPU")
    if args.peak:
        print(json.dumps({"tflops": peak_tflops(), "gpu": torch.cuda.get_device_name()}))
        return 0
    # in a process of its own, so that this one holds none of the card's memory
    asked = subprocess.run([sys.executable, __file__, "--peak"], capture_output=True, text=True, check=True)
    found = json.loads(asked.stdout.splitlines()[-1])
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    ran = {name: run(name, found["tflops"], out) for name in args.only}
    result = {
        "bf16_matmul_peak_tflops": found["tflops"],
        "share_of_measured_peak": shares(out, found["tflops"]),
        "benchmarks": ran,
        "environment": about() | {"gpu": found["gpu"]},
    }
    show(result, out / "peak.json")
    (out / "README.md").write_text(page(out), encoding="utf-8")
    return int(any("failed" in told for told in ran.values()))


if __name__ == "__main__":
    end(main)
