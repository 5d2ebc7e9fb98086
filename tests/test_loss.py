"""The clipped surrogate region by region, and reductions that no split, padding or order can move."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.loss import (
    LOG_RATIO_BOUND,
    REDUCTIONS,
    ClipRange,
    clip_indicator,
    clipped_by,
    clipped_surrogate,
    denominator,
    importance_ratio,
    reduce_loss,
    token_coefficients,
)
from steer_core.formulas.token_stats import token_stats

LONGEST = 11
CLIPS = [ClipRange(), ClipRange(dual=None), ClipRange(0.1, 0.6, 3.0), ClipRange(0.99, 5.0, 10.0)]


def region(ratio, advantage, clip):
    """(value, whether gradient passes), by cases."""
    if advantage > 0:
        return (-advantage * (1 + clip.high), False) if ratio > 1 + clip.high else (-advantage * ratio, True)
    if advantage < 0 and ratio < 1 - clip.low:
        return -advantage * (1 - clip.low), False
    if advantage < 0 and clip.dual is not None and ratio > clip.dual:
        return -advantage * clip.dual, False
    return -advantage * ratio, advantage != 0


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@given(st.floats(-6, 6), st.floats(-3, 3), st.floats(-5, -0.01))
def test_surrogate_value_and_gradient_by_region(clip, log_ratio, advantage, old_logprob):
    logprob = torch.tensor([old_logprob + log_ratio], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([old_logprob], dtype=torch.float64)
    loss = clipped_surrogate(logprob, old, torch.tensor([advantage], dtype=torch.float64), clip)
    loss.backward()
    ratio = math.exp(logprob.item() - old_logprob)
    value, passes = region(ratio, advantage, clip)
    assert loss.item() == pytest.approx(value, rel=1e-9)
    assert logprob.grad.item() == pytest.approx(-ratio * advantage if passes else 0.0, rel=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 1.0, -1.28, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (20.0, -1.0, 10.0, 0.0),
        (20.0, 1.0, -1.28, 0.0),
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_surrogate_by_hand(ratio, advantage, loss, gradient):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    value = clipped_surrogate(logprob, torch.zeros(1), torch.tensor([advantage]), ClipRange())
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert logprob.grad.item() == pytest.approx(gradient)


def test_dual_clip_off_leaves_large_ratios_to_a_negative_advantage():
    logprob = torch.tensor([math.log(50.0)], requires_grad=True)
    loss = clipped_surrogate(logprob, torch.zeros(1), torch.tensor([-1.0]), ClipRange(dual=None))
    loss.backward()
    assert loss.item() == pytest.approx(50)
    assert logprob.grad.item() == pytest.approx(50)


@pytest.mark.parametrize(
    ("ratio", "advantage", "masks"),
    [
        (1.29, 1.0, (True, False, False)),
        (1.27, 1.0, (False, False, False)),
        (1.29, -1.0, (False, False, False)),
        (0.79, -1.0, (False, True, False)),
        (0.81, -1.0, (False, False, False)),
        (0.79, 1.0, (False, False, False)),
        (10.1, -1.0, (False, False, True)),
        (9.9, -1.0, (False, False, False)),
        (10.1, 1.0, (True, False, False)),
        (10.1, 0.0, (False, False, False)),
        (0.1, 0.0, (False, False, False)),
    ],
)
def test_clipped_by_names_the_side(ratio, advantage, masks):
    ratio, advantage = torch.tensor([ratio]), torch.tensor([advantage])
    assert tuple(bool(m) for m in clipped_by(ratio, advantage, ClipRange())) == masks
    assert clip_indicator(ratio, advantage, ClipRange()).item() == float(not any(masks))


def test_without_dual_clip_none_is_clipped_by_it():
    masks = clipped_by(torch.tensor([1e6]), torch.tensor([-1.0]), ClipRange(dual=None))
    assert [bool(m) for m in masks] == [False, False, False]


def test_ratio_is_new_over_old():
    ratio = importance_ratio(torch.tensor([math.log(0.6)]), torch.tensor([math.log(0.2)]))
    assert ratio.item() == pytest.approx(3)


@pytest.mark.parametrize("sign", [1, -1])
def test_log_ratio_is_bounded_in_value_and_gradient(sign):
    logprob = torch.tensor([sign * 19.5, sign * 20.5, sign * 900.0], dtype=torch.float64, requires_grad=True)
    ratio = importance_ratio(logprob, torch.zeros(3, dtype=torch.float64))
    assert LOG_RATIO_BOUND == 20
    wanted = torch.tensor([sign * 19.5, sign * 20.0, sign * 20.0], dtype=torch.float64).exp()
    torch.testing.assert_close(ratio, wanted)
    ratio.sum().backward()
    torch.testing.assert_close(logprob.grad, wanted * torch.tensor([1.0, 0.0, 0.0]))


@st.composite
def batches(draw):
    """(losses, mask): float64, right-padded, random or empty rows."""
    rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    mask = torch.tensor(
        draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows))
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return torch.randn(rows, width, generator=generator, dtype=torch.float64), mask


def plain(losses, mask, reduction):
    """The definitions, with lists; rows without a token do not count; LONGEST for -norm."""
    rows = [row[keep].tolist() for row, keep in zip(losses, mask, strict=True) if keep.any()]
    if not rows:
        return 0.0
    if reduction == "token-mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if reduction == "seq-mean-token-mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    if reduction == "seq-mean-token-sum-norm":
        return sum(sum(row) / LONGEST for row in rows) / len(rows)
    return sum(map(sum, rows)) / len(rows)


def reduced(losses, mask, reduction):
    return reduce_loss(losses, mask, reduction, denominator(mask, reduction, LONGEST)).item()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(batches())
def test_reduction_equals_its_definition(reduction, batch):
    assert reduced(*batch, reduction) == pytest.approx(plain(*batch, reduction), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(batches(), st.data())
def test_micro_batches_add_up_to_the_mini_batch_however_it_is_split(reduction, batch, data):
    losses, mask = batch
    cuts = sorted(data.draw(st.sets(st.integers(1, len(mask)))) | {0, len(mask)})
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    count = sum(denominator(mask[part], reduction, LONGEST) for part in parts)
    assert count == denominator(mask, reduction, LONGEST)
    total = sum(reduce_loss(losses[part], mask[part], reduction, count).item() for part in parts)
    assert total == pytest.approx(reduced(losses, mask, reduction), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(batches(), st.integers(1, 4), st.integers(0, 10**6))
def test_padding_and_sequence_order_change_nothing(reduction, batch, extra, seed):
    losses, mask = batch
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(losses, (extra, extra), value=1e3)[order]
    padded_mask = torch.nn.functional.pad(mask, (extra, extra))[order]
    assert reduced(padded, padded_mask, reduction) == pytest.approx(
        reduced(losses, mask, reduction), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(batches())
def test_token_coefficients_are_the_gradient_of_the_reduced_loss(reduction, batch):
    losses, mask = batch
    count = denominator(mask, reduction, LONGEST)
    leaf = losses.clone().requires_grad_()
    reduce_loss(leaf, mask, reduction, count).backward()
    coefficients = token_coefficients(mask, reduction, count)
    torch.testing.assert_close(leaf.grad, coefficients.double())
    assert not coefficients[~mask].any()


@pytest.mark.parametrize(
    ("reduction", "value"), list(zip(REDUCTIONS, [8 / 4, (1 + 5) / 2, 8 / 2, 8 / (2 * 11)], strict=True))
)
def test_reductions_by_hand(reduction, value):
    losses = torch.tensor([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert reduced(losses, mask, reduction) == pytest.approx(value)


def test_denominator_counts_tokens_or_sequences_that_have_any():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    assert [denominator(mask, reduction, LONGEST) for reduction in REDUCTIONS] == [3, 2, 2, 22]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_without_response_tokens_has_loss_zero(reduction):
    mask = torch.zeros(2, 3, dtype=torch.bool)
    losses = torch.ones(2, 3, requires_grad=True)
    loss = reduce_loss(losses, mask, reduction, denominator(mask, reduction, LONGEST))
    loss.backward()
    assert loss.item() == 0
    assert not losses.grad.any()


def test_the_norm_of_dr_grpo_does_not_depend_on_the_lengths_of_the_responses():
    short, long = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1]])
    coefficients = [
        token_coefficients(mask, "seq-mean-token-sum-norm", denominator(mask, "seq-mean-token-sum-norm", 8))
        for mask in (short, long)
    ]
    assert coefficients[0].tolist() == [[1 / 8, 1 / 8, 0, 0]]
    assert coefficients[1].tolist() == [[1 / 8] * 4]


@pytest.mark.parametrize("longest", [None, 0, -3])
def test_the_norm_without_the_longest_response_raises(longest):
    mask = torch.ones(1, 1)
    with pytest.raises(ValueError, match=rf"longest: {longest} is no number of tokens"):
        denominator(mask, "seq-mean-token-sum-norm", longest)
    assert denominator(mask, "seq-mean-token-sum-norm", 1) == denominator(mask, "seq-mean-token-sum", longest) == 1


def test_unknown_reduction_raises():
    mask = torch.ones(1, 1)
    with pytest.raises(ValueError, match="batch-mean"):
        denominator(mask, "batch-mean")
    with pytest.raises(ValueError, match="batch-mean"):
        token_coefficients(mask, "batch-mean", 1)


def test_a_float64_loss_is_divided_in_float64():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]])
    losses = torch.rand(3, 3, dtype=torch.float64)
    for reduction in REDUCTIONS:
        count = denominator(mask, reduction, LONGEST)
        share = mask.double() / count
        share = share / mask.sum(-1, keepdim=True) if reduction == "seq-mean-token-mean" else share
        assert reduce_loss(losses, mask, reduction, count).item() == pytest.approx(
            (losses * share).sum().item(), rel=1e-15
        )
        assert token_coefficients(mask, reduction, count).dtype == torch.float32


def test_two_log_probs_of_minus_infinity_are_alike_and_one_of_nan_stays():
    impossible = torch.tensor([-math.inf, -1.0], requires_grad=True)
    loss = clipped_surrogate(impossible, impossible.detach(), torch.tensor([0.5, 2.0]), ClipRange())
    loss.sum().backward()
    assert loss.tolist() == [-0.5, -2.0]
    assert impossible.grad.tolist() == [0.0, -2.0]
    assert importance_ratio(torch.tensor(math.nan), torch.tensor(-1.0)).isnan()


def test_a_token_that_only_the_new_policy_rules_out_changes_nothing():
    old = token_stats(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([0]))
    new = token_stats(torch.tensor([[-math.inf, 1.0, 2.0]]), torch.tensor([0]))
    for name, form in ENTROPY_CHANGE.items():
        if name != "released":
            assert form(new, old, torch.ones(1), ClipRange()) == 0, name
