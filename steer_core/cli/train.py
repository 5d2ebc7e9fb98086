"""`steer train CONFIG key=value ...`"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from steer_core.cli.shared import path_of, take_config, yaml_path
from steer_core.common.errors import INTERRUPTED, SteerError
from steer_core.common.places import CONFIGS

if TYPE_CHECKING:
    from steer_core.runs.folder import RunFolder
    from steer_core.training.loop import Trainer


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    take_config(parser)
    parser.add_argument("--out", type=path_of, help="folder of the run (default: runs/CONFIG)")
    parser.add_argument(
        "--resume",
        type=path_of,
        metavar="RUN",
        help="go on with the run in this folder from its last checkpoint; train.rollouts=N plans another length for it",
    )
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="begin the run in --out, or go on from its last whole checkpoint: the same command after any end",
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end")
    parser.add_argument(
        "--from-step", type=int, metavar="N", help="with --resume: from the checkpoint taken after rollout N"
    )


def run(args: argparse.Namespace) -> int:
    """Train one run, from its start or from its last checkpoint, and write its report."""
    _check(args)
    from steer_core.config.config import load_config

    path = yaml_path(args.config, CONFIGS)
    config = None if args.resume else load_config(path, args.settings, args.scale).with_method()
    from steer_core.common import ranks
    from steer_core.common.files import lock
    from steer_core.runs.folder import RunFolder
    from steer_core.training.loop import Trainer

    goes_on = bool(args.resume) or (args.auto_resume and (args.out / "config.yaml").exists())
    if goes_on:
        run = RunFolder.open(args.resume or args.out)
        run.check_model()
        if args.auto_resume and run.written.with_method() != config:
            raise SteerError(f"--out: {args.out} holds a run with other settings; name another folder, or --resume it")
        for setting in args.settings if args.resume else ():
            run.plan(setting.partition("=")[2])
    else:
        run = RunFolder(args.out or Path("runs") / (path.stem if path else "run"), config)
    with ranks.lost_ranks_named():
        trainer = Trainer(run.config, run)
        if not goes_on:
            ranks.broadcast_from_main(lambda: run.start(trainer.passes).path)
        with lock(run.path) if ranks.is_main() else _silence():
            ranks.barrier()
            if goes_on:
                trainer.resume(args.from_step, fall_back=args.auto_resume)
                ranks.broadcast_from_main(lambda: run.keep_plan(trainer.finished))
            return _fit(trainer, run, not args.no_report and ranks.is_main())


def _check(args: argparse.Namespace) -> None:
    others = [setting for setting in args.settings if not setting.startswith("train.rollouts=")]
    if args.resume and (args.config or others or args.out):
        raise SteerError(
            "--resume: a run goes on with the settings it began with, but for train.rollouts; drop the configuration"
            f"{f', {others[0]}' if others else ''} and --out"
        )
    if args.from_step is not None and not args.resume:
        raise SteerError(f"--from-step: {args.from_step} needs --resume RUN; add it")
    if args.auto_resume and (args.resume or not args.out):
        raise SteerError("--auto-resume: begins the run in --out or goes on with it; give --out, and no --resume")


def _fit(trainer: Trainer, run: RunFolder, report: bool) -> int:
    """Train to the end, or to a signal, and tell how far it is."""
    from steer_core.common.progress import Progress

    total = run.config.train.rollouts
    if trainer.finished == total:
        run.rewind(total)
        print(f"{run.path}: came to its end already, after {total} rollouts")
        return 0
    _stop_on_signals(trainer)
    print("\n".join(f"{what}: {how}" for what, how in trainer.passes.items()))
    print(f"{run.path}: rollouts {trainer.finished + 1} to {total}", flush=True)
    with Progress() as progress:

        def show(n: int, metrics: dict[str, float]) -> None:
            text = f"entropy {metrics['entropy/policy']:.3f}  reward {metrics['reward/mean']:.3f}"
            progress.show(n, total, text, line=f"rollout {n}/{total}  {text}", every=True)

        progress.show(trainer.finished, total)
        finished = trainer.fit(show)
    if report:
        from steer_core.compare.comparison import comparison_of
        from steer_core.compare.report import write_report

        print(f"report: {write_report(comparison_of([run.path]), run.path)}")
    if not finished:
        print(f"stopped; go on with: steer train --resume {run.path}")
    return 0 if finished else INTERRUPTED


def _stop_on_signals(trainer: Trainer) -> None:
    """Have Ctrl-C and SIGTERM stop a run after the rollout in hand, and a second Ctrl-C at once.

    Some launchers send their ranks SIGTERM after the terminal's own Ctrl-C, so SIGTERM never stops at once.
    """

    def stop(*_) -> None:
        print("stopping after the rollout in hand; Ctrl-C once more stops at once", file=sys.stderr)
        trainer.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on standard output: of several ranks, the first speaks for all."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield
