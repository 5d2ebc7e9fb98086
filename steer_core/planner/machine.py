"""The machine that a run is planned for, and what it is assumed to reach. Nothing here needs torch."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from steer_core.common.settings import STRICT

GIB = 1 << 30


@settings(config=STRICT, kw_only=True, frozen=True)
class Machine:
    """The machine and the shares of its peak that a run is assumed to reach. Defaults: H100 nodes."""

    gpus: int = Field(8, ge=1)
    """GPUs a node."""
    nodes: int = Field(1, ge=1)
    """Nodes."""
    gpu_memory: float = Field(80.0, gt=0)
    """GiB of memory of a GPU."""
    host_memory: float = Field(1000.0, gt=0)
    """GiB of memory of a node."""
    peak_tflops: float = Field(989.0, gt=0)
    """Dense bfloat16 peak of a GPU in TFLOP/s: 989 for H100, 312 for A100."""
    utilisation: float = Field(0.35, gt=0, le=1)
    """Share of that peak that training and scoring reach."""
    bandwidth: float = Field(3350.0, gt=0)
    """GB/s of a GPU's memory: 3350 for H100, 2039 for A100."""
    decode: float = Field(0.6, gt=0, le=1)
    """Share of that bandwidth, and of the peak, that decoding reaches."""
    decode_overhead: float = Field(4.0, ge=0)
    """Milliseconds of a decoding step that are neither reading nor arithmetic."""
    concurrency: int = Field(256, ge=1)
    """Most sequences that one engine decodes at once (vLLM's max_num_seqs)."""
    response_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a response; by default a third of rollout.max_new_tokens."""
    prompt_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a prompt; by default 250, and 16 in Countdown."""
    nvlink: float = Field(300.0, gt=0)
    """GB/s that a GPU's collectives reach within a node."""
    interconnect: float = Field(40.0, gt=0)
    """GB/s a GPU that reach other nodes: 40 of a 400 Gb/s card for each GPU."""
    latency: float = Field(20.0, ge=0)
    """Microseconds of a collective for each doubling of ranks."""
    pcie: float = Field(25.0, gt=0)
    """GB/s between a GPU and its host."""
    host_bandwidth: float = Field(200.0, gt=0)
    """GB/s of a node's memory."""
    on_cpu: int = Field(0, ge=0, le=1)
    """1 where the run has no GPU and `gpu_memory` is the machine's memory."""

    @property
    def ranks(self) -> int:
        """GPUs in all."""
        return self.gpus * self.nodes


CPU = {
    "gpus": 1, "gpu_memory": 16.0, "host_memory": 16.0, "peak_tflops": 0.05, "bandwidth": 20.0, "decode": 0.5,
    "host_bandwidth": 20.0, "on_cpu": 1,
}  # fmt: skip
"""Defaults where model.device is cpu: one core of a small machine."""
