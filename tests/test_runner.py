"""The runner of a comparison: what it shows while it works, and why a process failed."""

import io
import subprocess
import sys

import pytest
from rich.console import Console
from small import SMALL

from steer_core.compare.plan import load_plan
from steer_core.compare.runner import Job, run_comparison, start_comparison


def plan_of_one_run(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("baseline: grpo\nseeds: [0]\narms:\n  grpo: {label: GRPO}\n")
    return load_plan(path, [*SMALL, "train.rollouts=12"])


def shown(tmp_path, terminal: bool) -> str:
    plan, folder = plan_of_one_run(tmp_path), tmp_path / "out"
    start_comparison(plan, folder, resume=False)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    assert run_comparison(plan, folder, jobs=1, console=console)
    return console.file.getvalue()


def test_a_terminal_sees_every_running_job_with_progress_entropy_and_time_left(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    text = shown(tmp_path, terminal=True)
    for part in ("base model", "all rollouts", "GRPO, seed 0", "12/12", "left", "entropy 0.", "reward 0."):
        assert part in text, part


def test_ci_sees_lines_and_no_bars(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")
    text = shown(tmp_path, terminal=True)
    assert "\r" not in text
    assert "12 of 12 rollouts after" in text
    assert "report: " in text


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "import os, signal; print('rollout 3', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
            "killed by signal 9",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "killed by signal 15"),
        ("print('rollout 3'); print('error: train.seed: is bad'); exit(2)", "error: train.seed: is bad"),
        ("exit(7)", "ended with status 7; see "),
    ],
)
def test_a_process_that_failed_tells_its_signal_or_its_last_words(program, reason, tmp_path):
    job = Job("grpo, seed 0", [], tmp_path / "log", tmp_path / "result")
    with job.log.open("w") as log:
        job.process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)
    job.process.wait()
    assert job.reason().startswith(reason)
    assert ("out of memory?" in job.reason()) == ("signal 9" in reason)
