"""Make one table or figure at one scale, from the command's arguments."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import needs
from pipeline.arms import HERE, ROWS, finished_runs, is_kept, pool
from pipeline.catalogue import RULES, Item, Stopped, catalogue
from pipeline.data_page import data_page
from pipeline.page import laptop_page, training_seconds
from pipeline.pool import run_arms
from pipeline.rows import read_scores, write_scores
from pipeline.score_page import score_page
from pipeline.stages import SEEDS, make, runs_of
from steer_core import SteerError
from steer_core.common.errors import INTERRUPTED
from steer_core.common.files import read_json, write_atomically

Rows = list[dict[str, Any]]
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
        run_script(name, item, args, out)
    elif item.kind == "data":
        data_page(name, item, results / "laptop")
    elif args.scale == "laptop":
        make_laptop(name, item, args, out, results / "laptop")
    else:
        make_scores(name, item, args, out, results)


def make_laptop(name: str, item: Item, args: argparse.Namespace, out: Path, results: Path) -> None:
    """An item of the pool of laptop runs."""
    plan, console = pool(args.quick), Console()
    check_names("--arms", args.arms, item.arms)
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
    """Which runs are missing, and how long those that are kept took to sample and to update."""
    if item.kind in ("script", "data"):
        return f"{name}: {f'python reproduce/{item.script}' if item.script else 'counts the files of the data folder'}"
    plan, rows = pool(), (args.results or HERE / "results") / "laptop" / ROWS
    lacking = [
        f"{arm}-{seed}"
        for seed in args.seeds or plan.seeds
        for arm in args.arms or item.arms
        if not is_kept(rows, arm, seed, item.final)
    ]
    kept = [training_seconds(row) for row in finished_runs(rows)[1]]
    hours = f", about {len(lacking) * sum(kept) / len(kept) / 3600:.1f} hours of one core" if kept else ""
    return f"{name}: {len(lacking)} runs are missing{hours}: {', '.join(lacking) or 'none'}"


def make_scores(name: str, item: Item, args: argparse.Namespace, out: Path, results: Path) -> None:
    """An item at a scale of the paper: train, evaluate, choose, run by run; then its page."""
    kept, place = results / args.scale / f"{name}.json.xz", out / args.scale
    check_names("--arms", args.arms, item.arms)
    check_names("--models", args.models, item.paper.models())
    if not args.kept:
        needs.refuse_lacking(item, args.scale, args.models)
        seeds = tuple(args.seeds or (SEEDS[:1] if args.scale == "smoke" else SEEDS))
        chosen = [run for run in runs_of(item, seeds, args.arms) if run.model in (args.models or item.paper.models())]
        for run in chosen:
            row = make(run, args.scale, place, args.select)
            write_atomically(place / run.name / f"{name}-{args.select}-row.json", json.dumps(row))
    rows = gathered(read_scores(kept), place.glob(f"*/{name}-*-row.json"))
    if not rows:
        raise SteerError(f"--kept: there is no run of {name} in {place} or {kept}; run without --kept")
    write_scores(kept, rows)
    own = [row for row in rows if row["select"] == args.select]
    title = name if args.select == RULES[0] else f"{name}-{args.select}"
    score_page(title, item, args.scale, own, results / args.scale)
    Console().print(f"{name}: {results / args.scale / title}.md", highlight=False, soft_wrap=True)


def gathered(kept: Rows, files: Iterable[Path]) -> Rows:
    """Kept rows with those of finished runs, which every process writes for itself; of the same run, the run's own."""
    new = [read_json(path, "row", "delete it and run again") for path in sorted(files)]
    rows = {(row["model"], row["arm"], row["seed"], row["select"]): row for row in [*kept, *new]}
    return list(rows.values())


def check_names(option: str, names: list[str] | None, known: Iterable[str]) -> None:
    """Raise SteerError for a name that there is not."""
    for name in names or ():
        if name not in known:
            raise SteerError(f"{option}: {name} is none of this item's; choose from {', '.join(known)}")


def run_script(name: str, item: Item, args: argparse.Namespace, out: Path) -> None:
    """A table that a script of its own makes: from its kept rows, or, with --fresh, anew."""
    for option in ("quick", "arms", "seeds", "models", "results"):
        if getattr(args, option):
            raise SteerError(f"--{option}: {name} has none here; see python reproduce/{item.script} --help")
    arguments = [one.format(out=out) for one in item.fresh_arguments] if args.fresh else item.kept_arguments
    status = subprocess.run(
        [sys.executable, str(HERE / item.script), *arguments], check=False, cwd=HERE.parent
    ).returncode
    if status == INTERRUPTED:
        raise Stopped
    if status:
        raise SteerError(f"{item.script}: failed with exit status {status}; its own message says why")
