"""Make one table or figure at one scale, from the command's arguments."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from pipeline import needs
from pipeline.arms import HERE, ROWS, finished_runs, is_kept, pool
from pipeline.catalogue import Item, catalogue
from pipeline.data_page import data_page
from pipeline.page import laptop_page
from pipeline.pool import Stopped, run_arms
from pipeline.rows import read_scores, write_scores
from pipeline.score_page import score_page
from pipeline.stages import SEEDS, make, runs_of
from steer_core import SteerError

__all__ = ["Stopped", "make_item"]
MINUTES_A_RUN = 4.5
"""Of one core of the machine that results.md names, alone on it."""
QUICK_FINAL = {"problems": 10, "samples": 64, "pass_at": [1, 32]}


def make_item(name: str, args: argparse.Namespace) -> None:
    """Run what is lacking, unless --kept, and write the item's page."""
    item = catalogue()[name]
    out = args.out or HERE.parent / "runs" / ("reproduce-quick" if args.quick else "reproduce")
    results = args.results or (out / "results" if args.fresh or args.quick else HERE / "results")
    if args.dry_run:
        told = dry_laptop(name, item, args) if args.scale == "laptop" else needs.cluster_lines(name, item, args.scale)
        print(told)
    elif item.kind == "script":
        run_script(item, args.kept)
    elif item.kind == "data":
        data_page(name, item, results / "laptop")
    elif args.scale == "laptop":
        make_laptop(name, item, args, out, results / "laptop")
    else:
        make_scores(name, item, args, out, results)


def make_laptop(name: str, item: Item, args: argparse.Namespace, out: Path, results: Path) -> None:
    """An item of the pool of laptop runs."""
    plan, console = pool(args.quick), Console()
    if not args.kept:
        folder = out / ("fresh" if args.fresh else "laptop")
        final = item.final | QUICK_FINAL if item.final and args.quick else item.final
        run_arms(plan, args.arms or item.arms, args.seeds or plan.seeds, folder, results, args.jobs, console, final)
    about, rows = finished_runs(results / ROWS)
    if not about:
        raise SteerError(f"--kept: {results} holds no {ROWS}; run without --kept")
    verdicts = laptop_page(name, item, about, rows, results)
    told = "; ".join(f"{verdict.claim.text}: {verdict.told()}" for verdict in verdicts)
    console.print(f"{name}: {results / name}.md. {told}", highlight=False, soft_wrap=True)


def dry_laptop(name: str, item: Item, args: argparse.Namespace) -> str:
    """Which runs are lacking, and how long they take."""
    if item.kind in ("script", "data"):
        return f"{name}: {f'python reproduce/{item.script}' if item.script else 'counts the files of the data folder'}"
    plan, rows = pool(), (args.results or HERE / "results") / "laptop" / ROWS
    lacking = [
        f"{arm}-{seed}"
        for seed in args.seeds or plan.seeds
        for arm in args.arms or item.arms
        if not is_kept(rows, arm, seed, item.final)
    ]
    hours = len(lacking) * MINUTES_A_RUN / 60
    return f"{name}: {len(lacking)} runs lack, about {hours:.1f} hours of one core: {', '.join(lacking) or 'none'}"


def make_scores(name: str, item: Item, args: argparse.Namespace, out: Path, results: Path) -> None:
    """An item at a scale of the paper: train, evaluate, choose, run by run; then its page."""
    kept = results / args.scale / f"{name}.json.xz"
    rows = read_scores(kept)
    if not args.kept:
        needs.refuse_lacking(item, args.scale)
        seeds = tuple(args.seeds or (SEEDS[:1] if args.scale == "smoke" else SEEDS))
        chosen = [run for run in runs_of(item, seeds, args.arms) if run.model in (args.models or item.paper.models())]
        for run in chosen:
            row = make(run, args.scale, out / args.scale, args.select)
            same = ("model", "arm", "seed", "select")
            rows = [one for one in rows if any(one[part] != row[part] for part in same)] + [row]
            write_scores(kept, rows)
    score_page(name, item, args.scale, [row for row in rows if row["select"] == args.select], results / args.scale)
    Console().print(f"{name}: {results / args.scale / name}.md", highlight=False, soft_wrap=True)


def run_script(item: Item, kept: bool) -> None:
    """A table that a script of its own makes; with --kept only where its raw rows give it in seconds."""
    command = [sys.executable, str(HERE / item.script), *(item.kept_arguments if kept else [])]
    if subprocess.run(command, check=False, cwd=HERE.parent).returncode:
        raise SteerError(f"{item.script}: failed; its own message says why")
