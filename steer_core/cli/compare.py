"""`steer compare PLAN key=value ...`"""

from __future__ import annotations

import argparse
from pathlib import Path

from steer_core.cli.shared import path_of, take_settings, yaml_path
from steer_core.common.environment import cores
from steer_core.common.errors import INTERRUPTED, SteerError
from steer_core.common.places import PLANS

_EXAMPLES = """
examples:
  steer compare --out runs/compare
  steer compare --quick --out runs/sgd optimizer.name=sgd optimizer.learning_rate=0.1
  steer compare --methods stare kl-cov --out runs/others"""


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    from steer_core.interventions import METHODS

    parser.epilog = f"shipped plans: {', '.join(sorted(path.stem for path in PLANS.glob('*.yaml')))}\n{_EXAMPLES}"
    parser.add_argument("plan", nargs="?", metavar="PLAN", help="a plan's YAML file or shipped name (default: compare)")
    take_settings(parser)
    parser.add_argument(
        "--out", type=path_of, default=Path("runs/compare"), help="folder of the comparison (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="replace the plan's seeds")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"compare these with GRPO, at their defaults, in place of the plan's arms: {', '.join(METHODS)}, "
        "or module:Class for your own",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the shipped plan `quick`: fewer seeds and rollouts, under 5 minutes"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out if there is one")
    parser.add_argument(
        "--jobs",
        type=int,
        default=cores(),
        help="runs at a time, one core each (default: %(default)s); the last one starts beside them",
    )


def run(args: argparse.Namespace) -> int:
    """Train every arm of a plan over its seeds and report."""
    if args.jobs < 1:
        raise SteerError(f"--jobs: {args.jobs} is below 1; give the number of runs to train at a time")
    from rich.console import Console

    from steer_core.compare.comparison import load_comparison
    from steer_core.compare.plan import load_plan
    from steer_core.compare.report import summary_table
    from steer_core.compare.runner import run_comparison, start_comparison

    path, saved = yaml_path(args.plan, PLANS), args.out / "plan.yaml"
    if path is None:
        changed = args.quick or args.seeds or args.methods or args.settings
        goes_on = args.resume and saved.exists() and not changed
        path = saved if goes_on else PLANS / ("quick.yaml" if args.quick else "compare.yaml")
    plan, console = load_plan(path, args.settings, args.seeds, args.methods), Console()
    start_comparison(plan, args.out, args.resume)
    console.print(
        f"{len(plan.arms)} arms x {len(plan.seeds)} seeds, {args.jobs} at a time, into {args.out}", highlight=False
    )
    complete = run_comparison(plan, args.out, args.jobs, console)
    comparison = load_comparison(args.out)
    if len(comparison.final()):
        console.print(summary_table(comparison))
    if not complete:
        console.print(f"stopped; go on with: steer compare --resume --out {args.out}", highlight=False)
    return 0 if complete else INTERRUPTED
