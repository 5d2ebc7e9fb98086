"""Processes that judge text and can be killed: a hang, a crash or a memory blow-up costs one item, never the run.

Every worker is a fresh Python that runs this file and imports the one function it is for; nothing is forked, so
threads and torch in the parent do not matter. Items and results travel as one line of JSON each: the parent never
unpickles or evaluates what a worker wrote. Limits are the kernel's or the parent's: processor time of one item
(RLIMIT_CPU), address space (RLIMIT_AS, on Linux), and a generous wall clock for what sleeps. Processor time does not
depend on what else the machine does, and each clock starts when a worker takes the item, so neither a long queue nor a
busy machine changes a verdict; nor does loading what the function needs, which its module may do in a function
`warm_up`, called once in every worker before any clock, with the words of `prepare`. No alarm signals: any thread may
ask, several at once.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import math
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, Literal

_START_SECONDS = 120
_DETAIL_CHARACTERS = 200
_PR_SET_PDEATHSIG = 1
_CLOSED = "the pool of workers was closed while it was in use"


@dataclass(frozen=True)
class Failure:
    """What came of an item that has no result. detail: one line for people, 200 characters at most."""

    status: Literal["timed out", "crashed"]
    detail: str


class WorkerPool:
    """Calls `function(item)` in worker processes, which start at the first `map` and end with this process.

    function: "module:name", or a function of an importable module; items and results are plain data as JSON has
    them. workers: processes, by default one a core. cpu_s: seconds of processor time an item may take (rounded up
    to whole seconds by the kernel). timeout_s: the same by the wall clock. memory_bytes: address space of a worker.
    prepare: what the module's `warm_up` is called with.
    """

    def __init__(
        self,
        function: str | Callable[[Any], Any],
        workers: int | None = None,
        timeout_s: float = 60.0,
        cpu_s: float = 5.0,
        memory_bytes: int = 2 << 30,
        prepare: Sequence[str] = (),
    ) -> None:
        from steer_core.common.environment import (
            cores,  # not at the top: a worker runs this file before it has the path
        )

        name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
        if name.startswith("__main__:") or "<" in name or ":" not in name:
            raise ValueError(f"function: {name} cannot be imported by another process; give module:name")
        self._workers = workers or cores()
        self._settings = {"function": name, "cpu_s": cpu_s, "memory_bytes": memory_bytes, "prepare": [*prepare]}
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._crew: _Crew | None = None

    def map(self, items: Iterable[Any]) -> list[Any | Failure]:
        """The result of every item, in order, or the `Failure` it came to.

        An exception counts as "crashed". A worker that dies is replaced and its item tried once more, so one
        that somebody killed from outside costs no verdict. Raises RuntimeError where workers do not start or
        the pool is closed meanwhile, TypeError for an item that JSON does not hold. Any exception on the way,
        Ctrl-C among them, ends all workers; the next call starts new ones.
        """
        lines = [_line(item) for item in items]
        crew = self._running_crew()
        try:
            futures = [crew.submit(line) for line in lines]
            return [future.result() for future in futures]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every worker, whatever it does, and wait until it is gone."""
        with self._lock:
            crew, self._crew = self._crew, None
        if crew is not None and crew.owner == os.getpid():
            crew.close()
            atexit.unregister(self.close)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running_crew(self) -> _Crew:
        with self._lock:
            if self._crew is None or self._crew.owner != os.getpid():  # a forked child has none of the threads
                self._crew = _Crew(self._workers, self._settings, self._timeout_s)
                atexit.register(self.close)
            return self._crew


@cache
def shared_pool(function: str) -> WorkerPool:
    """The one pool of this process for a function named "module:name", with the default limits."""
    return WorkerPool(function)


class _Crew:
    """The threads that serve a pool until it is closed, each with a worker process of its own."""

    def __init__(self, size: int, settings: dict[str, Any], timeout_s: float) -> None:
        self.owner = os.getpid()
        self._settings, self._timeout_s = settings, timeout_s
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._closed, self._lock = False, threading.Lock()
        self._live: set[_Worker] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(size)]
        for thread in self._threads:
            thread.start()

    def submit(self, line: bytes) -> Future:
        """Queue one item; the future ends in its result, a Failure, or the RuntimeError of a closed pool."""
        future: Future = Future()
        with self._lock:
            if self._closed:
                future.set_exception(RuntimeError(_CLOSED))
            else:
                self._jobs.put((line, future))
        return future

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for worker in self._live:
                worker.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        worker = None
        while (job := self._jobs.get()) is not None:
            line, future = job
            try:
                worker, result = self._judge(worker, line)
            except Exception as error:  # no worker starts, or the pool is closed: the caller hears it
                worker = None
                future.set_exception(error)
            else:
                future.set_result(result)
        if worker is not None:
            self._end(worker)

    def _judge(self, worker: _Worker | None, line: bytes) -> tuple[_Worker | None, Any | Failure]:
        """(the worker to go on with, the item's result or failure)."""
        for last_try in (False, True):
            worker = worker or self._start()
            answer = worker.ask(line, self._timeout_s)
            if answer is not None and "result" in answer:
                return worker, answer["result"]
            if answer is not None and not answer["spent"]:
                return worker, Failure("crashed", answer["error"])
            failure, worker = self._end(worker), None
            if answer is not None:
                failure = Failure("crashed", answer["error"])
            elif self._closed:
                raise RuntimeError(_CLOSED)
            if answer is not None or last_try or failure.status == "timed out":
                break
        return None, failure

    def _start(self) -> _Worker:
        worker = _Worker()
        with self._lock:
            self._live.add(worker)
            if self._closed:
                worker.kill()
        hello = worker.ask(_line({**self._settings, "path": sys.path, "parent": os.getpid()}))
        if hello is None or "error" in hello:
            failure = self._end(worker)
            why = _CLOSED if self._closed else hello["error"] if hello else failure.detail
            raise RuntimeError(f"a worker did not start: {why}")
        return worker

    def _end(self, worker: _Worker) -> Failure:
        """Kill and reap a worker; why it came to an end."""
        failure = worker.end()
        with self._lock:
            self._live.discard(worker)
        return failure


class _Worker:
    """One process. Only the thread that serves it asks and reaps; any thread may kill."""

    def __init__(self) -> None:
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **one_thread, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self._lock, self._reaped, self._overdue = threading.Lock(), False, False

    def ask(self, line: bytes, seconds: float = _START_SECONDS) -> dict[str, Any] | None:
        """The worker's answer to a line, or None where it died first, be it by our hand after so many seconds."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            return json.loads(answer)
        except (OSError, ValueError):  # a broken pipe, no line or half a line: the process is gone
            return None
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._overdue = True
        self.kill()

    def kill(self) -> None:
        """Kill the process and its group; nothing where it is reaped already and its number may be another's."""
        with self._lock:
            if not self._reaped:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, of a zombie
                    os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> Failure:
        """Kill and reap; what the process died of. Its own end, where it came first, is what the kernel tells."""
        self.kill()
        with self._lock:
            self._reaped = True
            code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # text that a broken pipe did not take
                pipe.close()
        if self._overdue:
            return Failure("timed out", "no answer within the limit of the wall clock")
        if code == -signal.SIGXCPU:
            return Failure("timed out", "no answer within the limit of processor time")
        return Failure("crashed", f"the process died of {signal.Signals(-code).name}" if code < 0 else f"exit {code}")


def _line(data: Any) -> bytes:
    return json.dumps(data).encode() + b"\n"


def main() -> None:
    """The worker: settings in, a greeting out, then one result a line until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer

    def tell(**answer: Any) -> None:
        answers.write(_line(answer))
        answers.flush()

    settings = json.loads(sys.stdin.buffer.readline())
    _die_with(settings["parent"])
    sys.path[:] = settings["path"]
    try:
        _limit(resource.RLIMIT_CORE, 0)
        if sys.platform == "linux":
            _limit(resource.RLIMIT_AS, settings["memory_bytes"])
        path, _, name = settings["function"].partition(":")
        module = importlib.import_module(path)
        function = reduce(getattr, name.split("."), module)
        getattr(module, "warm_up", lambda: None)(*settings["prepare"])
    except Exception as error:
        return tell(error=_told(error))
    tell(result="ready")
    for line in sys.stdin.buffer:
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _limit(resource.RLIMIT_CPU, math.ceil(used + settings["cpu_s"]))
        try:
            tell(result=function(json.loads(line)))
        except MemoryError as error:  # what it left behind may be large or broken
            return tell(error=_told(error), spent=True)
        except BaseException as error:  # SystemExit too
            tell(error=_told(error), spent=False)
    return None


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _told(error: BaseException) -> str:
    """An exception in one line; its own text may be long, many lines or itself fail."""
    try:
        text = " ".join(str(error)[: 10 * _DETAIL_CHARACTERS].split())
    except Exception:
        text = "(its text cannot be written)"
    return f"{type(error).__name__}: {text}"[:_DETAIL_CHARACTERS]


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, and leave at once where that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
