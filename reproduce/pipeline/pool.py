"""The runs of scale `laptop`: one pool of arms and seeds, from which every table and figure takes what it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.rows import keep_rows, read_rows
from steer_core import SteerError
from steer_core.common.errors import nearest
from steer_core.compare.plan import Plan, load_plan
from steer_core.compare.runner import planned_jobs, refuse_failed, run_jobs, start_comparison

HERE = Path(__file__).parent.parent
PLAN = HERE / "laptop.yaml"
ROWS = HERE / "results" / "laptop" / "runs.jsonl.xz"


class Stopped(Exception):
    """The runs were asked to stop; the same command goes on."""


def pool() -> Plan:
    """Every arm and seed of the scale."""
    return load_plan(PLAN, [])


def run_arms(
    plan: Plan, arms: Iterable[str], seeds: Iterable[int], folder: Path, rows: Path, jobs: int, console: Console
) -> None:
    """Train what is not trained yet, a seed after another, and keep the raw rows of the whole pool in `rows`.

    Raises SteerError where an arm or a seed is not the pool's, or a run failed; Stopped after Ctrl-C.
    """
    chosen = {name: plan.arms[known(name, plan)] for name in arms}
    start_comparison(plan, folder, resume=True, add_arms=True)
    for seed in seeds:
        if seed not in plan.seeds:
            raise SteerError(f"--seeds: {seed} is none of {plan.seeds}, the seeds of {PLAN.name}; choose from those")
        part = replace(plan, arms=chosen, baseline=next(iter(chosen)), seeds=[seed])
        planned = planned_jobs(part, folder)
        try:
            failed = run_jobs(planned, folder, jobs, console)
        finally:
            keep_rows(folder, rows)
        refuse_failed(failed, planned)
        if not all(job.done for job in planned_jobs(part, folder)):
            raise Stopped


def known(name: str, plan: Plan) -> str:
    """The name of an arm of the pool. Raises SteerError where it is none."""
    if name not in plan.arms:
        raise SteerError(f"arms: {name} is no arm of {PLAN.name}; {nearest(name, list(plan.arms))}")
    return name


def finished_runs(rows: Path = ROWS) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(about the pool, its finished runs), from the raw rows."""
    about, found = read_rows(rows)
    return about, [row for row in found if row["finished"]]
