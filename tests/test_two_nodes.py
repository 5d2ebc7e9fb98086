"""Two nodes on one machine: two `torchrun --nnodes 2` agents on loopback give the run of one node's two ranks."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from problem_files import row, write
from processes import free_port
from safetensors.torch import load_file
from small import SMALL, without_time

from steer_core.runs.folder import RunFolder

pytestmark = pytest.mark.long

EMBEDDED = ["steer", *SMALL, "train.rollouts=2", "evaluation.problems=2", "train.threads=1"]
SMOKE = ["paper/qwen2.5-math-1.5b-steer", "--scale", "smoke"]
DEEPSPEED = ["engine.name=deepspeed", "engine.zero_stage=2"]
RUNS = {
    "local": (EMBEDDED, []),
    "DeepSpeed": ([*EMBEDDED, *DEEPSPEED], ["deepspeed"]),
    "smoke": (SMOKE, ["deepspeed", "vllm"]),
}
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}


def agents(count: int) -> list[list[str]]:
    """How `torchrun` is begun on each of so many nodes, for two ranks in all."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(2 // count)]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "nodes"]
    return [[*launcher, "--nnodes", str(count), *meeting] for _ in range(count)]


def trained(folder: Path, nodes: int, arguments: list[str], data: Path) -> RunFolder:
    """Train two ranks on so many nodes into a folder; every node must end well."""
    environment = os.environ | VLLM | {"STEER_DATA": str(data)}
    command = ["-m", "steer_core", "train", *arguments, "--no-report", "--out", str(folder)]
    told = [folder.with_name(f"{folder.name}-{node}.txt") for node in range(nodes)]
    processes = []
    for agent, output in zip(agents(nodes), told, strict=True):
        with output.open("w") as file:
            started = subprocess.Popen([*agent, *command], env=environment, stdout=file, stderr=subprocess.STDOUT)
            processes.append(started)
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * nodes, "\n".join(output.read_text() for output in told)
    return RunFolder.open(folder)


@pytest.mark.parametrize("name", RUNS)
def test_two_nodes_give_the_run_of_one_nodes_two_ranks(tmp_path, name):
    arguments, extras = RUNS[name]
    if missing := [extra for extra in extras if find_spec(extra) is None]:
        pytest.skip(f"needs {' and '.join(missing)}")
    problems = [row(f"What is {i} + {i}?", str(2 * i)) for i in range(80)]
    data = write(tmp_path / "data", problems, "DAPO-Math-17k.parquet")
    one, two = (trained(tmp_path / f"nodes {nodes}", nodes, arguments, data) for nodes in (1, 2))
    assert len(one.read()) == one.config.train.rollouts
    if arguments is not SMOKE:  # whose rewards are all 0
        assert all(row["grad_norm/max"] > 0 for row in one.read())
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_time(two.read(log)) == without_time(one.read(log))
    assert weights(two) == weights(one)


def weights(run: RunFolder) -> dict[str, list]:
    """The last checkpoint's weights, as bits."""
    saved = load_file(run.checkpoints.saved()[-1] / "model.safetensors")
    return {name: weight.flatten().view(torch.uint8).tolist() for name, weight in saved.items()}
