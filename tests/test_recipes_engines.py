"""Everything of `test_recipes.py` and an own reward at once: on two ranks, under DeepSpeed, and through kill -9."""

import time

import pytest
import torch
from process_groups import forget_process_groups
from processes import free_port, run_two, start, wait_until
from rank_runs import work
from small import SMALL, small_trainer, trainer_in, without_time

from steer_core.runs.folder import RunFolder

ALL = (
    "task.reward=outside_reward:parts",
    "task.reward_weights.short=0.02",
    "intervention.name=steer",
    "algorithm.kl_coefficient=0.1",
    "algorithm.overlong_buffer=20",
    "optimizer.schedule=cosine",
    "optimizer.warmup_steps=1",
    "optimizer.repeats=2",
    "optimizer.weight_decay=0.1",
    "optimizer.learning_rate=3e-4",
    "rollout.resample=2",
    "rollout.responses=2",
    "evaluation.every=0",
    "train.probe_sequences=0",
    "train.checkpoint_every=1",
    "train.checkpoints_kept=9",
    "train.rollouts=3",
)
DEEPSPEED = ("engine.name=deepspeed",)


def rows_of(folder):
    """The log without clock readings and without how micro-batches were padded."""
    rows = without_time(RunFolder.open(folder).read())
    return [{name: value for name, value in row.items() if name != "batch/padding"} for row in rows]


def assert_close(folder, expected):
    mine, theirs = rows_of(folder), rows_of(expected)
    assert [row.keys() for row in mine] == [row.keys() for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=1e-3, abs=5e-6), name


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The run of one rank and plain torch."""
    trainer = small_trainer(tmp_path_factory.mktemp("recipes") / "local", *ALL)
    trainer.fit()
    return trainer


@pytest.fixture(autouse=True, scope="module")
def no_process_group_is_left():
    yield
    forget_process_groups()


def test_the_run_does_all_of_it(local):
    rows = rows_of(local.run.path)
    names = {"kl/k3", "reward/overlong", "reward/part/asked", "resampled/tries", "learning_rate", "reward/shaped"}
    assert names <= rows[0].keys()
    assert max(row["resampled/responses"] for row in rows) > 0
    assert max(row["kl/k3"] for row in rows) > 0
    assert min(row["reward/overlong"] for row in rows) < 0


def test_two_ranks_make_the_run_of_one_up_to_rounding(local, tmp_path):
    run_two(work, free_port(), tmp_path, {"two": [*ALL]}, {}, seconds=300)
    assert_close(tmp_path / "two", local.run.path)


@pytest.mark.parametrize("stage", [0, 2])
def test_deepspeed_repeats_the_run_up_to_rounding_and_resumes_it(stage, local, tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    trainer = small_trainer(tmp_path / "run", *ALL, *DEEPSPEED, f"engine.zero_stage={stage}")
    trainer.fit()
    assert_close(tmp_path / "run", local.run.path)
    rows, weights = rows_of(tmp_path / "run"), {name: w.clone() for name, w in trainer.engine.weights()}
    again = trainer_in(RunFolder.open(tmp_path / "run"))
    again.resume(from_step=1)
    again.fit()
    assert rows_of(tmp_path / "run") == rows
    assert all(torch.equal(weight, weights[name]) for name, weight in again.engine.weights())


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(tmp_path):
    words = [*SMALL, *ALL, "train.rollouts=8", "--no-report", "--out"]
    output = tmp_path / "output"
    for name in ("whole", "killed"):
        process = start(output, "train", *words, tmp_path / name)
        if name == "killed":
            log = tmp_path / name / "metrics.jsonl"
            wait_until(lambda log=log: log.exists() and log.read_bytes().count(b"\n") > 2, "three rollouts")
            process.kill()
        process.join()
    time.sleep(1)
    process = start(output, "train", "--resume", tmp_path / "killed", "--no-report")
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    saved = [
        (tmp_path / name / "checkpoints/step_000008/model.safetensors").read_bytes() for name in ("whole", "killed")
    ]
    assert saved[0] == saved[1]
