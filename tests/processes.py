"""Real processes: `steer` commands, forked from a server that has imported torch once; and two ranks."""

import multiprocessing
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "steer_core.training.loop",
        "steer_core.evaluation.problem_sets",
        "steer_core.compare.report",
        "steer_core.cli.main",
        "torch.utils.tensorboard",
        "torch._decomp.decompositions_for_jvp",  # which the first derivative by a forward pass loads
        "transformers.models.qwen2.modeling_qwen2",
        "deepspeed",  # where it is installed; saving a model loads it too
        "deepspeed.runtime.zero.muon.muon_optimizer",  # which compiles as it is imported, in each of its engines
    ]
)


def start(output: Path, *arguments) -> multiprocessing.Process:
    """`steer` with these arguments, its output added to a file."""
    return _started((output, output), arguments)


def steer(*arguments, **place) -> subprocess.CompletedProcess:
    """What came of `steer` with these arguments; place: see `_steer`."""
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _started(told, arguments, **place)
        process.join()
        texts = [file.read_text() if file.exists() else "" for file in told]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def start_ranks(output: Path, count: int, *arguments) -> list[multiprocessing.Process]:
    """The same command as so many ranks of one run, as `torchrun` would start them."""
    places = {"WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    own = ({**places, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count))
    return [_started((output, output), arguments, environment=places) for places in own]


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_two(target: Callable[..., None], *arguments, seconds: float) -> None:
    """`target(rank, *arguments)` for ranks 0 and 1, each in a new process; both must end well and in time."""
    workers = [SERVER.Process(target=target, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds)
    stuck = [worker for worker in workers if worker.is_alive()]
    for worker in stuck:
        worker.terminate()
    assert not stuck, f"not within {seconds} s: {len(stuck)} of two ranks"
    codes = [worker.exitcode for worker in workers]
    assert codes == [0, 0], f"the ranks ended with {codes}"


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Return once a condition holds; fail where it does not within the time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.002)


def _started(streams: Sequence[Path], arguments: Iterable[object], **place) -> multiprocessing.Process:
    process = SERVER.Process(target=_steer, args=(streams, list(map(str, arguments))), kwargs=place, daemon=True)
    process.start()
    return process


def _steer(
    streams: Sequence[Path],
    arguments: list[str],
    environment: dict[str, object] | None = None,
    cwd: Path | None = None,
    largest_file: int | None = None,
) -> None:
    """What the process does; streams: the files of its output and of its errors. It writes no larger file than given.

    The variables of a test's environment are not the server's: `environment` gives those that matter.
    """
    os.environ |= {"CI": "1", **{name: str(value) for name, value in (environment or {}).items()}}
    os.chdir(cwd or ".")
    for number, file in enumerate(streams, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from steer_core.cli.main import main

    main(arguments)
