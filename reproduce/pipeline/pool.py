"""The runs of scale `laptop`: one pool of arms and seeds, from which every table and figure takes what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.arms import PLAN, ROWS, is_kept, known
from pipeline.catalogue import Stopped
from pipeline.rows import keep_rows, read_rows, write_rows
from steer_core import SteerError
from steer_core.common.settings import to_dict
from steer_core.compare.plan import Plan, run_path
from steer_core.compare.runner import Job, planned_jobs, refuse_failed, run_jobs, start_comparison


def run_arms(
    plan: Plan,
    arms: Iterable[str],
    seeds: Iterable[int],
    folder: Path,
    results: Path,
    jobs: int,
    console: Console,
    final: dict[str, Any] | None = None,
) -> None:
    """Train what `results` does not hold yet, a seed after another, and add its raw rows to those that are kept there.

    final: settings of an evaluation of every run's last policy. Raises SteerError where an arm is not the pool's, a run
    failed, or the kept rows are of other settings; Stopped after Ctrl-C.
    """
    rows, names = results / ROWS, [known(arm, plan) for arm in arms]
    strange = [seed for seed in seeds if seed not in plan.seeds]
    if strange:
        raise SteerError(f"--seeds: {strange[0]} is none of {plan.seeds}, the seeds of {PLAN.name}; choose from those")
    refuse_other_settings(plan, rows)
    start_comparison(plan, folder, resume=True, add_arms=True)
    for seed in seeds:
        lacking = [arm for arm in names if not is_kept(rows, arm, seed, final)]
        if not lacking:
            continue
        chosen = {arm: plan.arms[arm] for arm in lacking}
        part = replace(plan, arms=chosen, baseline=lacking[0], seeds=[seed])
        try:
            whole = done_by(lambda part=part: planned_jobs(part, folder), folder, jobs, console)
            if whole and final:
                whole = done_by(lambda part=part: final_jobs(final, part, folder), folder, jobs, console)
        finally:
            keep_rows(folder, folder / ROWS)
            merge_rows(folder / ROWS, rows)
        if not whole:
            raise Stopped


def done_by(planned: Callable[[], list[Job]], folder: Path, jobs: int, console: Console) -> bool:
    """Run jobs; whether all came to their end. Raises SteerError where one failed."""
    refuse_failed(run_jobs(planned(), folder, jobs, console), planned())
    return all(job.done for job in planned())


def final_jobs(final: dict[str, Any], plan: Plan, folder: Path) -> list[Job]:
    """The evaluations of the last checkpoints of a plan's runs by other settings than those they trained with."""
    settings = [f"evaluation.{key}={value}".replace(" ", "") for key, value in final.items()]
    jobs = []
    for seed in plan.seeds:
        for arm in plan.arms:
            result = folder / "final" / f"{arm}-{seed}.json"
            arguments = ["evaluate", str(run_path(folder, arm, seed)), *settings, "--out", str(result)]
            log = folder / "logs" / f"final-{arm}-{seed}.log"
            jobs.append(Job(f"final evaluation of {arm}, seed {seed}", arguments, log, result, done=result.exists()))
    return jobs


def refuse_other_settings(plan: Plan, kept: Path) -> None:
    """Raise SteerError where kept runs trained by other settings than the plan has now for their arms."""
    about, held = read_rows(kept)
    if not held:
        return
    before, arms = about["plan"], {row["arm"] for row in held}
    changed = [arm for arm in sorted(arms) if arm in plan.arms and before["arms"][arm] != to_dict(plan.arms[arm])]
    if before["common"] != to_dict(plan)["common"]:
        changed = ["all"]
    if changed:
        told = f"{kept}: holds runs by other settings than {PLAN.name} has now ({', '.join(changed)})"
        raise SteerError(f"{told}; use --fresh, name other --results, or put the settings back")


def merge_rows(new: Path, kept: Path) -> None:
    """Add the runs of one file to another's; of a run in both, the one that is finished, else the new one.

    Raises SteerError where the two began from other base models.
    """
    about, rows = read_rows(new)
    before, held = read_rows(kept)
    if held and before["environment"]["base_model_sha256"] != about["environment"]["base_model_sha256"]:
        raise SteerError(f"{kept}: holds runs of another base model; use --fresh, or name other --results")
    merged = {(row["arm"], row["seed"]): row for row in held}
    for row in rows:
        key = (row["arm"], row["seed"])
        if not merged.get(key, {}).get("finished") or (row["finished"] and row["final"]):
            merged[key] = row
    about["environment"] = before.get("environment", about["environment"])
    write_rows(kept, about, list(merged.values()))
