"""The one exception whose message is written for the person at the keyboard."""


class SteerError(Exception):
    """Bad input or a bad environment, told in one line: field, value and remedy.

    The command line prints the message without a traceback and exits with status 2.
    """
