"""Real processes: `steer` commands to kill, forked from a server that has imported torch once; and two ranks."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["steer_core.training.loop"])


def start(output: Path, *arguments, folder: Path | None = None) -> multiprocessing.Process:
    """`steer` with these arguments, in `folder` or here, its output added to a file."""
    words = [str(argument) for argument in arguments]
    process = SERVER.Process(target=_steer, args=(output, words, {}, folder), daemon=True)
    process.start()
    return process


def start_ranks(output: Path, count: int, *arguments) -> list[multiprocessing.Process]:
    """The same command as so many ranks of one run, as `torchrun` would start them."""
    places = {"WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()}
    words = [str(argument) for argument in arguments]
    processes = []
    for rank in range(count):
        own = {name: str(value) for name, value in {**places, "RANK": rank, "LOCAL_RANK": rank}.items()}
        processes.append(SERVER.Process(target=_steer, args=(output, words, own), daemon=True))
        processes[-1].start()
    return processes


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


def _steer(output: Path, arguments: list[str], places: dict[str, str], folder: Path | None = None) -> None:
    os.environ |= {"CI": "1", **places}
    if folder is not None:
        os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from steer_core.cli.main import main

    main(arguments)
