"""pass@k, maj@k and avg@k against enumeration, and intervals and plans against simulation."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steer_core.common.errors import SteerError
from steer_core.stats.intervals import bootstrap_over_problems
from steer_core.stats.pass_at_k import POWER, average, maj_at_k, paired, pass_at_k, pass_interval, what_would_decide


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


def majority(drawn):
    """The chance that the commonest answer of some (answer, right) pairs is right, ties shared."""
    votes = {}
    for answer, is_right in drawn:
        if answer is not None:
            votes.setdefault(answer, []).append(is_right)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return float(np.mean([all(found) for found in votes.values() if len(found) == most]))


ANSWERS = st.lists(st.sampled_from([("4", True), ("5", False), ("6", False), (None, False)]), min_size=1, max_size=7)


@given(ANSWERS)
def test_maj_at_one_and_at_all_are_the_mean_over_every_subset(drawn):
    answers, right = zip(*drawn, strict=True)
    for k in (1, len(drawn)):
        expected = np.mean([majority(part) for part in combinations(drawn, k)])
        assert maj_at_k(answers, right, k) == pytest.approx(expected)


def test_maj_at_k_between_is_near_the_mean_over_every_subset():
    drawn = [("4", True)] * 4 + [("5", False)] * 3 + [("6", False)] * 2 + [(None, False)] * 2
    answers, right = zip(*drawn, strict=True)
    for k in (2, 3, 5, 8):
        expected = np.mean([majority(part) for part in combinations(drawn, k)])
        assert maj_at_k(answers, right, k) == pytest.approx(expected, abs=0.045)  # three errors of 1,000 draws
    assert maj_at_k(answers, right, 3) == maj_at_k(answers, right, 3)
    with pytest.raises(SteerError, match="maj@12"):
        maj_at_k(answers, right, 12)


def test_the_standard_error_is_taken_over_problems_and_not_over_rows():
    correct = [0, 32, 16, 8]
    found = average(correct, 32)
    means = np.array(correct) / 32
    assert found.mean == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / 2)
    rows = np.repeat([0.0, 1.0], [32 * 4 - 56, 56])
    assert found.error > 4 * rows.std(ddof=1) / np.sqrt(len(rows))  # 128 rows are 4 draws


def test_the_error_splits_into_what_problems_and_what_samples_make():
    found = average([1, 7, 3, 4, 0, 8], 8)
    assert found.error**2 == pytest.approx((found.between + found.within / 8) / 6)
    alone = average([1, 0, 1], 1)
    assert np.isnan(alone.between)
    assert np.isnan(alone.within)
    assert alone.error > 0
    assert np.isnan(average([3], 8).error)
    with pytest.raises(SteerError, match="no problem"):
        average([], 8)


def counts(random, problems, samples):
    """Right samples of problems whose accuracy is spread as those of a hard benchmark."""
    return random.binomial(samples, random.beta(0.5, 1.2, problems))


@pytest.mark.parametrize(("problems", "samples", "k"), [(30, 32, 1), (30, 32, 16), (40, 1, 1), (150, 32, 4)])
def test_intervals_hold_the_truth_as_often_as_they_say(problems, samples, k):
    random, runs = np.random.default_rng(5), 600
    truth = np.mean(1 - (1 - np.random.default_rng(6).beta(0.5, 1.2, 1_000_000)) ** k)
    inside = 0
    for _ in range(runs):
        interval = pass_interval(counts(random, problems, samples), samples, k)
        inside += interval.low <= truth <= interval.high
    error = np.sqrt(0.95 * 0.05 / runs)
    assert 0.95 - 3 * error < inside / runs < 0.95 + 3 * error


def test_a_plain_percentile_interval_of_few_problems_is_narrower_than_the_expanded_one():
    values = [np.linspace(0, 1, 10) ** 2]
    plain, expanded = bootstrap_over_problems(values), bootstrap_over_problems(values, expanded=True)
    assert expanded.low < plain.low < plain.high < expanded.high
    assert plain.mean == expanded.mean
    assert np.isnan(bootstrap_over_problems([[0.3]], expanded=True).low)


def test_a_pair_that_differs_at_every_problem_is_decided_and_its_mirror_image_too():
    first, second = np.array([20, 25, 30, 12, 31, 18, 22, 9]), np.array([10, 16, 22, 3, 20, 9, 11, 2])
    up, down = paired(first, second, 32, 32), paired(second, first, 32, 32)
    assert (up.difference.verdict, down.difference.verdict) == ("higher", "lower")
    assert up.difference.mean == pytest.approx((first - second).mean() / 32)
    assert up.p == pytest.approx(stats.ttest_rel(first / 32, second / 32).pvalue)
    assert (up.problems, up.samples) == (down.problems, down.samples)


def test_pairing_by_problem_takes_the_spread_of_problems_out():
    random = np.random.default_rng(0)
    accuracy = random.random(60)
    first, second = random.binomial(400, accuracy), random.binomial(400, np.clip(accuracy - 0.05, 0, 1))
    assert paired(first, second, 400, 400).difference.verdict == "higher"
    assert paired(first, random.permutation(second), 400, 400).difference.verdict == "undecided"


def test_a_pair_that_cannot_be_told_apart_says_so():
    same = paired([3, 3, 3], [3, 3, 3], 4, 4)
    assert (same.difference.mean, same.problems, same.samples) == (0, None, None)
    assert np.isnan(same.p)
    one_sample = paired([1, 0, 1, 1], [0, 0, 1, 0], 1, 1)
    assert one_sample.problems > 4
    assert one_sample.samples is None
    with pytest.raises(SteerError, match="3 and 2 problems"):
        paired([1, 2, 3], [1, 2], 4, 4)


def power(random, problems, samples, gap, spread):
    """How often a paired t test finds that model A is `gap` above B; gaps of single problems spread about it."""
    found = 0
    for _ in range(400):
        base = random.uniform(0.3, 0.6, problems)
        above = base + gap + random.normal(0, spread, problems)
        means = [random.binomial(samples, np.clip(p, 0, 1)) / samples for p in (above, base)]
        found += stats.ttest_1samp(means[0] - means[1], 0).pvalue < 0.05
    return found / 400


def test_the_planned_numbers_of_problems_and_samples_find_the_difference_as_often_as_promised():
    gap, spread, problems, samples = 0.04, 0.05, 30, 8
    base = np.linspace(0.3, 0.6, 1000)
    within = np.mean((base + gap) * (1 - base - gap) + base * (1 - base))
    noise = within / samples
    more_problems, more_samples = what_would_decide(gap, spread**2 + noise, noise, within, problems)
    assert more_problems > problems
    assert more_samples > samples
    random = np.random.default_rng(3)
    assert power(random, problems, samples, gap, spread) < POWER - 0.15
    assert power(random, more_problems, samples, gap, spread) == pytest.approx(POWER, abs=0.06)
    assert power(random, problems, more_samples, gap, spread) == pytest.approx(POWER, abs=0.06)


def test_no_number_of_samples_decides_what_the_spread_of_problems_hides():
    problems, samples = what_would_decide(0.01, 0.04 + 0.01, 0.01, 0.08, 30)
    assert samples is None
    assert problems == int(np.ceil(0.05 * (2.801585 / 0.01) ** 2))
    assert what_would_decide(0.0, 0.05, 0.01, 0.08, 30) == (None, None)
