"""Files written whole or not at all, JSON without NaN, checksums, and folders held by one process."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError, one_line

PARTIAL = ".partial_"
"""What the name of a file or folder begins with while it is being written."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; SteerError where another one works in it, or it cannot be written or locked."""
    try:
        file = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise SteerError(f"{folder}: cannot be written ({refusal(error)}); give it write permission") from error
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


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write a file at, which takes the place of `path` at the end, or goes at an exception.

    A kill at any moment leaves the old file or the new one, whole; what it may leave beside it begins with PARTIAL.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        yield partial
        fsync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file as `written_whole` does."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def fsync(path: Path) -> None:
    """Have the system put a file or a folder on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refusal(error: OSError) -> str:
    """Why the system refused to write: its word, and what is in the way where something is."""
    place = error.filename2 or error.filename
    in_the_way = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError) and place
    return f"{error.strerror}: {place}" if in_the_way else error.strerror or str(error)


def read_text(path: str | Path, what: str, remedy: str) -> str:
    """The text of a file. Raises SteerError `WHAT PATH: reason; REMEDY` where it is missing, no file or not UTF-8."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise SteerError(f"{what} {path}: is no regular file; {remedy}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SteerError(f"{what} {path}: {error.strerror}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise SteerError(f"{what} {path}: not UTF-8 at byte {error.start} ({error.reason}); {remedy}") from error
    except ValueError as error:  # a name with a null character
        raise SteerError(f"{what} {str(path)!r}: {error}; {remedy}") from error


def read_json(path: str | Path, what: str, remedy: str) -> dict[str, Any]:
    """The object that a JSON file holds. Raises SteerError as `read_text` does, and where it holds something else."""
    return _json_object(read_text(path, what, remedy), f"{what} {path}", remedy)


def read_json_lines(path: str | Path, what: str, remedy: str) -> list[dict[str, Any]]:
    """The objects of a file with one a line; a last line without an end, which a kill cut short, is left out.

    Raises SteerError as `read_json` does, naming the line.
    """
    lines = read_text(path, what, remedy).split("\n")[:-1]
    return [_json_object(line, f"{what} {path}, line {n}", remedy) for n, line in enumerate(lines, 1)]


def _json_object(text: str, name: str, remedy: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        told = f"line {error.lineno} column {error.colno}: {error.msg.lower()}"
        raise SteerError(f"{name}: not JSON ({told}); {remedy}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise SteerError(f"{name}: not JSON ({one_line(error)}); {remedy}") from error
    if not isinstance(data, dict):
        raise SteerError(f"{name}: holds {one_line(text, 40)!r}, no object; {remedy}")
    return data


def json_text(data: Any, indent: int = 2) -> str:
    """Data as JSON text with a newline at its end; NaN and infinity, which JSON does not know, become null."""
    return json.dumps(json_ready(data), indent=indent, allow_nan=False) + "\n"


def json_ready(value: Any) -> Any:
    """Plain data: records as objects, tuples as lists, numpy numbers as Python's, NaN and infinity as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): json_ready(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
