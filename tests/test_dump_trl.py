"""A dump of real training in TRL: its tokens are TRL's own, nothing of the training changes, and troubles are seen."""

import pytest
import torch

pytest.importorskip("trl")

from test_integration_trl import make
from trl import GRPOTrainer

from steer_core.common.errors import SteerError
from steer_core.diagnose.diagnosis import diagnose
from steer_core.integrations.trl_dump import dump_tokens
from steer_core.interventions.steer import Steer
from steer_core.runs import dumps


def trained(folder, dump=True, kind=GRPOTrainer, **settings):
    """A trainer after training on the Countdown task, and its dump."""
    trainer = make(folder / "out", kind, **settings)
    if dump:
        dump_tokens(trainer, folder / "dump")
    trainer.train()
    return trainer, dumps.read(folder / "dump") if dump else None


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two optimiser steps of two micro-batches on each generation batch, which is trained on twice."""
    return trained(tmp_path_factory.mktemp("twice"), num_iterations=2, max_steps=4, epsilon=0.005, epsilon_high=0.005)


def test_a_dump_holds_trls_own_numbers_of_every_response(twice):
    trainer, dump = twice
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert dump.steps == [1, 2, 3, 4]
    assert len(dump.responses) == 4 * 8
    assert dump.settings == {
        "clip_low": 0.005, "clip_high": 0.005, "dual_clip": 1.2, "max_tokens": 28, "vocabulary": 20
    }  # fmt: skip
    for step, row in enumerate(rows, 1):
        part = dump.of_step(step)
        assert part.tokens["entropy"].mean() == pytest.approx(row["entropy"], rel=0.03)  # TRL's is by micro-batch
    assert dump.of_step(1).tokens["logprob"] == pytest.approx(dump.of_step(1).tokens["old_logprob"], abs=1e-5)
    first = dump.responses[dump.responses.step <= 2]
    assert first.reward.mean() == pytest.approx(rows[0]["reward"], abs=1e-4)  # TRL shuffles rows: each keeps its own
    assert first.groupby("group").size().tolist() == [8, 8]
    assert not dump.responses.truncated.any()


def test_an_extreme_clip_and_the_same_states_at_two_steps_are_seen(twice):
    seen = diagnose(twice[1])
    assert seen.findings["clipping"].status == "found"
    assert seen.clip.low > 0.05
    assert seen.clip.high > 0.05
    assert seen.measured.pairs == 16
    assert set(seen.measured.by_form) == {"paper", "released", "covariance"}
    assert seen.entropy.factor == 1.0


def test_nothing_of_the_training_changes(twice, tmp_path):
    plain, _ = trained(tmp_path, False, num_iterations=2, max_steps=4, epsilon=0.005, epsilon_high=0.005)
    weights = twice[0].model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.model.state_dict().items())


def test_an_entropy_bonus_far_too_large_is_seen_as_explosion_and_the_logged_mean_is_told(tmp_path):
    whole = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "steps_per_generation": 1}
    _, dump = trained(tmp_path, entropy_coef=20.0, max_steps=6, learning_rate=3e-3, **whole)
    seen = diagnose(dump)
    assert seen.findings["explosion"].status == "found", seen.course.entropy
    assert seen.logged[0].endswith("is the mean over tokens of the column `entropy`.")


def test_what_is_no_trainer_or_no_folder_for_a_dump_is_refused(twice, tmp_path):
    with pytest.raises(SteerError, match="trainer: str is no GRPOTrainer of TRL"):
        dump_tokens("trainer", tmp_path)
    trainer, dump = twice
    with pytest.raises(SteerError, match="holds a dump already; name another"):
        dump_tokens(trainer, dump.source)
    with pytest.raises(SteerError, match="every: 0 is below 1"):
        dump_tokens(trainer, tmp_path / "other", every=0)


def test_steers_trainer_is_listened_to_before_its_weights(tmp_path):
    from steer_core.integrations.trl import SteerGRPOTrainer

    trainer = make(tmp_path / "out", SteerGRPOTrainer, steer=Steer(lambda_min=0.5), max_steps=1)
    dump_tokens(trainer, tmp_path / "dump")
    trainer.train()
    advantages = dumps.read(tmp_path / "dump").tokens
    by_row = {row: set(advantages["advantage"][advantages["row"] == row]) for row in set(advantages["row"])}
    assert all(len(values) == 1 for values in by_row.values())  # TRL's: one a response, not lambda times it
