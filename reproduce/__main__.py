"""Every table and figure of the paper: `python -m reproduce` lists them, `python -m reproduce NAME` makes one.

    python -m reproduce                                    # what there is, what it needs, what has run
    python -m reproduce table3                             # scale laptop: kept runs are reused, others trained
    python -m reproduce table3 --kept                      # train nothing: redraw from the kept raw rows
    python -m reproduce all --kept                         # every page from its raw rows
    python -m reproduce table3 --fresh                     # train every run anew, in a folder of their own
    python -m reproduce table12 --scale smoke              # the paper's runs, model and sizes swapped, on a CPU
    python -m reproduce table12 --scale paper --dry-run    # hours, memory, disk; a line a run; a Slurm script
    python -m reproduce table12 --scale paper              # as published, stage by stage; goes on after any end

Interrupted at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pipeline.catalogue import RULES, SCALES, Stopped, catalogue, find

from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import cores
from steer_core.common.errors import INTERRUPTED, SteerError


def options() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        "python -m reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a table or figure (`table3`, `figure8`), or `all`")
    parser.add_argument("--scale", choices=SCALES, default="laptop", help="(default: %(default)s)")
    parser.add_argument("--kept", action="store_true", help="train nothing; pages from the raw rows that are kept")
    parser.add_argument("--fresh", action="store_true", help="train every run anew; results go to OUT/results")
    parser.add_argument("--quick", action="store_true", help="two small rollouts, two seeds; decides nothing")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and what it needs")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these alone (default: all of the item)")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), metavar="SEED", help="these alone (default: all)")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="with a scale of the paper: these alone")
    parser.add_argument("--select", choices=RULES, default=RULES[0], help="how a checkpoint is chosen (%(default)s)")
    parser.add_argument("--jobs", type=at_least(1), default=cores(), help="runs at a time (%(default)s: the cores)")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/reproduce, or -quick)")
    parser.add_argument("--results", type=Path, help="folder of the results (default: reproduce/results)")
    return parser


def main() -> int:
    """List, or make what is asked for; see --help."""
    args = options().parse_args()
    if args.name is None:
        from pipeline.listing import listing

        print(listing())
        return 0
    if args.kept and args.fresh:
        raise SteerError("--kept: trains nothing, and --fresh trains all; give one of them")
    names = list(catalogue()) if args.name == "all" else [find(args.name)]
    names = [name for name in names if args.scale in catalogue()[name].scales()] if args.name == "all" else names
    for name in names:
        item = catalogue()[name]
        if args.scale not in item.scales():
            reason = item.not_here or "it is not a table of runs" if args.scale == "laptop" else "it has no such runs"
            raise SteerError(
                f"--scale: {name} is not made at {args.scale} ({reason}); choose {' or '.join(item.scales())}"
            )
    from pipeline.make import make_item

    try:
        for name in names:
            make_item(name, args)
    except Stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    if args.name == "all" and args.kept and args.results is None:
        from pipeline.listing import write_pages

        write_pages()
    return 0


if __name__ == "__main__":
    end(main)
