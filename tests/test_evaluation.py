"""pass@k without bias: against drawing every k-subset of the samples."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_core.errors import SteerError
from steer_core.evaluation import Evaluation, pass_at_k


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_right_sample(samples):
    for correct in range(samples + 1):
        right = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            draws = [any(draw) for draw in combinations(right, k)]
            assert pass_at_k([correct], samples, k)[0] == pytest.approx(sum(draws) / len(draws))


@given(st.integers(1, 500), st.data())
def test_pass_at_one_is_the_mean_and_pass_at_all_is_any(samples, data):
    correct = data.draw(st.lists(st.integers(0, samples), min_size=1, max_size=5))
    np.testing.assert_allclose(pass_at_k(correct, samples, 1), np.array(correct) / samples)
    np.testing.assert_allclose(pass_at_k(correct, samples, samples), np.array(correct) > 0)


@given(st.integers(2, 1024), st.data())
def test_pass_at_k_grows_with_k_and_with_the_count_and_stays_within_zero_and_one(samples, data):
    correct, k = data.draw(st.integers(1, samples)), data.draw(st.integers(1, samples - 1))
    low, high = pass_at_k([correct], samples, k)[0], pass_at_k([correct], samples, k + 1)[0]
    assert 0 <= low <= high <= 1
    assert pass_at_k([correct - 1], samples, k)[0] <= low


def test_pass_at_k_keeps_the_shape_of_the_counts():
    counts = np.arange(6).reshape(2, 3)
    assert pass_at_k(counts, 5, 2).shape == (2, 3)
    assert pass_at_k(counts, 5, 2)[1, 0] == pass_at_k(3, 5, 2)
    assert pass_at_k([], 5, 2).shape == (0,)


def test_large_samples_do_not_overflow():
    assert pass_at_k([1], 4096, 1024)[0] == pytest.approx(0.25)


@pytest.mark.parametrize(("samples", "k"), [(4, 0), (4, -1), (4, 5), (0, 1)])
def test_k_outside_the_samples_raises(samples, k):
    with pytest.raises(SteerError, match=f"pass@{k}"):
        pass_at_k([0], samples, k)


@pytest.mark.parametrize("correct", [[-1], [5], [0, 5]])
def test_counts_outside_the_samples_raise(correct):
    with pytest.raises(ValueError, match=r"0\.\.4"):
        pass_at_k(correct, 4, 1)


def test_evaluation_reports_the_mean_over_problems():
    evaluation = Evaluation(correct=[0, 1, 4], samples=4, policy_entropy=0.5, truncated=0.25, length=7.0)
    assert evaluation.pass_at(1) == pytest.approx((0 + 1 / 4 + 1) / 3)
    assert evaluation.pass_at(2) == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert evaluation.to_dict((2,)) == {
        "pass@2": evaluation.pass_at(2),
        "correct": [0, 1, 4],
        "samples": 4,
        "policy_entropy": 0.5,
        "truncated": 0.25,
        "length": 7.0,
    }
