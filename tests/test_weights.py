"""STEER's weights: each consequence that theory draws from lambda = exp(-alpha |Omega| / max |Omega|)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.formulas.entropy_change import paper_entropy_change
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import token_stats
from steer_core.formulas.weights import MAPS, normaliser, steer_weights
from steer_core.interventions.steer import Steer

changes = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40)
lambdas = st.floats(0.01, 1.0, exclude_max=True)


def weigh(change, lambda_min=0.7, mask=None, quantile=1.0):
    """Normaliser and weights of one step, with every token unmasked by default."""
    change = torch.as_tensor(change)
    mask = torch.ones_like(change, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    return steer_weights(change, mask, lambda_min, normaliser(change, mask, quantile))


@given(changes, lambdas)
def test_weights_lie_within_lambda_min_and_one(values, lambda_min):
    weights = weigh(values, lambda_min)
    assert (weights >= torch.tensor(lambda_min)).all()
    assert (weights <= 1).all()


@given(changes, lambdas)
def test_largest_entropy_change_gets_lambda_min(values, lambda_min):
    change = torch.tensor(values)
    largest = change.abs() == change.abs().max()
    wanted = torch.tensor(lambda_min if change.any() else 1.0)
    assert (weigh(change, lambda_min)[largest] == wanted).all()


def test_weights_by_hand():
    weights = weigh([0.0, 1.0, -2.0, 4.0], lambda_min=0.5)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.5**0.25, 0.5**0.5, 0.5]))


@pytest.mark.parametrize("quantile", [0.07, 0.14, 0.28, 0.29])
def test_a_quantile_of_100_changes_is_not_rounded_up_by_floating_point(quantile):
    assert normaliser(torch.arange(1.0, 101.0), torch.ones(100), quantile) == round(100 * quantile)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_zero_changes_give_ones_not_nan(dtype):
    assert weigh(torch.zeros(3, 4, dtype=dtype)).eq(1).all()


def test_clipped_tokens_get_weight_one():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    new = token_stats(logits, torch.arange(4))
    old = new.map(lambda x: x.clone())
    old.logprob.sub_(torch.tensor([1.5, 0.8, 1.0, 3.0]).log())  # high, nothing, low needs A < 0, dual
    old.logprob[2] += math.log(2)
    change = paper_entropy_change(new, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), ClipRange(dual=2.0))
    weights = weigh(change)
    assert weights[[0, 2, 3]].tolist() == [1.0, 1.0, 1.0]
    assert weights[1] == torch.tensor(0.7)


@given(changes, st.data())
def test_masked_tokens_never_enter_the_maximum_and_get_one(values, data):
    change = torch.tensor(values)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    inflated = torch.where(mask, change, 1e6)
    weights = weigh(inflated, mask=mask)
    assert torch.equal(weights[mask], weigh(change[mask]))
    assert (weights[~mask] == 1).all()


def test_masked_tokens_may_be_not_finite():
    weights = weigh([1.0, math.nan, -math.inf], mask=[True, False, False])
    assert torch.equal(weights, torch.tensor([0.7, 1.0, 1.0]))


def test_nothing_unmasked_gives_scale_zero_and_ones():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    assert normaliser(torch.ones(2, 3), mask) == 0
    assert weigh(torch.ones(2, 3), mask=mask).eq(1).all()


def test_mask_may_hold_integers():
    assert normaliser(torch.tensor([1.0, 5.0, 9.0]), torch.tensor([1, 1, 0])) == 5


@given(changes)
def test_lambda_min_one_gives_exactly_ones(values):
    assert weigh(values, lambda_min=1.0).eq(1).all()


@given(changes, lambdas)
def test_weights_fall_as_the_entropy_change_grows(values, lambda_min):
    change = torch.tensor(values)
    order = change.abs().argsort()
    assert (weigh(change, lambda_min)[order].diff() <= 0).all()


def test_larger_changes_get_strictly_smaller_weights():
    assert (weigh(torch.linspace(0, 3, 50)).diff() < 0).all()


@given(changes, lambdas, st.integers(-20, 20))
def test_weights_do_not_depend_on_the_scale_or_the_sign_of_the_changes(values, lambda_min, power):
    change = torch.tensor([v if abs(v) > 1e-3 else 0.0 for v in values])
    weights = weigh(change, lambda_min)
    assert torch.equal(weigh(change * 2.0**power, lambda_min), weights)
    assert torch.equal(weigh(-change, lambda_min), weights)


@given(changes, st.floats(0.01, 1.0))
def test_quantile_is_the_smallest_value_that_covers_its_share(values, quantile):
    change = torch.tensor(values)
    scale = normaliser(change, torch.ones_like(change), quantile)
    size = change[change != 0].abs()
    if not len(size):
        assert scale == 0
        return
    assert scale in size
    assert (size <= scale).double().mean() >= quantile - 1e-12
    assert (size < scale).double().mean() < quantile


def test_quantile_by_hand():
    change = torch.tensor([-1.0, 2.0, -3.0, 4.0, -5.0, 6.0, -7.0, 8.0, -9.0, 10.0])
    mask = torch.ones(10)
    assert [normaliser(change, mask, q).item() for q in (0.01, 0.1, 0.5, 0.9, 0.91, 1.0)] == [1, 1, 5, 9, 10, 10]


def test_tokens_without_a_change_do_not_move_the_quantile():
    change = torch.tensor([-1.0, 2.0, -3.0, 4.0])
    silent = torch.cat([change, torch.zeros(96)])
    assert normaliser(silent, torch.ones(100), 0.5) == normaliser(change, torch.ones(4), 0.5) == 2


def test_tokens_at_and_above_the_quantile_get_lambda_min():
    weights = weigh(torch.arange(1.0, 11.0), lambda_min=0.3, quantile=0.5)
    assert (weights[4:] == torch.tensor(0.3)).all()
    assert (weights[:4] > 0.3).all()


def test_one_outlier_lifts_the_other_weights_under_the_maximum_but_not_under_a_quantile():
    change = torch.cat([torch.linspace(0.5, 1, 99), torch.tensor([1000.0])])
    assert (weigh(change)[:-1] > 0.999).all()
    assert weigh(change, quantile=0.9)[:-1].min() == torch.tensor(0.7)


@pytest.mark.parametrize("quantile", [0.3, 1.0])
def test_weights_of_a_step_do_not_depend_on_its_split(quantile):
    change = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    scale = normaliser(change, mask, quantile)
    whole = steer_weights(change, mask, 0.7, scale)
    parts = [steer_weights(change[i : i + 4], mask[i : i + 4], 0.7, scale) for i in range(0, 12, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(normaliser(change[mask], torch.ones(int(mask.sum())), quantile), scale)


def test_weights_carry_no_gradient():
    change = torch.tensor([1.0, 2.0], requires_grad=True)
    mask = torch.ones(2)
    scale = normaliser(change, mask)
    assert not scale.requires_grad
    assert not steer_weights(change, mask, 0.7, scale).requires_grad


CHANGE = torch.tensor([0.0, 1.0, -2.0, 4.0, 8.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("map", "bounds", "smallest", "weights"),
    [
        ("exponential", (0.5, 1.0), 0.0, [1.0, 0.5**0.25, 0.5**0.5, 0.5, 0.5]),
        ("exponential", (0.3, 1.2), 0.0, [1.2, 1.2 * 0.25**0.25, 0.6, 0.3, 0.3]),
        ("exponential", (0.3, 1.2), 1.0, [1.2, 1.2 * 0.25**0.25, 0.6, 0.3, 0.3]),  # for the linear map alone
        ("linear", (0.5, 1.0), 0.0, [1.0, 0.875, 0.75, 0.5, 0.5]),
        ("linear", (0.8, 1.2), 0.0, [1.2, 1.1, 1.0, 0.8, 0.8]),
        ("linear", (0.8, 1.2), 1.0, [1.2, 1.2, 1.2 - 0.4 / 3, 0.8, 0.8]),
        ("binary", (0.5, 1.0), 0.0, [1.0, 1.0, 1.0, 0.5, 0.5]),
        ("binary", (0.8, 1.2), 1.0, [1.2, 1.2, 1.2, 0.8, 0.8]),
    ],
)
def test_maps_by_hand_where_the_scale_is_4(map, bounds, smallest, weights):
    low, high = bounds
    actual = steer_weights(CHANGE, torch.ones(5), low, torch.tensor(4.0).double(), map, high, smallest)
    assert actual.tolist() == pytest.approx(weights, rel=1e-12)


@given(changes, st.floats(0.05, 1), st.floats(1, 2), st.sampled_from(MAPS), st.floats(0.1, 1))
def test_every_map_falls_from_lambda_max_to_lambda_min(values, low, high, map, quantile):
    change = torch.tensor(values, dtype=torch.float64)
    scale = normaliser(change, torch.ones_like(change), quantile)
    weights = steer_weights(change, torch.ones_like(change), low, scale, map, high)
    order = change.abs().argsort()
    assert (weights[order].diff() <= 0).all()
    assert (weights[change == 0] == high).all()
    assert (weights[(change.abs() >= scale) & (change != 0)] == low).all()
    assert ((weights >= low) & (weights <= high)).all()


@pytest.mark.parametrize("map", MAPS)
def test_masked_tokens_get_1_and_tokens_of_a_silent_step_lambda_max(map):
    mask = torch.tensor([True, False, True])
    weights = steer_weights(torch.tensor([1.0, 9.0, 0.0]), mask, 0.5, torch.tensor(1.0), map, 1.5)
    assert weights.tolist() == [0.5, 1.0, 1.5]
    silent = steer_weights(torch.zeros(3), mask, 0.5, torch.tensor(0.0), map, 1.5)
    assert silent.tolist() == [1.5, 1.0, 1.5]


def test_equal_changes_under_the_linear_map_get_lambda_min_not_nan():
    weights = steer_weights(torch.ones(3), torch.ones(3), 0.8, torch.tensor(1.0), "linear", 1.2, smallest=1.0)
    assert torch.equal(weights, torch.full((3,), 0.8))


def test_the_asymmetric_sides_damp_what_lowers_entropy_alone():
    """Of two likely tokens the one with A > 0 lowers entropy; the other, twice as large, does not set the maximum."""
    logits = torch.tensor([[2.0, 0.0, 0.0]] * 3)
    stats, advantages = token_stats(logits, torch.zeros(3, dtype=torch.long)), torch.tensor([1.0, -2.0, 0.5])
    change = Steer(sides="lowering").change(stats, stats, advantages, ClipRange())
    both = Steer().change(stats, stats, advantages, ClipRange())
    assert both[0] < 0 < both[1]
    assert change.tolist() == [both[0], 0, both[2]]
    rule = Steer(sides="lowering", lambda_min=0.49)
    torch.testing.assert_close(rule.lambdas(change, rule.scale(change)), torch.tensor([0.49, 1.0, 0.7]))
    torch.testing.assert_close(rule.lambdas(both, rule.scale(both)), torch.tensor([0.7, 0.49, 0.49**0.25]))


@pytest.mark.parametrize(("smallest", "scale"), [(0.0, 0.01), (0.01, 0.01), (0.04, 0.04)])
def test_the_normaliser_is_at_least_its_floor(smallest, scale):
    change, rule = torch.tensor([0.0, -0.01, 0.005], dtype=torch.float64), Steer(smallest_normaliser=smallest)
    assert rule.scale(change).item() == scale
    wanted = [0.7 ** (size / scale) for size in (0, 0.01, 0.005)]
    assert rule.lambdas(change, rule.scale(change)).tolist() == pytest.approx(wanted)


def test_the_quantile_is_read_only_where_the_normaliser_is_one():
    change = torch.arange(1.0, 11.0)
    assert Steer(quantile=0.5).scale(change) == 10
    assert Steer(quantile=0.5, normaliser="quantile").scale(change) == 5


def test_an_unknown_map_raises_with_the_nearest():
    with pytest.raises(ValueError, match="map: 'linea' is none of STEER's; did you mean 'linear'"):
        steer_weights(torch.ones(1), torch.ones(1), 0.7, torch.tensor(1.0), "linea")


@pytest.mark.parametrize(("low", "high"), [(1.3, 1.2), (0.5, math.inf), (0.5, math.nan), (0.0, 1.2)])
def test_bounds_that_are_none_raise(low, high):
    with pytest.raises(ValueError, match=r"lambda_min: .* is not within \(0, lambda_max = "):
        steer_weights(torch.ones(1), torch.ones(1), low, torch.tensor(1.0), "linear", high)


@pytest.mark.parametrize("lambda_min", [0.0, -0.1, 1.0001, math.nan])
def test_lambda_min_outside_its_range_raises(lambda_min):
    with pytest.raises(ValueError, match="lambda_min"):
        weigh([1.0], lambda_min)


@pytest.mark.parametrize("quantile", [0.0, -0.5, 1.01, math.nan])
def test_quantile_outside_its_range_raises(quantile):
    with pytest.raises(ValueError, match="quantile"):
        weigh([1.0], quantile=quantile)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unmasked_change_that_is_not_finite_raises(bad):
    with pytest.raises(ValueError, match="not finite"):
        steer_weights(torch.tensor([1.0, bad]), torch.ones(2), 0.7, torch.tensor(1.0))


def test_a_share_that_floating_point_makes_a_little_more_takes_no_further_value():
    """0.07 x 100 is 7.000000000000001, and the smallest value with 7% at or below it is the seventh."""
    change = torch.arange(1.0, 101.0, dtype=torch.float64)
    assert normaliser(change, torch.ones(100), 0.07) == 7
