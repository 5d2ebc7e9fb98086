"""The `steer` command: compare, train, plan, evaluate, paired, estimate, report, show, data, doctor."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from steer_core.cli.arguments import CONFIGS, PLANS, parser_of
from steer_core.cli.benchmarks import evaluate_on_benchmarks, paired
from steer_core.common.errors import INTERRUPTED, SteerError
from steer_core.config.config import load_config

if TYPE_CHECKING:
    from steer_core.runs.folder import RunFolder
    from steer_core.training.loop import Trainer


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exit 0 when it came to its end, 2 on bad input, 130 when it was stopped."""
    commands = (compare, train, plan, evaluate, paired, estimate, report, show, data, doctor)
    parser = parser_of({function.__name__: function for function in commands})
    args, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(args, "settings") and all(_is_setting(word) for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # settings may stand behind options too
        args.settings = [*args.settings, *rest]
    try:
        sys.exit(args.command(args))
    except SteerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def compare(args: argparse.Namespace) -> int:
    """Train every arm of a plan over its seeds and report."""
    if args.jobs < 1:
        raise SteerError(f"--jobs: {args.jobs} is below 1; give the number of runs to train at a time")
    from rich.console import Console

    from steer_core.compare.comparison import load_comparison
    from steer_core.compare.plan import load_plan
    from steer_core.compare.report import summary_table
    from steer_core.compare.runner import run_comparison, start_comparison

    words = args.methods or []  # which takes the settings behind it too
    path, overrides = _file_and_settings([*args.settings, *filter(_is_setting, words)], PLANS)
    methods = [word for word in words if not _is_setting(word)] or None
    saved = args.out / "plan.yaml"
    if path is None:
        goes_on = args.resume and saved.exists() and not (args.quick or args.seeds or methods or overrides)
        path = saved if goes_on else PLANS / ("quick.yaml" if args.quick else "compare.yaml")
    plan, console = load_plan(path, overrides, args.seeds, methods), Console()
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


def train(args: argparse.Namespace) -> int:
    """Train one run, from its start or from its last checkpoint, and write its report."""
    if args.resume and (args.settings or args.out):
        raise SteerError("--resume: a run goes on with the settings it began with; drop the configuration and --out")
    if args.from_step is not None and not args.resume:
        raise SteerError(f"--from-step: {args.from_step} needs --resume RUN; add it")
    if args.auto_resume and (args.resume or not args.out):
        raise SteerError("--auto-resume: begins the run in --out or goes on with it; give --out, and no --resume")
    path, overrides = _file_and_settings(args.settings, CONFIGS)
    config = None if args.resume else load_config(path, overrides, args.scale)
    from steer_core.common import ranks
    from steer_core.common.files import lock
    from steer_core.compare.comparison import comparison_of
    from steer_core.compare.report import write_report
    from steer_core.runs.folder import RunFolder
    from steer_core.training.loop import Trainer

    goes_on = bool(args.resume) or (args.auto_resume and (args.out / "config.yaml").exists())
    if goes_on:
        run = RunFolder.open(args.resume or args.out)
        if args.auto_resume and run.config != config:
            raise SteerError(f"--out: {args.out} holds a run with other settings; name another folder, or --resume it")
    else:
        run = RunFolder(args.out or Path("runs") / (path.stem if path else "run"), config)
    with ranks.lost_ranks_named():
        trainer = Trainer(run.config, run)
        if not goes_on:
            ranks.broadcast_from_main(lambda: run.start().path)
        with lock(run.path) if ranks.is_main() else _silence():
            ranks.barrier()
            if goes_on:
                trainer.resume(args.from_step, fall_back=args.auto_resume)
            total = run.config.train.rollouts
            if trainer.finished == total:
                print(f"{run.path}: came to its end already, after {total} rollouts")
                return 0
            _stop_on_signals(trainer)
            print(f"{run.path}: rollouts {trainer.finished + 1} to {total}", flush=True)
            with Progress(trainer.finished, total) as progress:
                finished = trainer.fit(progress.show)
            if not args.no_report and ranks.is_main():
                print(f"report: {write_report(comparison_of([run.path]), run.path)}")
    if not finished:
        print(f"stopped; go on with: steer train --resume {run.path}")
    return 0 if finished else INTERRUPTED


def plan(args: argparse.Namespace) -> int:
    """Tell whether a run fits its GPUs, how long a step takes and what bounds it, without loading anything."""
    from steer_core.cli.plan import run_plan

    path, overrides = _file_and_settings(args.settings, CONFIGS)
    return run_plan(args, load_config(path, overrides, args.scale), args.settings[0] if path else "all defaults")


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate a model on held-out problems of a task, or on benchmarks."""
    if args.benchmarks:
        words = [*args.benchmarks, *args.settings]  # the option takes the settings behind it too
        names, settings = [[word for word in words if _is_setting(word) is asked] for asked in (False, True)]
        return evaluate_on_benchmarks(args, _trained(args.model)[0], names, settings)
    for option in ("resume", "published", "accept_changed"):
        if getattr(args, option):
            raise SteerError(f"--{option.replace('_', '-')}: belongs to --benchmarks; name some, or drop it")
    path, overrides = _file_and_settings([*([str(args.config)] if args.config else []), *args.settings], CONFIGS)
    import torch
    from rich.console import Console

    from steer_core.common.files import write_atomically
    from steer_core.common.seeding import derive_seed
    from steer_core.evaluation.held_out import evaluate as run_evaluation
    from steer_core.evaluation.tables import evaluation_table
    from steer_core.policy.model import load_policy
    from steer_core.policy.tokenizer import check_prompt
    from steer_core.problems import make_task
    from steer_core.rollout.huggingface import HuggingFaceSampler

    folder, run = _trained(args.model)
    path = path or (run.path / "config.yaml" if run else None)
    config = load_config(path, overrides)
    torch.set_num_threads(config.train.threads)
    policy = load_policy(**vars(config.model) | {"path": folder})
    task, settings = make_task(config.task, policy.tokenizer), config.evaluation
    problems = task.problems(settings.split, settings.problems)
    check_prompt(policy.tokenizer, problems[0].prompt)
    seed = derive_seed(config.train.seed, "evaluation")
    result = run_evaluation(policy, HuggingFaceSampler(policy), task, problems, settings, seed)
    title = f"{args.model} on {settings.problems} {settings.split} problems of {task.name}"
    Console().print(evaluation_table(result, title, settings.pass_at))
    if args.out:
        row = {**result.to_dict(settings.pass_at), "model": args.model, "seed": config.train.seed}
        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.out, json.dumps(row) + "\n")
        except OSError as error:
            raise SteerError(f"--out: {args.out} cannot be written ({error.strerror}); name another file") from error
    return 0


def estimate(args: argparse.Namespace) -> int:
    """Measure how well every estimate tells the entropy change of real updates of a model."""
    words = args.update or []  # which takes the settings behind it too
    settings = [*([str(args.config)] if args.config else []), *args.settings, *filter(_is_setting, words)]
    path, overrides = _file_and_settings(settings, CONFIGS)
    from rich.console import Console
    from rich.progress import track

    from steer_core.estimate.measure import DEFAULT_UPDATES, Update
    from steer_core.estimate.measure import estimate as run_estimate
    from steer_core.estimate.tables import ESTIMATE_COLUMNS, estimate_table, write_estimate

    folder, run = _trained(args.model)
    config = load_config(path or (run.path / "config.yaml" if run else None), overrides)
    updates = [Update.parse(text) for text in words if not _is_setting(text)] or DEFAULT_UPDATES
    try:
        args.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        raise SteerError(f"--out: {args.out} cannot be written ({error.strerror}); name another folder") from error
    live = sys.stdout.isatty() and "CI" not in os.environ

    def progress(items, title):
        return track(items, title, disable=not live)

    try:
        result = run_estimate(folder, config, updates, args.with_signal, run, progress)
    except BaseException:
        with suppress(OSError):  # a folder that holds something stays
            args.out.rmdir()
        raise
    console = Console()
    console = Console(width=max(console.width, ESTIMATE_COLUMNS))
    for update in result.record["updates"]:
        console.print(estimate_table(result.record, update))
    print(f"written: {write_estimate(result, args.out)}, with estimate.png and every token's row beside it")
    return 0


def report(args: argparse.Namespace) -> int:
    """Write the report of a comparison, or of runs."""
    from rich.console import Console

    from steer_core.compare.comparison import comparison_of, load_comparison
    from steer_core.compare.report import summary_table, write_report

    one = len(args.runs) == 1 and (args.runs[0] / "plan.yaml").exists()
    comparison = load_comparison(args.runs[0]) if one else comparison_of(args.runs)
    folder = args.out or (args.runs[0] if len(args.runs) == 1 else Path("report"))
    console = Console()
    console.print(f"report: {write_report(comparison, folder)}")
    if len(comparison.final()):
        console.print(summary_table(comparison))
    return 0


def show(args: argparse.Namespace) -> int:
    """Make a page of the responses that a run sampled, every token coloured by weight, entropy or probability."""
    from steer_core.show import show as make_pages

    for path in make_pages(args.run, args.step, args.out):
        print(f"written: {path}")
    return 0


def data(args: argparse.Namespace) -> int:
    """List the data sets, or audit them: what is broken in their files, and what they share."""
    from rich.console import Console

    from steer_core.problems import audit

    console = Console()
    console = Console(width=max(console.width, audit.COLUMNS))
    if args.action == "list":
        console.print(*audit.listing(args.data), sep="\n")
        return 0
    record = audit.audit(args.names, args.data, args.accept_changed)
    page = audit.write(record, args.out)
    console.print(*audit.tables(record), sep="\n")
    console.print(f"written: {page}, with every pair of problems that sets share in data_audit.json", highlight=False)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Tell what of the stack is present and whether it fits together."""
    from steer_core.cli.doctor import diagnose, render

    checks = diagnose()
    print(render(checks))
    return int(any(check.state == "failure" for check in checks))


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


class Progress:
    """Shows a run's rollouts: a bar on a terminal, a line each elsewhere."""

    def __init__(self, finished: int, total: int) -> None:
        from rich import progress

        self.total, self.live = total, sys.stdout.isatty() and "CI" not in os.environ
        columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
        left = (progress.TextColumn("left"), progress.TimeRemainingColumn(), progress.TextColumn("{task.description}"))
        self.bar = progress.Progress(*columns, *left, disable=not self.live)
        self.task = self.bar.add_task("", total=total, completed=finished)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Show that a rollout has finished."""
        text = f"entropy {metrics['entropy/policy']:.3f}  reward {metrics['reward/mean']:.3f}"
        self.bar.update(self.task, completed=step, description=text)
        if not self.live:
            print(f"rollout {step}/{self.total}  {text}", flush=True)


def _trained(model: str) -> tuple[str, RunFolder | None]:
    """(folder of weights, the run they are the last checkpoint of or None) of a MODEL argument."""
    from steer_core.runs.folder import RunFolder

    if not (Path(model) / "config.yaml").is_file():
        return model, None
    run = RunFolder.open(model)
    saved = run.checkpoints.saved()
    if not saved:
        raise SteerError(f"MODEL: {model} has no checkpoint yet; train on, or give a model folder")
    run.checkpoints.check(saved[-1])
    return str(saved[-1]), run


def _is_setting(word: str) -> bool:
    return re.match(r"[\w.]+=", word) is not None


def _file_and_settings(words: list[str], shipped: Path) -> tuple[Path | None, list[str]]:
    """(the YAML file or None, the settings): a first word that is no `key=value` names the file or a shipped one."""
    if not words or _is_setting(words[0]):
        return None, words
    name = shipped / f"{words[0]}.yaml"
    return (name if name.is_file() and not Path(words[0]).is_file() else Path(words[0])), words[1:]
