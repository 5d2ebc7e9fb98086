"""What a rank says when another one ended, and what is left as it is."""

import pytest

from steer_core.common import ranks
from steer_core.common.errors import SteerError

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] "
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, "
LOST = [
    GLOO + "Connection closed by peer [127.0.0.1]:39827",
    GLOO + "Read error [127.0.0.1]:25266: Connection reset by peer",
    GLOO + "Read error [10.0.0.2]:25266: Connection timed out",
    GLOO + "writev [127.0.0.1]:2104: Broken pipe",
    GLOO + "Application timeout caused pair closure",
    "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",
    "Gloo connectFullMesh failed with " + GLOO + "connect [127.0.1.1]:3117: Connection refused",
    "[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 1800000 ms\n" + GLOO + "Connection closed by peer",
    "Socket Timeout",
    "wait timeout after 1800000ms, keys: /default_pg/0//cpu//0/0",
    "Timed out after 61 seconds waiting for clients. 1/2 clients joined.",
    "The client socket has timed out after 60000ms while trying to connect to (node-0, 29500).",
    "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    NCCL + "remote process exited or there was a network error, NCCL version 2.29.7\nncclRemoteError: A call failed",
    NCCL + "internal error, NCCL version 2.29.7\nLast error:\nNet : Connection closed by remote peer node<50260>",
    "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=880) ran for 1800695 milliseconds",
    "NCCL communicator was aborted on rank 1.",
    "NCCL communicator has aborted",
]
OTHER = [
    "ProcessGroupGloo::allreduce: invalid tensor type at index 1 (expected TensorOptions(dtype=float))",
    "[enforce fail at ../third_party/gloo/gloo/allreduce.cc:35] opts.elements > 0. 0 vs 0",
    "Cannot use ReduceOp.PREMUL_SUM with Gloo",
    NCCL + "invalid usage, NCCL version 2.29.7\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
    NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details)\nCuda failure 2 'out of memory'",
    "No backend type associated with device type cuda; gloo and nccl are known",
    "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0",
    "timeout must be positive",
    "The grader timed out on an answer",
]


@pytest.fixture
def two(monkeypatch):
    """As in the second rank of two."""
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)


@pytest.mark.parametrize("message", LOST)
def test_a_lost_connection_or_a_wait_too_long_tells_that_another_rank_ended_with_the_first_line(two, message):
    with pytest.raises(SteerError) as told, ranks.lost_ranks_named():
        raise RuntimeError(message)
    first = message.splitlines()[0]
    assert str(told.value).startswith(f"rank 1: another rank ended or did not answer ({first}); see what it said")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("message", OTHER)
def test_a_mistake_of_this_rank_is_told_as_it_is_though_it_names_gloo_or_nccl(two, message):
    with pytest.raises(RuntimeError) as told, ranks.lost_ranks_named():
        raise RuntimeError(message)
    assert str(told.value) == message


def test_alone_nobody_else_is_blamed():
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"), ranks.lost_ranks_named():
        raise RuntimeError("Connection closed by peer")
