"""`steer compare` from the command line: where settings may stand, failed starts, and a kill of the whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import start, steer, wait_until
from small import SMALL, without_time

from steer_core.cli.main import main
from steer_core.compare import runner
from steer_core.runs.folder import RunFolder

PLAN = "baseline: grpo\nseeds: [0]\narms:\n  grpo: {label: GRPO}\n"


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def no_runs(monkeypatch):
    """A comparison starts its folder and trains nothing."""
    monkeypatch.setattr(runner, "run_comparison", lambda *_: False)


def exit_code(*arguments) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def test_settings_may_stand_behind_options_as_well_as_in_front(tmp_path, plan, no_runs):
    places = {
        "front": [plan, *SMALL, "--out", tmp_path / "front", "--jobs", 1],
        "behind": [plan, "--out", tmp_path / "behind", *SMALL, "--jobs", 1],
        "both": [plan, *SMALL[:3], "--jobs", 1, "--out", tmp_path / "both", *SMALL[3:]],
    }
    for arguments in places.values():
        assert exit_code("compare", *arguments) == 130
    plans = [(tmp_path / place / "plan.yaml").read_text() for place in places]
    assert plans[0] == plans[1] == plans[2]
    assert "prompts: 4" in plans[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["quick", "--seeds", "0", "--jobs", "1", "nonsense"],
            "override 'nonsense': not of the form section.key=value",
        ),
        (["quick", "--seeds", "0", "--sedes=1"], "unrecognized arguments: --sedes=1"),
        (["quick", "nonsense"], "override 'nonsense': not of the form section.key=value"),
        (["nonsense"], "configuration nonsense: No such file"),
        (["--jobs", "0"], "--jobs: 0 is below 1"),
        (["--jobs", "-3"], "--jobs: -3 is below 1"),
    ],
)
def test_words_that_mean_nothing_are_refused_before_anything_is_written(capsys, tmp_path, no_runs, words, message):
    out = tmp_path / "out"
    assert exit_code("compare", *words, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_run_that_could_not_start_leaves_nothing_so_the_corrected_command_works(capsys, tmp_path):
    run = tmp_path / "run"
    arguments = [*SMALL, "train.rollouts=1", "--out", run, "--no-report"]
    assert exit_code("train", "model.path=/no/such/folder", *arguments) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert not run.exists()
    process = start(tmp_path / "output", "train", *arguments)
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()


def test_a_comparison_that_could_not_start_leaves_nothing_so_the_corrected_command_works(
    capsys, tmp_path, plan, no_runs
):
    out = tmp_path / "out"
    assert exit_code("compare", plan, *SMALL, "model.path=/no/such/folder", "--out", out) == 2
    assert "/no/such/folder holds no config.json" in capsys.readouterr().err
    assert not out.exists()
    assert exit_code("compare", plan, *SMALL, "--out", out) == 130


@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to their parent's life on Linux")
def test_a_killed_comparison_leaves_no_process_behind_and_resumes(tmp_path, plan):
    out, output = tmp_path / "out", tmp_path / "output"
    process = start(output, "compare", plan, *SMALL, "train.rollouts=8", "--jobs", 2, "--out", out)
    metrics = out / "runs" / "grpo" / "seed_0" / "metrics.jsonl"
    try:
        wait_until(lambda: metrics.exists() or not process.is_alive(), "the first rollout")
        children = processes_of(out)
        assert children, output.read_text()
        for child in children:  # so that none can end by itself
            os.kill(child, signal.SIGSTOP)
        process.kill()
        process.join()
        wait_until(lambda: not processes_of(out), "the end of the killed comparison's processes", seconds=30)
    finally:
        for child in processes_of(out):
            os.kill(child, signal.SIGKILL)
    process = start(output, "compare", "--resume", "--jobs", 2, "--out", out)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert [row["step"] for row in RunFolder.open(metrics.parent).read()] == list(range(1, 9))
    assert (out / "base.json").exists()
    assert (out / "report.html").exists()


def test_one_seed_gives_the_same_metrics_in_processes_with_different_hash_seeds(tmp_path):
    settings = [*SMALL, "train.seed=5", "intervention.name=steer", "train.rollouts=3", "--no-report", "--out"]
    runs = [RunFolder(tmp_path / name, None) for name in "ab"]
    command = [sys.executable, "-m", "steer_core", "train", *settings, str(runs[0].path)]
    environment = {**os.environ, "CI": "1", "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = steer("train", *settings, runs[1].path)  # of a process that took a seed at random
    assert done.returncode == 0, done.stderr
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        first, second = (without_time(run.read(log)) for run in runs)
        assert first == second
        assert first[-1]["step"] == 3
