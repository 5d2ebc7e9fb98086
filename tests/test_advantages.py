"""Group-relative advantages."""

import itertools
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.common.errors import SteerError
from steer_core.common.settings import build
from steer_core.config.sections import AlgorithmConfig
from steer_core.formulas.advantages import (
    ADVANTAGES,
    GRPO_EPSILON,
    grpo_advantages,
    pass_at_k_advantages,
    quantile_advantages,
    rloo_advantages,
)

OF_SMALL_GROUPS = {"pass-at-k": {"k": 2}}
"""What an estimator is told where a group has three responses."""
rewards = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


@st.composite
def rollouts(draw):
    """(rewards, lengths) of up to 4 groups of up to 6 responses; float64."""
    prompts, group = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    numbers = st.lists(st.integers(-9, 9), min_size=group, max_size=group)
    tokens = st.lists(st.integers(1, 50), min_size=group, max_size=group)
    rewards_PG = draw(st.lists(numbers, min_size=prompts, max_size=prompts))
    lengths_PG = draw(st.lists(tokens, min_size=prompts, max_size=prompts))
    return torch.tensor(rewards_PG, dtype=torch.float64) / 4, torch.tensor(lengths_PG)


def estimated(name, rewards_PG, lengths_PG, **settings):
    """The estimator's advantages of lists."""
    return ADVANTAGES[name](torch.tensor(rewards_PG, dtype=torch.float64), torch.tensor(lengths_PG), **settings)


@pytest.mark.parametrize(
    ("name", "rewards_PG", "lengths_PG", "advantages"),
    [
        ("dr-grpo", [[1, 0, 0, 1], [4, 0, 0, 0]], [[9, 1, 1, 1]] * 2, [[0.5, -0.5, -0.5, 0.5], [3, -1, -1, -1]]),
        ("rloo", [[1, 0, 0, 1], [3, 0, 0, 0]], [[9, 1, 1, 1]] * 2, [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [3, -1, -1, -1]]),
        # 3 of 8 tokens earn 1: baseline 0.375
        ("opo", [[1, 0, 0, 1]], [[1, 2, 3, 2]], [[0.625, -0.375, -0.375, 0.625]]),
        # 3 tokens of 1 and one of 0: mean 0.75, variance (3 / 16 + 9 / 16) / 3 = 1 / 4
        ("reinforce++", [[1, 0]], [[3, 1]], [[0.5, -1.5]]),
        # centred 1/2 (3 tokens), -1/2, 0, 0: mean 1/6, variance (3 / 9 + 4 / 9 + 2 / 36) / 5 = 1 / 6
        ("reinforce++-baseline", [[1, 0], [5, 5]], [[3, 1], [1, 1]], [[2, -4], [-1, -1]]),
    ],
)
def test_estimators_by_hand(name, rewards_PG, lengths_PG, advantages):
    unit = 6**-0.5 if name == "reinforce++-baseline" else 1.0
    wanted = torch.tensor(advantages, dtype=torch.float64) * unit
    torch.testing.assert_close(estimated(name, rewards_PG, lengths_PG), wanted, rtol=1e-6, atol=1e-12)


@given(rollouts())
def test_rloo_is_the_reward_less_the_mean_of_the_others_and_n_over_n_minus_1_of_dr_grpo(rollout):
    rewards_PG = rollout[0]
    group, found = rewards_PG.shape[1], rloo_advantages(*rollout)
    torch.testing.assert_close(found, ADVANTAGES["dr-grpo"](*rollout) * group / max(group - 1, 1))
    if group > 1:
        others = (rewards_PG.sum(-1, keepdim=True) - rewards_PG) / (group - 1)
        torch.testing.assert_close(found, rewards_PG - others)


@given(rollouts(), st.integers(1, 9))
def test_opo_is_dr_grpo_at_equal_lengths_and_sums_to_0_over_tokens(rollout, length):
    rewards_PG, lengths_PG = rollout
    equal = torch.full_like(lengths_PG, length)
    torch.testing.assert_close(ADVANTAGES["opo"](rewards_PG, equal), ADVANTAGES["dr-grpo"](*rollout))
    over_tokens = (ADVANTAGES["opo"](*rollout) * lengths_PG).sum(-1)
    torch.testing.assert_close(over_tokens, torch.zeros_like(over_tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["reinforce++", "reinforce++-baseline"])
@given(rollouts())
def test_reinforce_plus_plus_has_mean_0_and_variance_1_over_tokens(name, rollout):
    found = ADVANTAGES[name](*rollout)
    tokens = found.flatten().repeat_interleave(rollout[1].flatten())
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-9)
    assert not found.any() or float(tokens.var()) == pytest.approx(1, rel=1e-4)
    centred = ADVANTAGES["dr-grpo"](*rollout) if name == "reinforce++-baseline" else rollout[0]
    assert found.any() == (len(centred.unique()) > 1)
    assert (found.flatten().diff() * centred.flatten().diff() >= 0).all()


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("reward", [0.0, 0.1, -1e6, 1 / 3])
@given(lengths_PG=st.lists(st.lists(st.integers(1, 999), min_size=3, max_size=3), min_size=1, max_size=3))
def test_equal_rewards_give_every_estimator_exactly_zero(name, reward, lengths_PG):
    lengths_PG = torch.tensor(lengths_PG)
    found = ADVANTAGES[name](torch.full(lengths_PG.shape, reward), lengths_PG, **OF_SMALL_GROUPS.get(name, {}))
    assert found.eq(0).all()


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "rloo", "opo", "pass-at-k", "quantile"])
def test_a_group_of_one_has_nothing_to_compare_with(name):
    settings = {"k": 1} if name == "pass-at-k" else {}
    assert estimated(name, [[1.0], [3.0]], [[4], [2]], **settings).tolist() == [[0], [0]]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_estimators_keep_precision_and_shape(name):
    for dtype in (torch.float32, torch.float64):
        rewards_PG, lengths_PG = torch.tensor([[1, 0, 3], [2, 2, 2]], dtype=dtype), torch.tensor([[1, 2, 3]] * 2)
        found = ADVANTAGES[name](rewards_PG, lengths_PG, **OF_SMALL_GROUPS.get(name, {}))
        assert (found.dtype, found.shape) == (dtype, (2, 3))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", ["opo", "reinforce++", "reinforce++-baseline"])
def test_lengths_that_are_none_raise(name):
    with pytest.raises(ValueError, match=r"lengths: shape \(1, 3\) is not that of rewards \(1, 2\)"):
        estimated(name, [[1, 0]], [[1, 2, 3]])
    with pytest.raises(ValueError, match="lengths: a response has no token"):
        estimated(name, [[1, 0]], [[1, 0]])


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


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), ()])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_rewards_that_are_not_prompts_by_group_raise(name, shape):
    with pytest.raises(ValueError, match="prompts, group"):
        ADVANTAGES[name](torch.zeros(shape), torch.ones(shape))


@st.composite
def graded_groups(draw):
    """(rewards of 0 and 1 of one group of 2 to 8, k within the group)."""
    rewards = draw(st.lists(st.integers(0, 1), min_size=2, max_size=8))
    return rewards, draw(st.integers(1, len(rewards)))


@given(graded_groups())
def test_pass_at_k_is_the_mean_of_the_whitened_rewards_of_all_subsets_that_a_response_is_in(graded):
    rewards, k = graded
    subsets = list(itertools.combinations(range(len(rewards)), k))
    best = [max(rewards[i] for i in subset) for subset in subsets]
    mean, deviation = statistics.fmean(best), statistics.pstdev(best)
    found = pass_at_k_advantages(torch.tensor([rewards], dtype=torch.float64), k=k)[0].tolist()
    if len(set(best)) == 1:
        assert found == [0] * len(rewards)
        return
    for i, advantage in enumerate(found):
        mine = [(reward - mean) / deviation for reward, subset in zip(best, subsets, strict=True) if i in subset]
        assert advantage == pytest.approx(statistics.fmean(mine), abs=1e-12)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=12))
def test_pass_at_1_is_the_reward_whitened_by_the_groups_own_deviation(rewards):
    found = pass_at_k_advantages(torch.tensor([rewards], dtype=torch.float64), k=1)[0].tolist()
    deviation = statistics.pstdev(rewards) or 1.0
    assert found == pytest.approx([(r - statistics.fmean(rewards)) / deviation for r in rewards], abs=1e-12)


def test_pass_at_k_of_groups_by_hand():
    """One of four right, subsets of two: half of them succeed; two thirds of those that a wrong one is in fail."""
    found = estimated("pass-at-k", [[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], [[1] * 4] * 3, k=2)
    torch.testing.assert_close(found[0], torch.tensor([1, -1 / 3, -1 / 3, -1 / 3], dtype=torch.float64))
    assert found[1:].tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_that_a_group_does_not_hold_raises(k):
    with pytest.raises(ValueError, match=rf"k: {k} is not within 1 and the 4 responses of a group"):
        estimated("pass-at-k", [[1, 0, 0, 0]], [[1] * 4], k=k)


@pytest.mark.parametrize(
    ("rewards", "quantile", "advantages"),
    [
        ([1, 0, 0, 0], 0.4, [2, 0, 0, 0]),  # hard: one success, deviation 1/2
        ([1, 1, 1, 0], 0.4, [0, 0, 0, -2]),  # easy: one failure
        ([1, 1, 1, 0], 0.25, [2, 2, 2, 0]),  # a share of 1 - K is right: still hard
        ([1, 1, 1, 0], 0.2501, [0, 0, 0, -2]),
        ([5, 1, 3], 0.5, [1, -1, 0]),  # the median
        ([5, 1, 3], 0.01, [2, 0, 1]),
        ([5, 1, 3], 0.99, [0, -2, -1]),
    ],
)
def test_the_quantile_baseline_by_hand(rewards, quantile, advantages):
    found = estimated("quantile", [rewards], [[1] * len(rewards)], quantile=quantile)
    assert found[0].tolist() == pytest.approx(advantages, rel=1e-5)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=12), st.integers(1, 99))
def test_the_quantile_rewards_rare_successes_or_punishes_rare_failures_never_both(rewards, percent):
    found = quantile_advantages(torch.tensor([rewards], dtype=torch.float64), quantile=percent / 100)[0].tolist()
    hard = 100 * sum(rewards) <= (100 - percent) * len(rewards)
    for reward, advantage in zip(rewards, found, strict=True):
        if len(set(rewards)) == 1 or reward != hard:
            assert advantage == 0
        else:
            assert advantage * (2 * hard - 1) > 0


def test_the_estimators_that_have_a_setting_are_given_it_and_no_other_is():
    made = {name: build(AlgorithmConfig, {"advantage": name, "pass_k": 3, "quantile": 0.7}) for name in ADVANTAGES}
    given_any = {name: one.advantage_settings for name, one in made.items() if one.advantage_settings}
    assert given_any == {"pass-at-k": {"k": 3}, "quantile": {"quantile": 0.7}}


@pytest.mark.parametrize(("key", "value"), [("pass_k", 0), ("quantile", 0), ("quantile", 1)])
def test_settings_of_estimators_out_of_range_are_refused(key, value):
    with pytest.raises(SteerError, match=rf"{key}: {value} is not allowed"):
        build(AlgorithmConfig, {key: value}, "algorithm")


def test_every_configurable_estimator_exists():
    assert all(build(AlgorithmConfig, {"advantage": name}).advantage == name for name in ADVANTAGES)
    with pytest.raises(SteerError):
        build(AlgorithmConfig, {"advantage": "none of them"})
