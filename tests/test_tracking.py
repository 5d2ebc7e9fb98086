"""Weights & Biases when asked: the same numbers as metrics.jsonl, a resumed run under the same name."""

import sys

import pytest
from small import small_trainer

from steer_core.common.errors import SteerError

SETTINGS = ("train.tracker=wandb", "train.rollouts=2", "evaluation.every=0", "train.checkpoint_every=1")


class Board:
    """What `wandb.init` gives, keeping what it is told."""

    def __init__(self, **asked):
        self.asked, self.told, self.finished = asked, [], False

    def log(self, metrics, step):
        self.told.append((step, metrics))

    def finish(self):
        self.finished = True


def test_every_rollouts_metrics_go_to_one_run_that_a_resume_goes_on_with(tmp_path, monkeypatch):
    made = []
    module = type("wandb", (), {"init": staticmethod(lambda **asked: made.append(Board(**asked)) or made[-1])})
    monkeypatch.setitem(sys.modules, "wandb", module)
    trainer = small_trainer(tmp_path / "a-run", *SETTINGS)
    trainer.fit()
    (board,) = made
    rows = trainer.run.read()
    assert [(step, {"step": step, **metrics}) for step, metrics in board.told] == [(row["step"], row) for row in rows]
    assert board.finished
    assert (board.asked["name"], board.asked["resume"]) == ("a-run", "allow")
    trainer.resume(from_step=1)
    trainer.fit()
    assert made[1].asked["id"] == board.asked["id"]
    assert [step for step, _ in made[1].told] == [2]


def test_wandb_itself_takes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = small_trainer(tmp_path / "a-run", *SETTINGS)
    trainer.fit()
    (written,) = (tmp_path / "a-run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"entropy/policy" in written.read_bytes()


def test_a_tracker_that_does_not_start_is_told_with_the_remedy(tmp_path, monkeypatch):
    def init(**asked):
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "wandb", type("wandb", (), {"init": staticmethod(init)}))
    with pytest.raises(SteerError, match=r"train.tracker: wandb does not start \(OSError: no network\).*wandb login"):
        small_trainer(tmp_path / "run", *SETTINGS).fit()


def test_a_tracker_that_is_not_installed_is_told_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SteerError, match=r"train.tracker: wandb .*pip install wandb.*train.tracker=none"):
        small_trainer(tmp_path / "run", *SETTINGS).fit()
