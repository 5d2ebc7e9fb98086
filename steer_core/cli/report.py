"""`steer report RUN ...`"""

from __future__ import annotations

import argparse
from pathlib import Path

from steer_core.cli.shared import path_of


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=path_of,
        metavar="RUN",
        help="a comparison's folder, one run's, or run folders to set side by side (the first is the baseline)",
    )
    parser.add_argument(
        "--out",
        type=path_of,
        help="folder to write report.html and figures/ to (default: the folder itself, or ./report)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report of a comparison, or of runs."""
    from rich.console import Console

    from steer_core.common.places import refuse_others
    from steer_core.compare.comparison import comparison_of, load_comparison
    from steer_core.compare.report import summary_table, write_report

    planned = len(args.runs) == 1 and (args.runs[0] / "plan.yaml").exists()
    comparison = load_comparison(args.runs[0]) if planned else comparison_of(args.runs)
    folder = args.out or (args.runs[0] if len(args.runs) == 1 else Path("report"))
    if folder not in args.runs:
        refuse_others(folder, None)
    console = Console()
    console.print(f"report: {write_report(comparison, folder)}")
    if len(comparison.final()):
        console.print(summary_table(comparison))
    return 0
