"""The lock that DeepSpeed's ops are compiled under: taken over where its owner is gone, never waited for in silence.

DeepSpeed compiles an op where it is first used, through torch, which holds a file `lock` in the op's folder meanwhile.
A process that is killed leaves the file behind, and torch would have every later process wait for ever.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.utils.file_baton import FileBaton

from steer_core.common.errors import SteerError

LONGEST_WAIT = 20 * 60.0
"""Seconds that a process waits for another one to compile an op."""
_PAUSE = 0.2
_HOST = socket.gethostname()


class OwnedBaton(FileBaton):
    """torch's lock on an op's folder, with its owner's machine and process written into it."""

    def try_acquire(self) -> bool:
        """Hold the lock, once no living process does; what was compiled meanwhile is not compiled again.

        Raises SteerError where another process holds it for longer than LONGEST_WAIT.
        """
        path, end, told = Path(self.lock_file_path), time.monotonic() + LONGEST_WAIT, ""
        while True:
            with _alone_in(path.parent):
                owner = owner_of(path)
                if owner is None:
                    print(f"{path}: its owner ended while it compiled; taken over", file=sys.stderr, flush=True)
                    path.unlink(missing_ok=True)
                if super().try_acquire():
                    path.write_text(f"{_HOST} {os.getpid()}", encoding="utf-8")
                    return True
            if owner and owner != told:
                print(f"{path}: waiting for {owner}, which compiles an op of DeepSpeed", file=sys.stderr, flush=True)
                told = owner
            if time.monotonic() > end:
                raise SteerError(
                    f"engine.name: deepspeed waited {LONGEST_WAIT / 60:g} minutes for {owner}, which holds {path}; end "
                    "it, remove that file if nothing compiles there, or set TORCH_EXTENSIONS_DIR to another folder"
                )
            time.sleep(_PAUSE)

    def wait(self) -> None:
        """Nothing is left to wait for."""


def owner_of(path: Path) -> str | None:
    """In words, the process that holds a lock, "" where there is no lock, None where no living process holds it.

    A process holds it that has the file open, or that works in its folder, as a compiler does that outlived its
    parent. Processes of other machines and users cannot be seen here, and count as alive.
    """
    try:
        host, _, process = path.read_text(encoding="utf-8").partition(" ")
        foreign = path.stat().st_uid != os.getuid() != 0
    except FileNotFoundError:
        return ""
    if process and host != _HOST:
        return f"process {process} of {host}"
    if foreign or not Path("/proc/self").exists():
        return "another process"
    file, folder = str(path.resolve()), str(path.parent.resolve())
    for found in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended just now, or is another user's
            if _target(found / "cwd") == folder or file in map(_target, (found / "fd").iterdir()):
                return f"process {found.name}"
    return None


def _target(link: Path) -> str:
    """Where a link leads; nowhere where it has just gone."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Among processes that look at the lock of a folder, one at a time: two may find the same one without owner."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
