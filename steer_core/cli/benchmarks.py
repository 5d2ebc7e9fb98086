"""The commands that measure on benchmarks: `steer evaluate MODEL --benchmarks ...` and `steer paired A B`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from steer_core.common.errors import SteerError

_COLUMNS = 132
"""What the tables need; a narrower terminal wraps their lines and loses nothing."""


def evaluate_on_benchmarks(args: argparse.Namespace, folder: str, names: list[str], settings: list[str]) -> int:
    """Evaluate the model in a folder on benchmarks by name; every response is kept, and a kill loses none."""
    if args.config:
        raise SteerError("--config: belongs to a task's held-out problems; give benchmark.key=value settings instead")
    from steer_core.common.settings import apply_overrides, build
    from steer_core.config.config import BenchmarksConfig

    config = build(BenchmarksConfig, apply_overrides({"model": {"path": folder}}, settings))
    import torch

    from steer_core.common.tables import rich_table
    from steer_core.evaluation import tables as tables
    from steer_core.evaluation.problem_sets import evaluate_problem_sets

    torch.set_num_threads(config.benchmark.threads)
    title = Path(args.model).name
    out = args.out or Path("runs/evaluate") / title
    scores = tables.published_scores(args.published)
    with Responses() as progress:
        evaluate_problem_sets(names, config, out, args.resume, progress.show, args.accept_changed)
    summary, console = tables.write_summary(out, title, scores), _console()
    console.print(rich_table(f"{title}, percent", tables.HEAD, tables.lines_of(summary)))
    beside = tables.published_lines(summary, title, scores) if args.published else []
    if beside:
        console.print(rich_table("beside the published numbers, percent", beside[0], beside[1:]))
    console.print(f"written: {out}/responses.parquet, summary.json, table.md", highlight=False, soft_wrap=True)
    return 0


def paired(args: argparse.Namespace) -> int:
    """Tell which of two evaluations on benchmarks is above the other, or what would decide it."""
    from steer_core.common.tables import rich_table
    from steer_core.evaluation import tables as tables

    found = tables.paired_evaluations(args.first, args.second, args.grader)
    title = f"A {args.first}, B {args.second}; avg@n in percent, 95% paired bootstrap over problems"
    _console().print(rich_table(title, tables.PAIRED_HEAD, tables.paired_lines(found)))
    return 0


def _console():
    from rich.console import Console

    return Console(width=max(Console().width, _COLUMNS))


class Responses:
    """Shows how many responses are done: a bar on a terminal, a line for every tenth elsewhere."""

    def __init__(self) -> None:
        from rich import progress

        self.live, self.said = sys.stdout.isatty() and "CI" not in os.environ, -1
        columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn())
        left = (progress.TextColumn("left"), progress.TimeRemainingColumn(), progress.TextColumn("{task.description}"))
        self.bar = progress.Progress(*columns, *left, disable=not self.live)
        self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> Responses:
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def show(self, done: int, total: int, what: str) -> None:
        """Show how far the evaluation is."""
        self.bar.update(self.task, completed=done, total=total, description=what)
        tenth = (10 * done) // total
        if not self.live and tenth > self.said:
            self.said = tenth
            print(f"{done} of {total} responses  {what}".rstrip(), flush=True)
