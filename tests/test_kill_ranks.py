"""Two DeepSpeed ranks: kill -9 at ten random moments changes nothing, and a rank that dies takes the other down."""

import hashlib
import os
import random
import signal
import time

import pytest
from processes import start_ranks, wait_until
from small import SMALL, rollout_seconds, without_time

from steer_core.runs.folder import RunFolder

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
pytestmark = pytest.mark.long

KILLS, ROLLOUTS = 10, 36
SETTINGS = (
    "engine.name=deepspeed",
    "engine.zero_stage=2",
    "rollout.draws=prompt",
    "intervention.name=steer",
    f"train.rollouts={ROLLOUTS}",
    "optimizer.learning_rate=1e-4",
    "train.probe_sequences=0",
    "evaluation.every=6",
)
COMMAND = ["train", *SMALL, *SETTINGS, "--no-report", "--auto-resume", "--out"]


def join(processes, seconds=240):
    """Exit codes; whoever is still there at the end of the time fails the test."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert None not in codes
    return codes


def checkpoint_of(run: RunFolder) -> dict[str, str]:
    """SHA-256 of the last checkpoint's tensors, of the model and of every rank's optimiser."""
    path = run.checkpoints.saved()[-1]
    files = [*path.glob("*.safetensors"), *path.rglob("*.pt")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if "mp_rank" not in file.name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert join(start_ranks(folder / "output", 2, *COMMAND, folder / "run")) == [0, 0], (folder / "output").read_text()
    return RunFolder.open(folder / "run")


def rollouts_of(run: RunFolder) -> int:
    path = run.path / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_ten_kills_at_random_moments_change_nothing(whole, tmp_path):
    killed, output, moments = RunFolder(tmp_path / "run", whole.config), tmp_path / "output", random.Random(1)
    unit, codes = rollout_seconds(whole), []
    for attempt in range(KILLS):
        processes = start_ranks(output, 2, *COMMAND, killed.path)
        if attempt:  # the first kill may fall anywhere, start-up included
            before = rollouts_of(killed)
            at = moments.randint(1, 2)
            wait_until(
                lambda before=before, at=at, one=processes[0]: rollouts_of(killed) >= before + at or not one.is_alive(),
                "a rollout",
            )
        time.sleep(moments.uniform(0, 1.5 * unit))
        for process in moments.sample(processes, 2):
            process.kill()
        for process in processes:
            process.join()
            codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 2 * KILLS, output.read_text()
    assert rollouts_of(killed) < ROLLOUTS  # so that every kill fell before the run's end
    assert join(start_ranks(output, 2, *COMMAND, killed.path)) == [0, 0], output.read_text()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_time(killed.read(log)) == without_time(whole.read(log))
    assert len(whole.read()) == ROLLOUTS
    assert any(row["grad_norm/max"] > 0 for row in whole.read()[-10:])
    assert checkpoint_of(killed) == checkpoint_of(whole)


def test_a_rank_that_dies_takes_the_run_down_within_a_minute_and_the_run_goes_on_from_there(whole, tmp_path):
    run, output = RunFolder(tmp_path / "run", whole.config), tmp_path / "output"
    processes = start_ranks(output, 2, *COMMAND, run.path)
    wait_until(lambda: rollouts_of(run) >= 4, "four rollouts")
    os.kill(processes[1].pid, signal.SIGKILL)
    assert join(processes, 60) == [2, -signal.SIGKILL]
    assert "error: rank 0: another rank ended" in output.read_text()
    assert "--auto-resume" in output.read_text()
    assert join(start_ranks(output, 2, *COMMAND, run.path)) == [0, 0]
    assert without_time(run.read()) == without_time(whole.read())
    assert checkpoint_of(run) == checkpoint_of(whole)


def test_another_number_of_ranks_is_refused_with_the_remedy(whole, tmp_path):
    output = tmp_path / "output"
    (whole.path / "checkpoints" / "aside").mkdir()
    (process,) = start_ranks(output, 1, "train", "--resume", whole.path, "--from-step", ROLLOUTS)
    assert join([process]) == [2]
    assert "2 ranks wrote it, and 1 read it; start as many" in output.read_text()
