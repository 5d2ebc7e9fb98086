"""Runs a comparison: every arm and seed in a process of its own, all cores used, resumable at any moment."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from rich.console import Console

from steer_core.common.environment import environment
from steer_core.common.errors import INTERRUPTED, SteerError
from steer_core.common.files import lock, read_json, write_atomically
from steer_core.common.places import COMPARISON, refuse_others
from steer_core.common.progress import Progress
from steer_core.common.settings import build, read_yaml, to_dict
from steer_core.compare.comparison import load_comparison
from steer_core.compare.launcher import Launched, Launcher
from steer_core.compare.plan import Plan, run_path
from steer_core.compare.report import write_report
from steer_core.policy.model import base_digest
from steer_core.runs.logs import last_row, read

_POLL_SECONDS = 0.5
_WHOLE = "all rollouts"


@dataclass
class Job:
    """One process of a comparison: a run, or the evaluation of the base model."""

    name: str
    arguments: list[str]
    log: Path
    result: Path
    rollouts: int = 0
    done: bool = False
    process: Launched | subprocess.Popen[bytes] | None = None
    stops_asked: int = 0

    def start(self, launcher: Launcher) -> None:
        """Start the process, one thread, output to its log; it dies with this one."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.process = launcher.start(self.arguments, self.log)
        except OSError as error:
            raise SteerError(f"{self.log}: cannot be written ({error.strerror}); make room, then --resume") from error

    def reason(self) -> str:
        """Why the process failed: the signal that killed it, or the last line of its log."""
        status = self.process.returncode
        if status < 0:
            memory = " (out of memory?)" if -status == signal.SIGKILL else ""
            return f"killed by signal {-status}{memory}"
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with status {status}; see {self.log}"

    def progress(self) -> tuple[int, str]:
        """(finished rollouts, what the last one looked like)."""
        row = last_row(self.result) if self.rollouts else None
        if row is None or not {"entropy/policy", "reward/mean"} <= row.keys():
            return 0, ""
        return row["step"], f"entropy {row['entropy/policy']:.3f}  reward {row['reward/mean']:.2f}"


def start_comparison(plan: Plan, folder: Path, resume: bool, add_arms: bool = False) -> None:
    """Make the folder of a comparison, or check that it is this plan's own.

    add_arms: take the folder of a plan that has some of this one's arms and is the same otherwise; the others are
    added. Raises SteerError where the folder holds a comparison and `resume` is off, or holds another plan's.
    """
    for arm in plan.arms:
        plan.config(arm, plan.seeds[0]).with_method()
    path, base = folder / COMPARISON, base_digest(plan.config(plan.baseline, plan.seeds[0]).model.path)
    try:
        if path.exists():
            if not resume:
                raise SteerError(f"--out: {folder} holds a comparison already; add --resume to go on, or name another")
            held = build(Plan, read_yaml(path))
            arms = {name: arm for name, arm in plan.arms.items() if name in held.arms or not add_arms}
            if replace(plan, arms=arms) != held:
                raise SteerError(f"--out: {folder} holds a comparison with another plan; name another folder")
            began_from = read_json(folder / "environment.json", "environment", "put it back, or name another folder")
            if began_from.get("base_model_sha256") != base:
                raise SteerError(f"--out: {folder} began from other weights than model.path has; name another folder")
            if held != plan:
                _write_plan(plan, folder)
            return
        refuse_others(folder, COMPARISON)
        if any((folder / "runs").glob("*/*")):
            raise SteerError(f"--out: {folder} holds runs, and its {COMPARISON} is gone; put it back, or name another")
        folder.mkdir(parents=True, exist_ok=True)
        about = environment() | {"base_model_sha256": base}
        write_atomically(folder / "environment.json", json.dumps(about, indent=2) + "\n")
        _write_plan(plan, folder)
    except OSError as error:
        raise SteerError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error


def _write_plan(plan: Plan, folder: Path) -> None:
    """The settings of every arm, then the plan: without it the folder is no comparison's."""
    (folder / "configs").mkdir(exist_ok=True)
    for arm in plan.arms:
        settings = to_dict(plan.config(arm, plan.seeds[0]))
        write_atomically(_config_path(folder, arm), yaml.safe_dump(settings, sort_keys=False))
    write_atomically(folder / COMPARISON, yaml.safe_dump(to_dict(plan), sort_keys=False, allow_unicode=True))


def run_comparison(plan: Plan, folder: Path, jobs: int, console: Console) -> bool:
    """Run what is not finished yet, `jobs` processes at a time, and write the report.

    Ctrl-C stops every run after the rollout in hand and writes a partial report; a second one stops
    them at once. Returns whether everything came to its end. Raises SteerError, after the report,
    where a run failed.
    """
    planned = planned_jobs(plan, folder)
    failed = run_jobs(planned, folder, jobs, console)
    comparison = load_comparison(folder)
    if len(comparison.metrics):
        console.print(f"report: {write_report(comparison, folder)}", highlight=False, soft_wrap=True)
    refuse_failed(failed, planned)
    return comparison.complete


def run_jobs(planned: list[Job], folder: Path, jobs: int, console: Console) -> list[Job]:
    """Run the processes that are not done, `jobs` at a time, and return those that failed; see `run_comparison`.

    The last of them starts beside `jobs` others where there are several: shared cores end sooner than idle ones.
    """
    waiting, running, failed, asked = [job for job in planned if not job.done], [], [], 0

    def ask_to_stop(*_) -> None:
        nonlocal asked
        asked += 1

    launcher = Launcher(folder)
    previous = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with lock(folder), _display(planned, console) as update:
            while running or (waiting and not asked):
                while waiting and len(running) < jobs + (jobs > 1 and len(waiting) == 1) and not asked:
                    job = waiting.pop(0)
                    job.start(launcher)
                    running.append(job)
                for job in running:
                    if job.stops_asked < asked:
                        job.process.send_signal(signal.SIGINT)
                        job.stops_asked = asked
                time.sleep(_POLL_SECONDS)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if job.process.returncode not in (0, INTERRUPTED) and not (asked and job.process.returncode < 0):
                        failed.append(job)
                update(running, asked)
    finally:
        for job in running:
            job.process.terminate()
        launcher.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return failed


def refuse_failed(failed: list[Job], planned: list[Job]) -> None:
    """Raise SteerError where processes failed, with the reason of each."""
    if failed:
        reasons = "; ".join(f"{job.name}: {job.reason()}" for job in failed)
        raise SteerError(f"{len(failed)} of {len(planned)} processes failed ({reasons}); mend that, then --resume")


def planned_jobs(plan: Plan, folder: Path) -> list[Job]:
    """Every process of a comparison: the base model first, then all arms of a seed before the next seed."""
    logs = folder / "logs"
    base = folder / "base.json"
    config = plan.config(plan.baseline, plan.seeds[0])
    arguments = [
        "evaluate",
        config.model.path,
        "--config",
        str(_config_path(folder, plan.baseline)),
        "--out",
        str(base),
    ]
    jobs = [Job("base model", arguments, logs / "base.log", base, done=base.exists())]
    for seed in plan.seeds:
        for arm in plan.arms:
            run, rollouts = run_path(folder, arm, seed), plan.config(arm, seed).train.rollouts
            if (run / "config.yaml").exists():
                arguments = ["train", "--resume", str(run)]
            else:
                arguments = ["train", str(_config_path(folder, arm)), f"train.seed={seed}", "--out", str(run)]
            arguments.append("--no-report")
            done = _is_done(run, rollouts)
            name, log = f"{plan.arms[arm].label}, seed {seed}", logs / f"{arm}-{seed}.log"
            jobs.append(Job(name, arguments, log, run / "metrics.jsonl", rollouts, done))
    return jobs


def _is_done(run: Path, rollouts: int) -> bool:
    """Whether a run is at its end with its settings and its whole log; of one that is not, --resume mends the log."""
    if not (run / "config.yaml").exists() or not (run / "checkpoints" / f"step_{rollouts:06d}").exists():
        return False
    try:
        return [row["step"] for row in read(run / "metrics.jsonl")] == list(range(1, rollouts + 1))
    except SteerError:
        return False


@contextlib.contextmanager
def _display(planned: list[Job], console: Console) -> Iterator[Callable[[list[Job], int], None]]:
    """A function of (running jobs, stops asked for) that shows how far the comparison has come."""
    total, began = sum(job.rollouts for job in planned), time.monotonic()
    first, told = sum(job.progress()[0] for job in planned), False
    with Progress(console) as progress:

        def update(running: list[Job], asked: int) -> None:
            nonlocal told
            if asked and not told:
                told = True
                console.print("stopping after the rollouts in hand; the report will be partial")
            done, spent = sum(job.progress()[0] for job in planned), (time.monotonic() - began) / 60
            left = f", about {spent / (done - first) * (total - done):.0f} minutes left" if done > first else ""
            line = f"{done} of {total} rollouts after {spent:.1f} minutes{left}"
            progress.show(done, total, line=line, name=_WHOLE)
            progress.keep({_WHOLE, *(job.name for job in running)})
            for job in running:
                step, status = job.progress()
                progress.show(step, job.rollouts or None, status, name=job.name)

        yield update


def _config_path(folder: Path, arm: str) -> Path:
    return folder / "configs" / f"{arm}.yaml"
