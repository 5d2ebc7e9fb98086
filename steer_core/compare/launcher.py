"""Starts commands of this package in a moment: a process that has imported what they need forks once for each.

Importing torch and transformers takes 5 to 10 seconds of a processor, which every run of a comparison would pay. The
process that forks, `python -m steer_core.compare.launcher`, has one thread and computes nothing, so what it
forks is as a fresh process is. It reads a line of JSON for each question and answers with one. It dies with the
process that started it, and what it forked dies with it. Linux only: elsewhere commands are started afresh.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
_IMPORTED = ("steer_core.training.loop", "steer_core.evaluation.held_out")
"""By name, for the commands stand above this floor; what else they need they import."""
_FORKS = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1


class Launcher:
    """Starts `steer` commands of one thread each, which end with this process. Close it, or use it in a `with`.

    about: what the processes work for, to be read in a list of processes.
    """

    def __init__(self, about: Path) -> None:
        self._about, self._server = about, None

    def start(self, arguments: Sequence[str], log: Path) -> Launched | subprocess.Popen[bytes]:
        """The process of `steer ARGUMENTS`, its output added to a log. Raises OSError where that cannot be written."""
        if not _FORKS:
            with log.open("ab") as stream:
                command = [sys.executable, "-m", "steer_core", *arguments]
                streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.STDOUT}
                return subprocess.Popen(command, env=os.environ | _ONE_THREAD, start_new_session=True, **streams)
        log.open("ab").close()
        number = self._ask(arguments=list(arguments), log=str(log.absolute()), folder=os.getcwd())
        return Launched(number, self)

    def close(self) -> None:
        """End the process that forks, and with it all that it started."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **question: Any) -> Any:
        """The server's answer to a question. It is started at the first."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(os.getpid()), str(self._about)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Asked whether there is a GPU, torch begins to use it otherwise, and a fork cannot go on with that.
                env={**os.environ, **_ONE_THREAD, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                start_new_session=True,
            )
        with contextlib.suppress(OSError):  # it is gone: there is no answer to read
            self._server.stdin.write(json.dumps(question).encode() + b"\n")
            self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise SteerError("the process that starts the runs has ended (out of memory?), and they with it; --resume")
        return json.loads(answer)


@dataclass
class Launched:
    """A started command, with the part of `subprocess.Popen` that is needed."""

    pid: int
    launcher: Launcher
    returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for the signal that killed it; None while it runs."""
        if self.returncode is None:
            self.returncode = self.launcher._ask(ended=self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended. Its number is no other's until `poll` has told of its end."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def _serve(parent: int) -> None:
    """Fork for every command asked for, and tell who has ended."""
    _die_with(parent)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for name in _IMPORTED:
        importlib.import_module(name)
    here = os.getpid()
    for line in sys.stdin:
        question = json.loads(line)
        if "ended" in question:
            number, status = os.waitpid(question["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if number else None
        elif (answer := os.fork()) == 0:
            answers.close()
            return _become(here, **question)
        print(json.dumps(answer), file=answers, flush=True)


def _become(parent: int, arguments: list[str], log: str, folder: str) -> None:
    """Be `python -m steer_core ARGUMENTS` in a folder, with a session of its own and its output in a log."""
    _die_with(parent)
    os.setsid()
    os.chdir(folder)
    for number, (file, flags) in enumerate([(os.devnull, os.O_RDONLY), *[(log, os.O_WRONLY | os.O_APPEND)] * 2]):
        os.dup2(os.open(file, flags), number)
    sys.argv = ["steer", *arguments]
    runpy.run_module("steer_core", run_name="__main__")


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
