"""The one exception that users meet, exit statuses, and short texts: the nearest known word, an error on one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
"""Exit status of a command that was asked to stop and left a resumable state."""


class SteerError(Exception):
    """Bad input or a bad environment, told in one line: field, value and remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


class NotFiniteError(SteerError):
    """The model gives NaN or infinite logits; who trains it knows whether training made it so."""


def nearest(word: object, known: Iterable[str]) -> str:
    """`did you mean 'x'?` where a known word is near, else all known words."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def one_line(error: object, longest: int = 200) -> str:
    """The text of an exception, or any other, on one line and cut after `longest` characters."""
    return " ".join(str(error).split())[:longest]
