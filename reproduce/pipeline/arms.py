"""The arms of scale `laptop`, and which of their runs are kept; nothing here trains."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.rows import read_rows
from steer_core.common.errors import SteerError, nearest
from steer_core.common.settings import apply_overrides
from steer_core.compare.plan import Plan, load_plan

HERE = Path(__file__).parent.parent
PLAN = HERE / "laptop.yaml"
RESULTS = HERE / "results" / "laptop"
ROWS = "runs.jsonl.xz"
QUICK = ("train.rollouts=2", "train.checkpoint_every=2", "evaluation.every=1", "evaluation.problems=20",
         "rollout.prompts=8")  # fmt: skip


@cache
def pool(quick: bool = False) -> Plan:
    """Every arm and seed of the scale; quick: two seeds of two small rollouts, which decide nothing."""
    plan = load_plan(PLAN, [])
    if not quick:
        return plan
    return replace(plan, seeds=plan.seeds[:2], common=apply_overrides(plan.common, QUICK))


def known(name: str, plan: Plan) -> str:
    """The name of an arm of the pool. Raises SteerError where it is none."""
    if name not in plan.arms:
        raise SteerError(f"arms: {name} is no arm of {PLAN.name}; {nearest(name, list(plan.arms))}")
    return name


def is_kept(rows: Path, arm: str, seed: int, final: dict[str, Any] | None = None) -> bool:
    """Whether the raw rows hold a finished run, with its final evaluation where one is asked for."""
    return any(
        row["arm"] == arm and row["seed"] == seed and (final is None or row["final"]) for row in finished_runs(rows)[1]
    )


def finished_runs(rows: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(about the pool, its finished runs in order of their seeds), from the raw rows."""
    about, found = read_rows(rows)
    return about, sorted((row for row in found if row["finished"]), key=lambda row: row["seed"])
