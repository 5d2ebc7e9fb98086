"""Model-written Python, run where it can do no harm: one program in one sandbox, one new process a run.

`bubblewrap` mode: no network, its own users, processes and IPC, a read-only system of /usr, the libraries and the
interpreter alone (no home, no /etc, no /proc), a private /tmp of limited size, and no environment variable of ours.
`limits` mode is for machines without bubblewrap and is no wall: it keeps the limits and the refused system calls, and
takes root's privileges away, but the program can read, and write, every file that this user can.

A program has the standard library, and no installed package. In both modes the kernel refuses it new processes
(`syscalls.py`), so the limit on one process' address space is the limit on the memory of all. `inside.py` is what runs
there. Linux, on x86_64 and aarch64.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from steer_core.common.errors import SteerError, nearest
from steer_core.rewards.syscalls import syscall_filter

Mode = Literal["bubblewrap", "limits"]
End = Literal["done", "failed", "timed out", "memory", "output", "killed"]

INSIDE = Path(__file__).with_name("inside.py")
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same order of a set in every run
    "MALLOC_ARENA_MAX": "1",  # else every thread reserves 64 MB of address space
}
NOBODY = "65534"
TICK = 0.05
"""Seconds between two looks at a running sandbox."""
PATIENCE = 30.0
"""Seconds a sandbox may take, on a crowded machine, to start, and to answer once a run's time is up."""
HEADER = 4096
"""Bytes of an answer's first line, at most."""
FILES = 4096
"""Files in /tmp, at most: each holds kernel memory, however small it is."""
INSTALL = "`apt install bubblewrap`, `dnf install bubblewrap` or `conda install -c conda-forge bubblewrap`"
WEAKER = "or accept resource limits alone, which are no wall against a hostile program, with mode 'limits'"


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use, in seconds and bytes; `source` and `total` are for all its runs together.

    cpu, total: CPU time, which a crowded machine does not use up; cpu in whole seconds. wall: by the clock, for a
    program that only waits; so far above cpu that a program that computes meets it only where it gets less than a
    tenth of a core. memory: address space, the interpreter's 30 MB included. output: stdout, stderr, a result, and any
    file, each. disk: all of /tmp. A sandbox never holds more than memory + disk + 4 outputs + its input, beside a
    supervisor of 20 MB and what the kernel keeps for 64 open files.
    """

    cpu: int = 6
    wall: float = 60.0
    memory: int = 1 << 30
    output: int = 8 << 20
    disk: int = 16 << 20
    threads: int = 64
    source: int = 1 << 20
    total: float = 60.0

    def __post_init__(self) -> None:
        """Raises SteerError where a limit is not positive, or leaves no memory to start in."""
        for field in fields(self):
            least = 64 << 20 if field.name == "memory" else 0
            value = getattr(self, field.name)
            if not value > least or (field.type == "int" and int(value) != value):
                kind = "a whole number" if field.type == "int" else "a number"
                raise SteerError(f"limits.{field.name}: {value!r} must be {kind} greater than {least}")


@dataclass(frozen=True)
class Outcome:
    """How one run ended: `done` with its stdout or its result as JSON text; else why not, in one line for people.

    `failed` is an exception or an exit status other than 0; `killed`, a signal or a sandbox that ended. seconds: CPU
    time. All of it is the program's word for what it put out, never a judgement of it.
    """

    end: End
    output: bytes = b""
    detail: str = ""
    seconds: float = 0.0


class Stopped(Exception):
    """The caller asked for the end of a run that was under way."""


class Sandbox:
    """One program and the sandbox it runs in, for one thread at a time.

    A run starts a new process, and a new sandbox where the run before left a trace, or was ended. Use it as a context
    manager: leaving it ends whatever still runs. When this process, or the thread that started the sandbox, ends in
    whatever way, the kernel ends the sandbox.
    """

    def __init__(
        self,
        program: str | Sequence[str],
        limits: Limits | None = None,
        mode: Mode = "bubblewrap",
        stop: threading.Event | None = None,
    ) -> None:
        """program: its text, or several of which the last that is a program runs, or defines the function called.

        Raises ValueError for texts that are too long together; SteerError for a mode there is not.
        """
        self.limits = limits or Limits()
        texts = [program] if isinstance(program, str) else list(program)
        if (length := sum(map(len, texts))) > self.limits.source:
            raise ValueError(f"a program of {length} characters, more than {self.limits.source}")
        self._source, self._mode, self._stop = json.dumps(texts).encode(), mode, stop
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: str | None = None
        if mode not in get_args(Mode):
            raise SteerError(f"sandbox: no mode {mode!r}; {nearest(mode, get_args(Mode))}")

    def __enter__(self) -> Sandbox:
        """Nothing starts before the first run."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the sandbox."""
        self.close()

    def run(self, stdin: str, wall: float | None = None) -> Outcome:
        """Run the program as a script on a text; `wall` (seconds) overrides the limit.

        Raises SteerError where no sandbox can be started, Stopped where `stop` was set.
        """
        return self._run(None, stdin.encode(), wall)

    def call(self, function: str, arguments: list[Any], wall: float | None = None) -> Outcome:
        """Call a function of the program, or the method of its class Solution, and return its result as JSON text.

        Arguments cross as JSON. Raises as `run` does.
        """
        return self._run(function, json.dumps(arguments).encode(), wall)

    def close(self) -> bytes:
        """End the sandbox, whatever runs in it, and return what its supervisor said on stderr."""
        process, self._process = self._process, None
        said = _end(process) if process is not None else b""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        return said

    def _run(self, function: str | None, payload: bytes, wall: float | None) -> Outcome:
        wall = wall or self.limits.wall
        if self._process is None:
            self._start()
        try:
            answer, output = self._exchange({"function": function, "wall": wall}, payload, wall + PATIENCE)
        except _Broken as broken:
            self.close()
            return Outcome(*broken.args)
        except BaseException:
            self.close()
            raise
        if not answer["clean"] or answer["status"] != "done":
            self.close()
        return Outcome(answer["status"], output, answer["detail"], answer["seconds"])

    def _start(self) -> None:
        command = [_interpreter(), "-s", "-S", "-P", "-B", "-X", "utf8"]
        if self._mode == "bubblewrap":
            command = [*_bubblewrap(self.limits.disk), "--", *command, "/inside.py", label()]
        else:
            self._folder = tempfile.mkdtemp(prefix="steer-sandbox-")
            command = [*command, str(INSIDE), label()]
        inodes = FILES if self._mode == "bubblewrap" else None
        setup = {"limits": asdict(self.limits), "filter": syscall_filter().hex(), "inodes": inodes}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=ENVIRONMENT, bufsize=0, start_new_session=True, **pipes
            )
            os.set_blocking(self._process.stdin.fileno(), False)
            self._exchange(setup, self._source, PATIENCE)
        except (_Broken, OSError) as error:
            said = self.close().decode(errors="replace").strip().split("\n")[-1]
            raise SteerError(_no_start(self._mode, said or str(error.args[-1]))) from None
        except BaseException:
            self.close()
            raise

    def _exchange(self, header: dict[str, Any], payload: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send one message and read the one answer. Raises _Broken for whatever else happens, and Stopped."""
        sending = memoryview(json.dumps({**header, "size": len(payload)}).encode() + b"\n" + payload)
        received, answer, deadline = bytearray(), None, time.monotonic() + seconds
        inlet, outlet = self._process.stdin.fileno(), self._process.stdout.fileno()
        poll = select.poll()
        poll.register(outlet, select.POLLIN)
        poll.register(inlet, select.POLLOUT)
        while True:
            ready = [file for file, _ in poll.poll(TICK * 1000)]
            if inlet in ready:
                sending = _write(inlet, sending)
                if not sending:
                    poll.unregister(inlet)
            if outlet in ready:
                piece = os.read(outlet, 1 << 16)
                if not piece:
                    raise _Broken("killed", b"", "the sandbox ended")
                received += piece
                if answer is None:
                    answer = _answer(received, self.limits.output)
                if answer is not None and len(received) >= answer["size"]:
                    if len(received) > answer["size"]:
                        raise _Broken("killed", b"", "more than one answer")
                    return answer, bytes(received)
            if self._stop is not None and self._stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise _Broken("timed out", b"", f"no answer within {seconds:.3g} seconds")
            if not ready and threads(self._process.pid) > self.limits.threads:
                raise _Broken("killed", b"", f"more than {self.limits.threads} threads")


class _Broken(Exception):
    """A sandbox that must be ended; its arguments are those of an Outcome."""


def label() -> str:
    """The last word of the command line of every sandbox that this process started."""
    return f"steer-sandbox-of-{os.getpid()}"


@functools.cache
def require_sandbox(mode: Mode = "bubblewrap", limits: Limits | None = None) -> None:
    """Raise SteerError, with the remedy, where this machine cannot run programs in this mode."""
    if sys.platform != "linux":
        raise SteerError(f"sandbox: {sys.platform} has none; run code rewards on Linux")
    with Sandbox("print(6 * 7)", limits, mode) as sandbox:
        outcome = sandbox.run("")
    if outcome.output != b"42\n":
        raise SteerError(_no_start(mode, f"a first program {outcome.end} ({outcome.detail})"))


def threads(process: int) -> int:
    """How many threads the processes below one have; those that are gone have none.

    RLIMIT_NPROC does not bind root, and before Linux 5.14 counted what the user runs elsewhere.
    """
    count = 0
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            count += len(os.listdir(f"/proc/{child}/task")) + threads(int(child))
    return count


def _interpreter() -> str:
    """The interpreter behind any virtual environment, which has the standard library and nothing else."""
    version = sys.version_info
    usual = Path(sys.base_prefix, "bin", f"python{version.major}.{version.minor}")
    return str(usual) if usual.exists() else os.path.realpath(sys.executable)


def _bubblewrap(disk: int) -> list[str]:
    """The command, up to the program, that starts a sandbox. Raises SteerError where bubblewrap is not installed."""
    found = shutil.which("bwrap")
    if found is None:
        raise SteerError(f"sandbox: bubblewrap (the command bwrap) is not installed; {INSTALL}, {WEAKER}")
    command = [found, "--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"]
    command += ["--die-with-parent", "--as-pid-1", "--size", str(disk), "--tmpfs", "/tmp"]
    command += ["--ro-bind", "/usr", "/usr"]
    for path in ("/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    if not Path(os.path.realpath(sys.base_prefix)).is_relative_to("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for folder in filter(os.path.isdir, site.getsitepackages([sys.base_prefix])):  # what is installed there is hidden
        command += ["--tmpfs", folder, "--remount-ro", folder]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    return [*command, "--ro-bind", str(INSIDE), "/inside.py", "--remount-ro", "/", "--chdir", "/tmp"]


def _no_start(mode: Mode, said: str) -> str:
    """The message for a sandbox that did not start."""
    if mode == "limits":
        return f"sandbox: a program could not be run: {said}; check that this interpreter's own installation is whole"
    return (
        f"sandbox: bubblewrap could not start one: {said}; it needs bubblewrap 0.7 or newer and a kernel or container "
        "that allows user namespaces (Ubuntu: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`; Docker: "
        f"`--security-opt seccomp=unconfined --security-opt apparmor=unconfined`); allow them, {WEAKER}"
    )


def _end(process: subprocess.Popen[bytes]) -> bytes:
    """Kill a sandbox, wait until its supervisor is gone, and return the first that it said on stderr."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    said = _drain(process.stderr.fileno(), deadline)
    _drain(process.stdout.fileno(), deadline)
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    process.wait()
    return said


def _drain(file: int, deadline: float) -> bytes:
    """Read a pipe to its end, keeping the first bytes."""
    kept, poll = b"", select.poll()
    poll.register(file, select.POLLIN)
    while time.monotonic() < deadline:
        if poll.poll(TICK * 1000):
            piece = os.read(file, 1 << 16)
            if not piece:
                break
            kept = kept or piece
    return kept


def _write(file: int, content: memoryview) -> memoryview:
    """Write what a pipe takes and return the rest; nothing of it where nobody reads, which reading will tell."""
    try:
        return content[os.write(file, content) :]
    except BlockingIOError:
        return content
    except BrokenPipeError:
        return content[:0]


def _answer(received: bytearray, most: int) -> dict[str, Any] | None:
    """Take an answer's header off the bytes received, once it is whole. Raises _Broken where it can be none."""
    end = received.find(b"\n")
    if end > HEADER or (end < 0 and len(received) > HEADER):
        raise _Broken("killed", b"", "an answer with no end")
    if end < 0:
        return None
    try:
        answer = json.loads(received[:end])
        del received[: end + 1]
        kinds = {name: type(value) for name, value in answer.items()}
        sound = kinds == {"status": str, "detail": str, "seconds": float, "clean": bool, "size": int}
        sound = sound and answer["status"] in (*get_args(End), "ready") and 0 <= answer["size"] <= most
    except (ValueError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise _Broken("killed", b"", "an answer that is none")
    answer["detail"] = "".join(letter if letter.isprintable() else "?" for letter in answer["detail"][:200])
    return answer
