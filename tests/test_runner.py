"""The runner of a comparison: what it shows while it works, and why a process failed."""

import io
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from small import SMALL

from steer_core.common.errors import SteerError
from steer_core.compare import runner
from steer_core.compare.comparison import load_comparison
from steer_core.compare.plan import Arm, Plan, load_plan, run_path
from steer_core.compare.runner import Job, planned_jobs, run_comparison, run_jobs, start_comparison


def plan_of_one_run(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("baseline: grpo\nseeds: [0]\narms:\n  grpo: {label: GRPO}\n")
    return load_plan(path, [*SMALL, "train.rollouts=5"])


def shown(tmp_path, terminal: bool) -> str:
    plan, folder = plan_of_one_run(tmp_path), tmp_path / "out"
    start_comparison(plan, folder, resume=False)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    assert run_comparison(plan, folder, jobs=1, console=console)
    return console.file.getvalue()


def test_a_terminal_sees_every_running_job_with_progress_entropy_and_time_left(tmp_path, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    text = shown(tmp_path, terminal=True)
    for part in ("base model", "all rollouts", "GRPO, seed 0", "5/5", "left", "entropy 0.", "reward 0."):
        assert part in text, part


def test_ci_sees_lines_and_no_bars(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")
    text = shown(tmp_path, terminal=True)
    assert "\r" not in text
    assert "5 of 5 rollouts after" in text
    assert "report: " in text


def test_runs_whose_plan_is_gone_are_not_gone_on_with_by_another(tmp_path):
    plan, folder = plan_of_one_run(tmp_path), tmp_path / "out"
    start_comparison(plan, folder, resume=False)
    (folder / "plan.yaml").unlink()
    start_comparison(plan, folder, resume=True)  # killed before its first run: it begins
    (folder / "plan.yaml").unlink()
    (folder / "runs" / "grpo" / "seed_0").mkdir(parents=True)
    with pytest.raises(SteerError, match=r"holds runs, and its plan.yaml is gone; put it back, or name another"):
        start_comparison(plan, folder, resume=True)


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


def test_a_run_at_its_end_without_its_whole_log_or_settings_is_gone_on_with(tmp_path):
    """Or `steer compare --resume` would for ever say that it stopped, and advise itself."""
    plan = plan_of_one_run(tmp_path)
    run, whole = run_path(tmp_path, "grpo", 0), [f'{{"step": {n}}}\n' for n in range(1, 6)]
    (run / "checkpoints" / "step_000005").mkdir(parents=True)

    def is_done(lines: list[str], settings: bool = True) -> bool:
        (run / "metrics.jsonl").write_text("".join(lines))
        (run / "config.yaml").unlink(missing_ok=True)
        if settings:
            (run / "config.yaml").write_text("{}")
        return planned_jobs(plan, tmp_path)[1].done

    assert is_done(whole)
    assert not any(is_done(lines) for lines in ([], whole[:-1], whole[:3] + whole[4:], ["[]"], ["[]\n", *whole]))
    assert not is_done(whole, settings=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("baseline: g\nseeds: [0]\ncommon: 3\narms:\n  g: {label: G}\n", "common: 3 is no section"),
        ("baseline: g\nseeds: [0]\narms:\n  g: {label: G, overrides: [3]}\n", "overrides.0: 3 is not allowed"),
        ("baseline: g\nseeds: [0]\narms:\n  g: {label: G, overrides: 3}\n", "overrides: 3 is not allowed"),
    ],
)
def test_a_plan_of_another_shape_is_told_by_its_field(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(SteerError, match=message):
        load_plan(tmp_path / "plan.yaml")


def test_a_comparison_gains_arms_only_where_that_is_asked_for_and_all_else_is_the_same(tmp_path):
    small = Plan(arms={"a": Arm(label="A")}, baseline="a", seeds=[0], common={"train": {"rollouts": 2}})
    more = replace(small, arms={"a": Arm(label="A"), "b": Arm(label="B", overrides=["optimizer.learning_rate=5e-5"])})
    start_comparison(small, tmp_path / "out", resume=False)
    for other, asked in ((more, False), (replace(more, seeds=[1]), True), (replace(more, note="other"), True)):
        with pytest.raises(SteerError, match="another plan"):
            start_comparison(other, tmp_path / "out", resume=True, add_arms=asked)
    start_comparison(more, tmp_path / "out", resume=True, add_arms=True)
    assert load_comparison(tmp_path / "out").plan == more
    assert (tmp_path / "out" / "configs" / "b.yaml").exists()
    with pytest.raises(SteerError, match="another plan"):  # none is taken away
        start_comparison(small, tmp_path / "out", resume=True, add_arms=True)


@pytest.mark.parametrize(("jobs", "most"), [(1, [1, 1, 1]), (2, [1, 2, 3]), (3, [1, 2, 3, 4]), (2, [1, 2, 1, 2])])
def test_the_last_job_starts_beside_the_others_where_there_are_several(tmp_path, jobs, most, monkeypatch):
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0)
    running, beside = [], []

    class Process:
        polls, returncode = 0, 0

        def poll(self):
            self.polls += 1
            if self.polls < 3:
                return None
            running.remove(self)
            return 0

    class Made(Job):
        def start(self, launcher):
            self.process = Process()
            running.append(self.process)
            beside.append(len(running))

    made = [Made(str(i), [], tmp_path / "log", tmp_path / "result") for i in range(len(most))]
    assert run_jobs(made, tmp_path, jobs, Console(file=io.StringIO())) == []
    assert beside == most
