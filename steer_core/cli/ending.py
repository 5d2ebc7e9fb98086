"""How a command ends, and every script of this repository: with a status and at most one line, never a traceback."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, TextIO

from steer_core.common.errors import INTERRUPTED, SteerError

_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""A pipe whose reader has gone, a terminal that was closed: nobody is there to be told."""


def end(work: Callable[[], int | None]) -> NoReturn:
    """Do the work, then exit: with its status (None is 0), 2 for bad input, told in one line, 130 where it was stopped.

    Output that can no longer be written (`| head`, a full disk, a closed terminal) never ends the work. Where a disk
    or a device refused it, that is told at the end, with status 2.
    """
    output = _lasting_output() if sys.stdout is sys.__stdout__ else None  # not where a test or a notebook takes it
    try:
        status = work() or 0
    except SteerError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        if not error.filename:
            raise
        print(f"error: {error.filename}: {error.strerror}; make it readable and writable, with room", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = INTERRUPTED
    sys.stdout.flush()
    refusal = output and output.refusal
    if refusal and refusal.errno not in _NOBODY_READS:
        print(f"error: standard output: {refusal.strerror}; the work is done, what it printed is lost", file=sys.stderr)
        status = status or 2
    sys.exit(status)


class _Lasting(io.FileIO):
    """A standard stream that goes on into nothing once it is refused."""

    refusal: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.refusal = error
            _to_nowhere(self.fileno())
            return len(data)


def _lasting_output() -> _Lasting:
    """Make standard output and error last, those that were closed at the start too; returns what output goes to."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:  # `>&-`: the next file to be opened would take its place, and what is printed
            _to_nowhere(stream)
    output, errors = _Lasting(1, "w", closefd=False), _Lasting(2, "w", closefd=False)
    sys.stdout = _text(output, sys.stdout, output.isatty())
    sys.stderr = _text(errors, sys.stderr, True)
    return output


def _text(raw: _Lasting, before: TextIO | None, by_line: bool) -> TextIO:
    encoding, unknown = (before.encoding, before.errors) if before else ("utf-8", "replace")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=unknown, line_buffering=by_line)


def _to_nowhere(stream: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != stream:
        os.dup2(nowhere, stream)
        os.close(nowhere)
