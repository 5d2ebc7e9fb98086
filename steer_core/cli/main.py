"""The `steer` command: its table of commands, a file each beside this one, and how they end."""

from __future__ import annotations

import argparse
import sys
from textwrap import fill
from typing import NoReturn

from steer_core.cli import (
    compare,
    data,
    diagnose,
    doctor,
    estimate,
    evaluate,
    grade,
    init,
    paired,
    plan,
    report,
    show,
    train,
)
from steer_core.cli.ending import end
from steer_core.cli.shared import parse

_MODULES = (compare, init, train, plan, evaluate, grade, paired, estimate, diagnose, report, show, data, doctor)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
"""A command has `options(parser)`, which states its options, and `run(arguments)`, whose docstring is its help."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command; exit 0 when it came to its end, 2 on bad input, 130 when it was stopped."""
    end(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(words: list[str]) -> int | None:
    command = COMMANDS[_named(words[:1])]
    parser = argparse.ArgumentParser(
        prog=f"steer {words[0]}",
        description=fill(command.run.__doc__, 78),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.options(parser)
    return command.run(parse(parser, words[1:]))


def _named(word: list[str]) -> str:
    """The command that the first word names; `--help` lists them all, and anything else is refused."""
    parser = argparse.ArgumentParser(
        prog="steer",
        description="Understand, control and reproduce entropy dynamics in RLVR (STEER, arXiv 2510.10150).",
        epilog="`steer COMMAND --help` tells a command's options; docs and numbers: README.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        commands.add_parser(name, help=module.run.__doc__.rstrip("."), add_help=False)
    return parser.parse_args(word).command
