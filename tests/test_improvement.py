"""Who is ahead how often, and the profile: against scipy's U, by hand, and with intervals that hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steer_core.stats.improvement import performance_profile, probability_of_improvement

SCORES = st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=5)


@given(SCORES, SCORES)
def test_the_probability_of_improvement_is_the_mean_u_over_its_largest(first, second):
    first, second = np.array(first, dtype=float), np.array(second, dtype=float)
    u = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(first.T, second.T, strict=True)]
    found = probability_of_improvement(first, second, draws=50)
    assert found.mean == pytest.approx(np.mean(u))
    assert probability_of_improvement(second, first, draws=50).mean == pytest.approx(1 - found.mean)


def test_one_that_is_always_ahead_wins_every_pair_and_equals_win_half():
    ahead, behind = np.array([[0.5, 0.9], [0.6, 0.8]]), np.array([[0.1, 0.2], [0.4, 0.7], [0.0, 0.0]])
    assert probability_of_improvement(ahead, behind).low == 1
    assert probability_of_improvement(behind, ahead).high == 0
    assert probability_of_improvement(behind, behind[:1]).mean == pytest.approx(
        np.mean([[0.5, 0.5], [1.0, 1.0], [0.0, 0.0]])
    )


def test_one_seed_each_has_no_interval():
    found = probability_of_improvement([[0.2, 0.4]], [[0.1, 0.5]])
    assert found.mean == 0.5
    assert np.isnan([found.low, found.high]).all()


def test_the_interval_holds_a_half_for_two_equal_methods_about_as_often_as_it_says():
    random, held = np.random.default_rng(0), 0
    for i in range(200):
        first, second = random.normal(size=(2, 10, 1)) + 0.3 * random.normal(size=(2, 10, 20))
        found = probability_of_improvement(first, second, draws=300, seed=i)
        held += found.low <= 0.5 <= found.high
    assert 0.86 <= held / 200 <= 0.99  # percentile bootstrap over 10 seeds: a little below 0.95


@pytest.mark.parametrize(("first", "second"), [([[1.0, 2.0]], [[1.0]]), (np.zeros((0, 2)), [[1.0, 1.0]])])
def test_scores_of_other_problems_or_none_are_refused(first, second):
    with pytest.raises(ValueError, match=r"values: shapes .* are not \(seeds, the same problems\)"):
        probability_of_improvement(first, second)


def test_a_profile_is_the_share_above_each_level():
    values = [[0.0, 0.25], [0.5, 1.0]]
    assert performance_profile(values, [-1, 0, 0.25, 0.4, 1]).tolist() == [1, 0.75, 0.5, 0.5, 0]
    with pytest.raises(ValueError, match="no seed or no problem"):
        performance_profile([], [0.5])
