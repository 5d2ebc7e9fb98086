"""`steer paired A B`"""

from __future__ import annotations

import argparse

from steer_core.cli.evaluate import COLUMNS
from steer_core.cli.shared import path_of, wide_console


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog = (
        "A file is Parquet, JSON Lines, JSON or CSV, a row a sample: its problem, and whether it was right (true or\n"
        "false, 1 or 0, or a list of them). Pairs are made by the problem's name.\n\n"
        "examples:\n  steer paired runs/evaluate/a runs/evaluate/b\n"
        "  steer paired samples_gsm8k_a.jsonl samples_gsm8k_b.jsonl\n"
        "  steer paired a.csv b.csv --problem question_id --correct passed"
    )
    parser.add_argument(
        "first",
        type=path_of,
        metavar="A",
        help="folder of a finished `steer evaluate --benchmarks`, or a file of verdicts",
    )
    parser.add_argument("second", type=path_of, metavar="B", help="another one; the difference is A minus B")
    parser.add_argument("--grader", metavar="NAME", help="whose verdicts to go by (default: the first of each)")
    parser.add_argument("--problem", metavar="COLUMN", help="of files, the column that tells problems apart")
    parser.add_argument("--correct", metavar="COLUMN", help="of files, the column that says whether a sample was right")


def run(args: argparse.Namespace) -> int:
    """Tell which of two evaluations is above the other, of this or another harness, or what would decide it."""
    from steer_core.common.tables import rich_table
    from steer_core.evaluation import tables

    found = tables.paired_evaluations(args.first, args.second, args.grader, args.problem, args.correct)
    title = f"A {args.first}, B {args.second}; avg@n in percent, 95% paired bootstrap over problems"
    wide_console(COLUMNS).print(rich_table(title, tables.PAIRED_HEAD, tables.paired_lines(found)))
    return 0
