"""`steer show RUN`"""

from __future__ import annotations

import argparse

from steer_core.cli.shared import path_of


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog = (
        "The page needs no server: open it in a browser. Keys 1 to 4 colour the tokens by lambda, Omega (the\n"
        "estimated entropy change), entropy and probability; pointing at a token tells all of them.\n\n"
        "examples:\n  steer show runs/one\n  steer show runs/one --step 1 --step 20"
    )
    parser.add_argument("run", type=path_of, metavar="RUN", help="folder of a run, with responses in its rollouts/")
    parser.add_argument(
        "--step",
        type=int,
        action="append",
        metavar="N",
        help="the rollout to show, more than once for several (default: the last that is there)",
    )
    parser.add_argument(
        "--out", type=path_of, metavar="FILE", help="the page of one step (default: RUN/rollouts/step_00000N.html)"
    )


def run(args: argparse.Namespace) -> int:
    """Make a page of the responses that a run sampled, every token coloured by weight, entropy or probability."""
    from steer_core.show import show

    for path in show(args.run, args.step, args.out):
        print(f"written: {path}")
    return 0
