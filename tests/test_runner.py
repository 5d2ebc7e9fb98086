"""The runner of a comparison: what it shows while it works."""

import io

from rich.console import Console
from small import SMALL

from steer_core.compare.plan import load_plan
from steer_core.compare.runner import run_comparison, start_comparison


def plan_of_one_run(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("baseline: grpo\nseeds: [0]\narms:\n  grpo: {label: GRPO}\n")
    return load_plan(path, [*SMALL, "train.rollouts=30"])


def shown(tmp_path, terminal: bool) -> str:
    plan, folder = plan_of_one_run(tmp_path), tmp_path / "out"
    start_comparison(plan, folder, resume=False)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    assert run_comparison(plan, folder, jobs=1, console=console)
    return console.file.getvalue()


def test_a_terminal_sees_every_running_job_with_progress_entropy_and_time_left(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    text = shown(tmp_path, terminal=True)
    for part in ("base model", "all rollouts", "GRPO, seed 0", "30/30", "left", "entropy 0.", "reward 0."):
        assert part in text, part


def test_ci_sees_lines_and_no_bars(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")
    text = shown(tmp_path, terminal=True)
    assert "\r" not in text
    assert "30 of 30 rollouts after" in text
    assert "report: " in text
