"""The one exception that users meet, exit statuses, and the hint that names the nearest known word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
"""Exit status of a command that was asked to stop and left a resumable state."""


class SteerError(Exception):
    """Bad input or a bad environment, told in one line: field, value and remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


def nearest(word: object, known: Iterable[str]) -> str:
    """`did you mean 'x'?` where a known word is near, else all known words."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
