"""STEER's weights: each consequence that theory draws from lambda = exp(-alpha |Omega| / max |Omega|)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.entropy_change import paper_entropy_change
from steer_core.loss import ClipRange
from steer_core.token_stats import token_stats
from steer_core.weights import normaliser, steer_weights

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
