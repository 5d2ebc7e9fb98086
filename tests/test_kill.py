"""kill -9 at ten random moments: the resumed run equals the uninterrupted one, bit for bit."""

import hashlib
import json
import random
import signal
import time

import pytest
from processes import start, wait_until
from small import SMALL, rollout_seconds, without_time
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steer_core.runs.folder import RunFolder

pytestmark = pytest.mark.long
KILLS, ROLLOUTS, MOST_ROLLOUTS_BEFORE_A_KILL = 10, 36, 2
LENGTHEN = (
    f"train.rollouts={ROLLOUTS}",
    "evaluation.every=6",
    "train.checkpoint_every=2",
    "intervention.name=steer",
    "train.probe_sequences=4",
    "optimizer.learning_rate=1e-4",  # low enough that rewards, and with them gradients, last to the end
)


def wait_for_rollouts(count: int, process, output, shown: int) -> None:
    """Wait until a process has shown, after its first line, so many rollouts, or has ended."""
    wait_until(lambda: output.read_bytes()[shown:].count(b"\n") > count or not process.is_alive(), "a rollout")


@pytest.fixture(scope="module")
def whole_and_killed(tmp_path_factory):
    """A run that came to its end undisturbed, and one that was killed ten times on its way."""
    folder = tmp_path_factory.mktemp("kill")
    whole, killed = (RunFolder(folder / name, None) for name in ("whole", "killed"))
    output = folder / "output"
    first = [*SMALL, *LENGTHEN, "--no-report", "--out"]
    process = start(output, "train", *first, whole.path)
    process.join()
    assert process.exitcode == 0, output.read_text()
    unit, moments, codes = rollout_seconds(whole), random.Random(0), []

    def go_on():
        time.sleep(1 - time.time() % 1)  # TensorBoard orders the files of a folder by the second they were begun
        began = (killed.path / "config.yaml").exists()
        return start(output, "train", *(["--resume", killed.path, "--no-report"] if began else [*first, killed.path]))

    for attempt in range(KILLS):
        shown = output.stat().st_size
        process = go_on()
        if attempt:  # the first kill may fall anywhere, start-up included; the others once rollouts are running
            wait_for_rollouts(moments.randint(0, MOST_ROLLOUTS_BEFORE_A_KILL), process, output, shown)
        time.sleep(moments.uniform(0, 1.5 * unit))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * KILLS, output.read_text()
    process = go_on()
    process.join()
    assert process.exitcode == 0, output.read_text()
    return RunFolder.open(whole.path), RunFolder.open(killed.path)


def final_of(run: RunFolder) -> tuple:
    """The last checkpoint: its step, weights, optimiser moments and optimiser settings."""
    path = run.checkpoints.saved()[-1]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("*.safetensors")}
    assert hashes.keys() == {"model.safetensors", "optimizer.safetensors"}
    return path.name, hashes, json.loads((path / "manifest.json").read_text())["optimizer"]


def test_ten_kills_at_random_moments_change_nothing(whole_and_killed):
    whole, killed = whole_and_killed
    assert any(row["grad_norm/max"] > 0 for row in whole.read()[-10:])
    assert final_of(killed) == final_of(whole)
    for log, count in (("metrics.jsonl", ROLLOUTS), ("evaluations.jsonl", ROLLOUTS // 6)):
        rows = without_time(whole.read(log))
        assert len(rows) == count
        assert without_time(killed.read(log)) == rows
    responses = [{p.name: p.read_bytes() for p in (run.path / "rollouts").iterdir()} for run in whole_and_killed]
    assert len(responses[0]) == ROLLOUTS
    assert responses[0] == responses[1]


def test_after_ten_kills_tensorboard_shows_every_step_once(whole_and_killed):
    for run in whole_and_killed:
        board = EventAccumulator(str(run.path / "tensorboard")).Reload()
        for name, log in (("entropy/policy", "metrics.jsonl"), ("evaluation/pass@1", "evaluations.jsonl")):
            rows, shown = run.read(log), board.Scalars(name)
            assert [event.step for event in shown] == [row["step"] for row in rows], name
            values = [row[name.removeprefix("evaluation/")] for row in rows]
            assert [event.value for event in shown] == pytest.approx(values, abs=1e-6)
