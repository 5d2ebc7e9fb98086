"""Noise as reward: a coin in place of the verifier in training, the same after a resume, and none in evaluations."""

import pytest
import torch
from small import SMALL, grade_by, small_config, small_trainer, trainer_in, without_time

from steer_core.problems import Countdown
from steer_core.rewards.coin import CoinGrader
from steer_core.rewards.countdown import CountdownGrader

COIN = ("task.reward=coin", "train.probe_sequences=0")


def throws(seed, count, places=None):
    return [verdict.correct for verdict in CoinGrader(seed, places).grade(["r"] * count, ["same"] * count)]


def test_half_of_many_throws_are_heads_and_a_seeds_throws_tell_nothing_of_the_nexts():
    heads = torch.tensor([throws(seed, 2000) for seed in range(8)], dtype=torch.float64)
    assert abs(heads.mean() - 0.5) < 4 * 0.5 / 16000**0.5
    alike = torch.corrcoef(heads).fill_diagonal_(0)
    assert alike.abs().max() < 4 / 2000**0.5


def test_throws_of_neighbours_and_of_groups_are_independent():
    heads_N = torch.tensor(throws(3, 8001), dtype=torch.float64)
    for lag in (1, 8):
        alike = (heads_N[lag:] == heads_N[:-lag]).double().mean()
        assert abs(alike - 0.5) < 4 * 0.5 / 8000**0.5


def test_equal_responses_of_a_group_get_throws_of_their_own():
    assert len({tuple(throws(seed, 8)) for seed in range(40)}) > 30
    assert any(len(set(throws(seed, 8))) == 2 for seed in range(3))


def test_a_throw_belongs_to_the_place_so_that_ranks_share_them_out():
    whole = throws(5, 24)
    assert throws(5, 24, [0, 1, 2]) == whole
    assert throws(5, 16, [0, 2]) == whole[:8] + whole[16:]


def test_responses_that_are_not_equally_many_a_prompt_are_refused():
    with pytest.raises(ValueError, match="7 of them are not equally many for each of 2 prompts"):
        throws(0, 7, [0, 1])
    with pytest.raises(ValueError, match="1 of them for 2 references"):
        CoinGrader(0).grade(["a", "b"], ["c"])


def test_only_training_goes_by_the_coin():
    for reward, kind in (("coin", CoinGrader), ("verifier", CountdownGrader)):
        task = Countdown(small_config(f"task.reward={reward}").task)
        assert isinstance(task.rollout_grader(1, [0]), kind)
        assert isinstance(task.grader, CountdownGrader)


def test_a_run_on_the_coin_is_blind_to_its_responses_and_its_evaluations_are_not(tmp_path):
    rows = {}
    for name, right in (("all right", True), ("all wrong", False)):
        trainer = small_trainer(tmp_path / name, *COIN, "train.rollouts=2")
        grade_by(trainer, lambda text, right=right: right)
        assert trainer.fit()
        rows[name] = without_time(trainer.run.read())
        evaluated = trainer.run.read("evaluations.jsonl")[-1]
        assert evaluated["pass@1"] == float(right)
    assert rows["all right"] == rows["all wrong"]
    assert 0 < rows["all right"][0]["reward/mean"] < 1


def test_a_run_on_the_coin_that_goes_on_from_a_checkpoint_is_the_one_that_never_stopped(tmp_path):
    assert "train.checkpoint_every=2" in SMALL
    whole = small_trainer(tmp_path / "whole", *COIN)
    assert whole.fit()
    stopped = small_trainer(tmp_path / "stopped", *COIN)

    def stop(n, metrics):
        stopped.stop_requested = n == 2

    assert not stopped.fit(stop)
    resumed = trainer_in(stopped.run)
    resumed.resume()
    assert resumed.finished == 2
    assert resumed.fit()
    assert without_time(resumed.run.read()) == without_time(whole.run.read())


def test_the_coin_is_thrown_anew_every_rollout_and_for_every_seed(tmp_path):
    rewards = []
    for seed in (0, 1):
        trainer = small_trainer(tmp_path / str(seed), *COIN, f"train.seed={seed}")
        rewards += [tuple(trainer.sample(n).rewards_PG.flatten().tolist()) for n in (1, 2, 3)]
    assert len(set(rewards)) == 6
