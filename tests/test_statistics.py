"""Intervals cover what they claim, differences are paired, crossings are interpolated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic import comparison

from steer_core.stats.agreement import agreement
from steer_core.stats.intervals import (
    Interval,
    at_first_crossing,
    bootstrap_over_problems,
    holm,
    interval_over_seeds,
    interval_over_seeds_and_problems,
    paired_p_value,
)


def test_interval_over_seeds_equals_the_t_interval_by_hand():
    values = [0.1, 0.2, 0.6]
    half = 4.302652729911275 * math.sqrt(0.07) / math.sqrt(3)
    interval = interval_over_seeds(values)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    reference = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(reference)


def test_t_interval_over_three_seeds_covers_the_truth_95_times_in_100():
    draws = np.random.default_rng(0).normal(0.3, 0.05, size=(2000, 3))
    covered = np.mean([i.low <= 0.3 <= i.high for i in map(interval_over_seeds, draws)])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_bootstrap_over_150_problems_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(1)
    samples = random.beta(0.5, 1.5, size=(400, 1, 150))
    covered = np.mean([i.low <= 0.25 <= i.high for i in (bootstrap_over_problems(s, draws=500) for s in samples)])
    assert covered == pytest.approx(0.95, abs=0.035)


def test_bootstrap_resamples_problems_and_not_seeds():
    values_SQ = np.array([[0.0] * 20, [1.0] * 20])
    interval = bootstrap_over_problems(values_SQ)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_one_seed_has_no_interval_and_decides_nothing():
    interval = interval_over_seeds([0.4])
    assert interval.mean == 0.4
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.verdict == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "higher"), (-0.2, -0.01, "lower"), (-0.1, 0.2, "undecided"), (0.0, 0.2, "undecided")],
)
def test_verdict_names_the_side_of_0_that_holds_the_whole_interval(low, high, verdict):
    assert Interval((low + high) / 2, low, high).verdict == verdict


def test_seeds_that_agree_exactly_decide_nothing():
    assert interval_over_seeds([-0.05, -0.05]).verdict == "undecided"
    assert interval_over_seeds([0.1 + 0.2, 0.3]).verdict == "undecided"


def test_crossing_is_interpolated_between_the_two_evaluations_around_it():
    assert at_first_crossing([0.1, 0.3, 0.2, 0.5], [10, 20, 30, 40], 0.15) == pytest.approx(12.5)
    assert at_first_crossing([0.1, 0.3, 0.2, 0.5], [10, 20, 30, 40], 0.4) == pytest.approx(30 + 10 * 2 / 3)
    assert at_first_crossing([0.2, 0.3], [10, 20], 0.1) == 10
    assert math.isnan(at_first_crossing([0.1, 0.3], [10, 20], 0.4))


def test_differences_at_equal_steps_are_paired_by_seed():
    row = comparison().differences()["steer"]
    half = 4.302652729911275 * 0.005 / math.sqrt(3)
    assert row["entropy"].mean == pytest.approx(0.105)
    assert (row["entropy"].low, row["entropy"].high) == pytest.approx((0.105 - half, 0.105 + half))
    assert row["pass@1"].mean == pytest.approx(0.0)
    assert row["pass@2"].mean == pytest.approx(0.1)


def test_a_seed_that_one_arm_lacks_is_left_out_of_the_pairs():
    whole = comparison()
    kept = ~((whole.evaluations.arm == "grpo") & (whole.evaluations.seed == 2) & (whole.evaluations.step == 4))
    partial = type(whole)(**{**vars(whole), "evaluations": whole.evaluations[kept]})
    assert partial.differences()["steer"]["entropy"].mean == pytest.approx(np.mean([0.1, 0.105]))


def test_equal_pass1_compares_runs_where_each_first_reaches_the_level_all_reached():
    fast = comparison()
    slower = fast.evaluations.copy()
    rows = (slower.arm == "slow") & (slower.step == 4)
    slower.loc[rows, "correct"] = slower.loc[rows, "correct"].map(lambda _: [1] * 6 + [0] * 4)
    made = type(fast)(**{**vars(fast), "evaluations": slower})
    assert made.common_level() == pytest.approx(0.3)
    crossing = made.at_equal_pass1().set_index(["arm", "seed"])
    assert crossing.loc[("grpo", 0), "step"] == pytest.approx(3.0)
    assert crossing.loc[("grpo", 0), "entropy"] == pytest.approx(0.25)
    assert crossing.loc[("grpo", 0), "pass@2"] == pytest.approx(0.3)
    assert crossing.loc[("steer", 0), "pass@2"] == pytest.approx(0.4)
    assert crossing.loc[("slow", 0), "step"] == pytest.approx(4.0)
    assert made.differences_at_equal_pass1()["steer"]["pass@2"].mean == pytest.approx(0.1)
    assert made.differences_at_equal_pass1("slow")["steer"]["pass@2"].mean == pytest.approx(-0.2)


def test_a_difference_changes_sign_with_the_arm_it_is_taken_against():
    one, other = comparison().differences()["slow"], comparison().differences("slow")["grpo"]
    assert {name: i.mean for name, i in one.items()} == pytest.approx({name: -i.mean for name, i in other.items()})


def test_a_control_differs_from_the_baseline_in_a_lower_learning_rate_alone():
    assert comparison().plan.controls == ["slow"]


def test_levels_hold_the_known_numbers_and_base_levels_the_base_model():
    levels, base = comparison().levels(), comparison().base_levels()
    assert levels["grpo"]["pass@1"].mean == pytest.approx(0.4)
    assert levels["steer"]["pass@2"].mean == pytest.approx(0.5)
    assert levels["grpo"]["entropy"].mean == pytest.approx(0.21)
    assert levels["grpo"]["reward"].mean == pytest.approx(0.25)
    assert base["pass@1"].mean == pytest.approx(0.05)
    assert base["entropy"].mean == 0.4


def test_a_comparison_without_evaluations_has_empty_tables():
    empty = comparison(evaluated=False)
    assert empty.levels() == empty.differences() == empty.differences_at_equal_pass1() == empty.base_levels() == {}
    assert math.isnan(empty.common_level())


def test_changes_from_the_base_are_paired_by_problem():
    told = comparison().changes_from_base()["grpo"]["pass@1"]
    assert told.mean == pytest.approx(0.35)
    assert told.low > 0
    assert told.verdict == "higher"


def test_agreement_by_hand():
    scores = agreement([1.0, 2.0, 3.0, -2.0], [2.0, 3.0, 1.0, -6.0])
    assert scores == pytest.approx(
        {
            "mse": (1 + 1 + 4 + 16) / 4,
            "pearson": 23 / math.sqrt(14 * 50),
            "spearman": 0.4,
            "sign": 1.0,
            "slope": 23 / 18,
        }
    )


@given(st.integers(3, 200), st.integers(0, 10**6), st.floats(0.01, 100))
def test_agreement_is_that_of_scipy_ties_included(count, seed, noise):
    random = np.random.default_rng(seed)
    x = random.normal(size=count).round(1)
    y = (x + noise * random.normal(size=count)).round(1)
    x[0], x[1], y[0], y[1] = 0.0, 1.0, 0.0, 1.0
    scores = agreement(x, y)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert scores["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert scores["slope"] == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0], abs=1e-9)
    assert scores["mse"] == pytest.approx(np.square(x - y).mean())


@pytest.mark.parametrize("scale", [1e-9, 0.5, 3.0, -2.0])
def test_slope_of_agreement_recovers_a_scale_that_correlations_do_not_see(scale):
    x = np.random.default_rng(0).normal(size=50)
    scores = agreement(x, scale * x)
    assert scores["slope"] == pytest.approx(scale)
    assert scores["pearson"] == pytest.approx(math.copysign(1, scale))
    assert scores["spearman"] == pytest.approx(math.copysign(1, scale))
    assert scores["sign"] == (scale > 0)


def test_correlations_of_agreement_ignore_a_shift_and_its_slope_does_not():
    x = np.array([1.0, 2.0, 4.0])
    scores = agreement(x, x + 10)
    assert (scores["pearson"], scores["spearman"]) == pytest.approx((1, 1))
    assert scores["slope"] == pytest.approx(1 + 10 * 7 / 21)


def test_sign_of_agreement_leaves_out_exact_zeros_on_either_side():
    assert agreement([1.0, -1.0, 0.0, 2.0, 0.0], [3.0, 1.0, 5.0, 0.0, 0.0])["sign"] == 0.5
    assert agreement([-1.0, -0.0, 1e-300], [-3.0, 1.0, 1e-300])["sign"] == 1.0


@pytest.mark.parametrize(
    ("predicted", "measured", "defined"),
    [
        ([], [], set()),
        ([1.0], [2.0], {"mse", "sign", "slope"}),
        ([0.0, 0.0], [1.0, 2.0], {"mse"}),
        ([1.0, 2.0], [0.0, 0.0], {"mse", "slope"}),
        ([0.1] * 7, range(1, 8), {"mse", "sign", "slope"}),
        ([1.0, 2.0, 3.0], [0.1 + 0.2] * 3, {"mse", "sign", "slope"}),
        ([1.0, 2.0], [1.0, 3.0], {"mse", "pearson", "spearman", "sign", "slope"}),
        ([1e-9, 2e-9], [1e-12, 3e-12], {"mse", "pearson", "spearman", "sign", "slope"}),
    ],
)
def test_agreement_is_nan_where_it_is_undefined_and_only_there(predicted, measured, defined):
    scores = agreement(np.array(predicted), np.array(measured))
    assert set(scores) == {"mse", "pearson", "spearman", "sign", "slope"}
    assert {name for name, value in scores.items() if not math.isnan(value)} == defined
    assert all(isinstance(value, float) for value in scores.values())


def test_a_constant_correlates_with_nothing_even_where_its_mean_rounds_to_another_number():
    random = np.random.default_rng(0)
    for count in range(2, 60):
        for constant in (0.1, 1 / 3, -0.7):
            flat, varied = np.full(count, constant), random.normal(size=count)
            for scores in (agreement(flat, varied), agreement(varied, flat)):
                assert math.isnan(scores["pearson"])
                assert math.isnan(scores["spearman"])


@pytest.mark.parametrize(
    ("predicted", "measured"),
    [(np.zeros(3), np.zeros(4)), (np.zeros((2, 2)), np.zeros((2, 2))), (np.zeros(3), np.zeros((3, 1)))],
)
def test_agreement_refuses_shapes_that_differ_or_are_not_flat(predicted, measured):
    with pytest.raises(ValueError, match="predicted: shape"):
        agreement(predicted, measured)


def test_first_crossing_interpolates_a_row_of_values_as_it_does_one():
    rows = [[10.0, 0.0], [20.0, 4.0]]
    assert at_first_crossing([0.1, 0.3], rows, 0.2).tolist() == pytest.approx([15.0, 2.0])
    missed = at_first_crossing([0.1, 0.3], rows, 0.4)
    assert missed.shape == (2,)
    assert np.isnan(missed).all()


@pytest.mark.parametrize(
    ("seeds", "problems", "rest"), [(0, 0, 0.45), (0.03, 0, 0.45), (0, 0.15, 0.45), (0.03, 0.3, 0.3), (0, 0.3, 0.01)]
)
def test_the_interval_over_seeds_and_problems_holds_the_truth_95_times_in_100(seeds, problems, rest):
    random, draws = np.random.default_rng(0), 2000
    held = 0
    for _ in range(draws):
        values_SQ = seeds * random.normal(size=(5, 1)) + problems * random.normal(size=(1, 100))
        found = interval_over_seeds_and_problems(values_SQ + rest * random.normal(size=(5, 100)))
        held += found.low <= 0 <= found.high
    assert held / draws == pytest.approx(0.95, abs=0.0125)


def test_the_interval_over_both_is_that_of_seeds_or_of_problems_where_only_these_vary():
    random = np.random.default_rng(0)
    by_problem = np.tile(random.normal(size=200), (5, 1))
    found, wanted = interval_over_seeds_and_problems(by_problem), interval_over_seeds(by_problem[0])
    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    by_seed = np.tile(random.normal(size=(8, 1)), (1, 200))
    found, wanted = interval_over_seeds_and_problems(by_seed), interval_over_seeds(by_seed[:, 0])
    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))


def test_the_interval_over_both_of_one_seed_or_problem_is_over_the_other_and_nothing_is_refused():
    values = np.random.default_rng(1).normal(size=(3, 20))
    assert interval_over_seeds_and_problems(values[:1]) == bootstrap_over_problems(values[:1])
    assert interval_over_seeds_and_problems(values[:, :1]) == interval_over_seeds(values[:, 0])
    flat = interval_over_seeds_and_problems(np.full((3, 4), 0.1))
    assert (flat.low, flat.high) == pytest.approx((0.1, 0.1))
    assert flat.verdict == "undecided"
    with pytest.raises(ValueError, match="no seed or no problem"):
        interval_over_seeds_and_problems(np.zeros((0, 4)))


def test_paired_p_value_agrees_with_the_interval_at_5_per_cent():
    values = [0.1, 0.3, 0.2, 0.15]
    interval = interval_over_seeds(values)
    assert paired_p_value(values) < 0.05
    moved = [value - interval.low for value in values]  # the interval now begins at 0
    assert paired_p_value(moved) == pytest.approx(0.05)
    assert math.isnan(paired_p_value([0.1]))
    assert math.isnan(paired_p_value([0.1, 0.1]))


def test_holm_multiplies_the_smallest_by_all_never_falls_and_stops_at_1():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == pytest.approx({"a": 1.0, "b": 1.0})
    found = holm({"a": 0.02, "b": float("nan")})
    assert found["a"] == 0.02
    assert math.isnan(found["b"])


def test_the_bootstrap_draws_what_it_drew_when_the_committed_results_were_made():
    """Indices of problems from one stream; means; linear quantiles."""
    values_SQ = np.random.default_rng(2).random((5, 30)).round(2)
    random = np.random.default_rng(0)
    drawn = values_SQ.mean(0)[random.integers(30, size=(2000, 30))].mean(-1)
    found = bootstrap_over_problems(values_SQ)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=1e-12)


def test_of_one_problem_an_expanded_interval_has_no_bounds_and_a_plain_one_no_width():
    assert bootstrap_over_problems([[0.4]]) == Interval(0.4, 0.4, 0.4)
    assert math.isnan(bootstrap_over_problems([[0.4]], expanded=True).low)
    with pytest.raises(ValueError, match="no problem"):
        bootstrap_over_problems(np.zeros((2, 0)))
