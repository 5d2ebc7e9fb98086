"""`steer estimate MODEL key=value ...`"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

from steer_core.cli.shared import (
    path_of,
    refuse_unnamed_reward,
    take_settings,
    trained,
    wide_console,
    writing,
    yaml_path,
)
from steer_core.common.errors import SteerError
from steer_core.common.places import CONFIGS

_EXAMPLES = """examples:
  steer estimate embedded --update sgd:0.001 adamw:1e-4 model.dtype=float64
  steer estimate runs/one rollout.prompts=32
  steer estimate models/smollm2-135m --with-signal --update sgd:0.001 task.name=maths task.file=gsm8k.parquet"""


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="`embedded`, a Hugging Face model folder, or a run folder (its last checkpoint, with its moments)",
    )
    take_settings(parser)
    parser.add_argument(
        "--update",
        nargs="+",
        metavar="NAME:ETA",
        help="optimisers and step sizes, each measured from the same policy (default: sgd:0.001 adamw:1e-4)",
    )
    parser.add_argument(
        "--with-signal",
        action="store_true",
        help="keep only groups whose rewards differ, sampling on until there are rollout.prompts of them",
    )
    parser.add_argument("--config", help="a run's YAML file or shipped name (default: the run's own, or all defaults)")
    parser.add_argument("--resume", action="store_true", help="go on with the estimate that was stopped in --out")
    parser.add_argument(
        "--out", type=path_of, default=Path("runs/estimate"), help="folder of the results (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure how well every estimate tells the entropy change of real updates of a model."""
    from rich.console import Console
    from rich.progress import track

    from steer_core.common.progress import is_live
    from steer_core.config.config import load_config
    from steer_core.estimation.estimate import DEFAULT_UPDATES, Update, estimate
    from steer_core.estimation.tables import ESTIMATE_COLUMNS, estimate_table, write_estimate
    from steer_core.estimation.unfinished import Unfinished

    folder, run = trained(args.model)
    config = load_config(yaml_path(args.config, CONFIGS) or (run.path / "config.yaml" if run else None), args.settings)
    if run and not args.config:
        refuse_unnamed_reward(config.task, args.settings)
    config = run.located(config) if run else config
    updates = [Update.parse(text) for text in args.update or []] or DEFAULT_UPDATES
    twice = [update for update in updates if updates.count(update) > 1]
    if twice:
        raise SteerError(f"--update: {twice[0]} is named twice; name each once")
    with writing("--out", args.out, "folder"):
        args.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    unfinished = Unfinished(args.out)
    still = not is_live(Console())
    try:
        result = estimate(
            folder,
            config,
            updates,
            args.with_signal,
            run,
            lambda items, title: track(items, title, disable=still),
            unfinished,
            args.resume,
        )
    except SteerError:  # it would be the same again
        unfinished.give_up()
        with suppress(OSError):  # a folder that holds something stays
            args.out.rmdir()
        raise
    console = wide_console(ESTIMATE_COLUMNS)
    for update in result.record["updates"]:
        console.print(estimate_table(result.record, update))
    print(f"written: {write_estimate(result, args.out)}, with estimate.png and every token's row beside it")
    unfinished.finish()
    return 0
