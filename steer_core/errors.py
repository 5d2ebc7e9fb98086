"""The one exception whose message is written for the person at the keyboard."""

INTERRUPTED = 130
"""Exit status of a command that was asked to stop and left a resumable state."""


class SteerError(Exception):
    """Bad input or a bad environment, told in one line: field, value and remedy.

    The command line prints the message without a traceback and exits with status 2.
    """
