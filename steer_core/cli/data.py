"""`steer data list` and `steer data audit`"""

from __future__ import annotations

import argparse
from pathlib import Path

from steer_core.cli.shared import path_of, wide_console


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="the sets, where each would come from, and the prompt styles")
    told = "what is broken in the released files, and which problems the sets share"
    audited = actions.add_parser("audit", help=told, description=f"Tell {told}.")
    for parser in (listed, audited):
        parser.add_argument(
            "--data",
            type=path_of,
            metavar="FOLDER",
            help="folder of the parquet files (default: STEER_DATA, else ../shared/data beside the checkout)",
        )
    audited.add_argument("names", nargs="*", metavar="NAME", help="sets to look at (default: all whose file is there)")
    audited.add_argument(
        "--out",
        type=path_of,
        default=Path("runs/data"),
        help="folder of data_audit.md and .json (default: %(default)s)",
    )
    audited.add_argument(
        "--accept-changed", action="store_true", help="look at files that are not the manifest's too, and say so"
    )


def run(args: argparse.Namespace) -> int:
    """List the data sets, or audit them: what is broken in their files, and what they share."""
    from steer_core.problems import audit

    console = wide_console(audit.COLUMNS)
    if args.action == "list":
        console.print(*audit.listing(args.data), sep="\n")
        return 0
    record = audit.audit(args.names, args.data, args.accept_changed)
    page = audit.write(record, args.out)
    console.print(*audit.tables(record), sep="\n")
    console.print(f"written: {page}, with every pair of problems that sets share in data_audit.json", highlight=False)
    return 0
