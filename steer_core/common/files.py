"""Files written whole or not at all, and folders held by one process."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steer_core.common.errors import SteerError

PARTIAL = ".partial_"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; SteerError where another one works in it, or it cannot be written or locked."""
    try:
        file = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise SteerError(f"{folder}: cannot be written ({error.strerror}); give it write permission") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SteerError(f"{folder}: another process works in it; wait for it or end it") from error
        except OSError as error:
            raise SteerError(
                f"{folder}: cannot be locked ({error.strerror}), and two processes at once would spoil it; name a "
                "folder of a file system with locks, such as a local disk, or mount this one with them"
            ) from error
        yield


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, whole."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.rename(path)


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write a file at that takes the place of `path` at the end, or goes at an exception."""
    partial = path.with_name(f".partial_{path.name}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
