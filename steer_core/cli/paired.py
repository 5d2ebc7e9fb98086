"""`steer paired A B`"""

from __future__ import annotations

import argparse

from steer_core.cli.evaluate import COLUMNS
from steer_core.cli.shared import path_of, wide_console


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("first", type=path_of, metavar="A", help="folder of a finished `steer evaluate --benchmarks`")
    parser.add_argument("second", type=path_of, metavar="B", help="another one; the difference is A minus B")
    parser.add_argument("--grader", metavar="NAME", help="whose verdicts to go by (default: the first of each)")


def run(args: argparse.Namespace) -> int:
    """Tell which of two evaluations on benchmarks is above the other, or what would decide it."""
    from steer_core.common.tables import rich_table
    from steer_core.evaluation import tables

    found = tables.paired_evaluations(args.first, args.second, args.grader)
    title = f"A {args.first}, B {args.second}; avg@n in percent, 95% paired bootstrap over problems"
    wide_console(COLUMNS).print(rich_table(title, tables.PAIRED_HEAD, tables.paired_lines(found)))
    return 0
