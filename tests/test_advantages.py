"""Group-relative advantages."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.advantages import ADVANTAGES, GRPO_EPSILON, grpo_advantages
from steer_core.config import AlgorithmConfig
from steer_core.errors import SteerError
from steer_core.settings import build

rewards = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


def test_advantages_by_hand():
    advantages = grpo_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]]))
    torch.testing.assert_close(advantages[0], torch.tensor([1.5, -0.5, -0.5, -0.5]))
    root = 0.75**0.5
    torch.testing.assert_close(advantages[1], torch.tensor([-root, -root, root, root]))


@given(st.lists(rewards, min_size=1, max_size=4))
def test_each_group_is_centred_and_divided_by_its_unbiased_deviation(groups):
    size = min(map(len, groups))
    groups = [group[:size] for group in groups]
    actual = grpo_advantages(torch.tensor(groups, dtype=torch.float64))
    for row, group in zip(actual.tolist(), groups, strict=True):
        mean, deviation = statistics.fmean(group), statistics.stdev(group)
        assert row == pytest.approx([(r - mean) / (deviation + GRPO_EPSILON) for r in group], rel=1e-6, abs=1e-6)


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=12, unique=True), st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_offset_of_the_rewards_do_not_matter(group, scale, offset):
    group = torch.tensor([group], dtype=torch.float64)
    torch.testing.assert_close(grpo_advantages(scale * group + offset), grpo_advantages(group), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1e6, 1 / 3])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_give_exactly_zero(reward, size):
    assert grpo_advantages(torch.full((2, size), reward)).eq(0).all()


def test_a_constant_group_leaves_its_neighbours_alone():
    mixed = torch.tensor([[0.0, 1.0, 1.0]])
    both = grpo_advantages(torch.cat([torch.ones(1, 3), mixed]))
    assert torch.equal(both[1:], grpo_advantages(mixed))
    assert not both[0].any()


@pytest.mark.filterwarnings("error")
def test_a_group_of_one_gets_zero_without_a_warning():
    assert grpo_advantages(torch.tensor([[1.0], [0.0]])).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), ()])
def test_rewards_that_are_not_prompts_by_group_raise(shape):
    with pytest.raises(ValueError, match="prompts, group"):
        grpo_advantages(torch.zeros(shape))


def test_every_configurable_estimator_exists():
    assert all(build(AlgorithmConfig, {"advantage": name}).advantage == name for name in ADVANTAGES)
    with pytest.raises(SteerError):
        build(AlgorithmConfig, {"advantage": "none of them"})
