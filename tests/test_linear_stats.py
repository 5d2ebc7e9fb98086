"""Statistics from hidden states: values and gradients against plain float64, on tiles of a few rows and columns.

Under TRITON_INTERPRET=1 the same tests run the Triton kernels in its interpreter; the last test does that.
"""

import importlib.util
import math
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from linear_cases import (
    COLUMNS,
    HEADS,
    ROWS,
    assert_gradients_close,
    assert_stats_close,
    case,
    gradients,
    heads,
    logits_of,
    reference,
)

from steer_core.formulas import linear_stats
from steer_core.formulas.linear_stats import linear_token_stats
from steer_core.formulas.token_stats import IGNORED_LABEL, token_stats

INF = float("inf")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(linear_stats, "BLOCKS", {"cpu": (ROWS, COLUMNS)})
    monkeypatch.setattr(linear_stats, "USE_TRITON", INTERPRETED)
    hold_at_once(ROWS * COLUMNS, monkeypatch)


def hold_at_once(logits, monkeypatch):
    """Have a Triton program hold so many."""
    if INTERPRETED:
        monkeypatch.setattr("steer_core.formulas.linear_stats_triton.AT_ONCE", logits)


@pytest.mark.parametrize("rows", [1, ROWS, 2 * ROWS + 1])
@pytest.mark.parametrize("size", [1, 2, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 5])
def test_values_and_gradients_are_right_at_every_edge_of_the_tiles(rows, size, monkeypatch):
    hold_at_once(COLUMNS // 2, monkeypatch)  # so that a program walks along its rows
    tensors, head = case(rows, size, seed=rows * size)
    edges = torch.tensor([size - 1, 0, min(COLUMNS, size) - 1, min(COLUMNS, size - 1)])
    tensors[2] = edges.repeat(5)[:rows]
    assert_stats_close(linear_token_stats(*tensors), reference(*tensors), rtol=3e-6, atol=3e-6)
    assert_gradients_close(
        gradients(linear_token_stats, tensors, head), gradients(reference, tensors, head), rtol=1e-5, atol=1e-5
    )


@heads
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_values_equal_the_definitions(head, dtype, tolerance):
    tensors, head = case(dtype=dtype, ignored=(2, 9), **head)
    stats = linear_token_stats(*tensors, **head)
    assert stats.entropy.dtype == dtype
    assert_stats_close(stats, reference(*tensors, **head), rtol=tolerance, atol=tolerance)


@heads
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (-2.0, 3.0)], ids=["logprob", "entropy", "both"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_equal_float64_autograd(head, weights, dtype, tolerance):
    tensors, head = case(dtype=dtype, ignored=(0, 5), **head)
    expected = gradients(reference, tensors, head, weights)
    for keep_logits in (False, True):
        actual = gradients(linear_token_stats, tensors, head | {"keep_logits": keep_logits}, weights)
        assert_gradients_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("keep_logits", [False, True])
@pytest.mark.parametrize("head", [{"temperature": 0.7}, HEADS["all"]], ids=["plain", "all"])
def test_gradients_equal_finite_differences(head, keep_logits):
    (hidden, weight, labels), head = case(3, COLUMNS + 3, 2, dtype=torch.float64, ignored=(1,), **head)
    bias = head.pop("bias_V", torch.zeros(len(weight), dtype=torch.float64))

    def logprob_and_entropy(hidden, weight, bias):
        stats = linear_token_stats(hidden, weight, labels, bias_V=bias, keep_logits=keep_logits, **head)
        return stats.logprob, stats.entropy

    assert torch.autograd.gradcheck(logprob_and_entropy, [x.requires_grad_() for x in (hidden, weight, bias)])


@heads
def test_they_are_the_statistics_of_the_explicit_logits(head):
    tensors, head = case(**head)
    temperature = head.pop("temperature", 1.0)
    logits = logits_of(*tensors[:2], **head).float()
    wanted = token_stats(logits, tensors[2], temperature)
    assert_stats_close(linear_token_stats(*tensors, temperature, **head), wanted, rtol=1e-5, atol=1e-5)


def placed(logits):
    """Hidden states and a matrix whose product is exactly the logits."""
    return torch.eye(len(logits)), logits.t().contiguous()


@pytest.mark.parametrize("shift", [1e4, -1e4])
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_a_shift_of_all_logits_costs_no_digits_at_any_temperature(shift, temperature):
    logits = (torch.randn(6, 29, generator=torch.Generator().manual_seed(0)) * 48).round() / 16 + shift
    tensors = [*placed(logits), torch.arange(6) * 5]
    head = {"temperature": temperature}
    assert_stats_close(linear_token_stats(*tensors, **head), reference(*tensors, **head), rtol=3e-6, atol=3e-6)
    expected = gradients(reference, tensors, head, wanted=("weight",))
    assert_gradients_close(
        gradients(linear_token_stats, tensors, head, wanted=("weight",)), expected, rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("step", [0.5, 3.0, 40.0, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_a_maximum_that_rises_in_every_tile_rescales_all_that_came_before(step, temperature):
    logits = torch.randn(3, 4 * COLUMNS + 1, generator=torch.Generator().manual_seed(1))
    logits += step * (torch.arange(logits.shape[1]) // COLUMNS)
    tensors = [*placed(logits), torch.tensor([0, COLUMNS, 4 * COLUMNS])]
    head = {"temperature": temperature}
    stats, wanted = linear_token_stats(*tensors, **head), reference(*tensors, **head)
    assert_stats_close(stats, wanted, rtol=1e-5, atol=1e-6)
    assert (stats.entropy >= 0).all()
    expected = gradients(reference, tensors, head, wanted=("weight",))
    assert_gradients_close(
        gradients(linear_token_stats, tensors, head, wanted=("weight",)), expected, rtol=1e-5, atol=2e-6
    )


def test_a_spike_in_the_last_tile_leaves_the_others_their_share():
    logits = torch.randn(2, 3 * COLUMNS, generator=torch.Generator().manual_seed(2))
    logits[:, -1] = torch.tensor([6.0, 200.0])
    tensors = [*placed(logits), torch.tensor([1, 1])]
    stats = linear_token_stats(*tensors)
    assert_stats_close(stats, reference(*tensors), rtol=1e-5, atol=1e-7)
    assert 0.05 < stats.entropy[0] < 1
    assert stats.entropy[1] == 0


@pytest.mark.parametrize(
    "place", [slice(0, COLUMNS), slice(0, COLUMNS + 3), slice(COLUMNS, 2 * COLUMNS), slice(31, 37)]
)
def test_tokens_with_a_bias_of_minus_infinity_count_as_absent(place):
    (hidden, weight, labels), head = case(bias=True, temperature=0.8)
    present = torch.ones(len(weight), dtype=torch.bool)
    present[place] = False
    labels[:] = torch.arange(len(weight))[present].repeat(2)[: len(labels)]
    left = [hidden, weight[present], present.cumsum(0)[labels] - 1]
    left_head = head | {"bias_V": head["bias_V"][present]}
    head["bias_V"] = head["bias_V"].masked_fill(~present, -INF)
    tensors = [hidden, weight, labels]
    assert_stats_close(linear_token_stats(*tensors, **head), reference(*left, **left_head), rtol=3e-6, atol=3e-6)
    expected = gradients(reference, left, left_head)
    for name in ("weight", "bias_V"):
        grad = torch.zeros_like(head["bias_V"] if name == "bias_V" else weight)
        grad[present] = expected[name]
        expected[name] = grad
    for keep_logits in (False, True):
        actual = gradients(linear_token_stats, tensors, head | {"keep_logits": keep_logits})
        assert_gradients_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_label_on_a_logit_of_minus_infinity_has_no_probability():
    (hidden, weight, labels), head = case(3, bias=True)
    labels[:] = 20
    head["bias_V"][20] = -INF
    stats = linear_token_stats(hidden, weight, labels, **head)
    assert stats.logprob.tolist() == [-INF] * 3
    assert stats.entropy.isfinite().all()


def test_a_row_without_a_finite_logit_gives_nan_in_that_row_alone():
    for bad in (math.nan, INF):
        (hidden, weight, labels), _ = case(6)
        hidden[1, 0] = bad
        stats = linear_token_stats(hidden, weight, labels)
        for field in fields(stats):
            assert getattr(stats, field.name).isnan().tolist() == [False, True] + [False] * 4
    (hidden, weight, labels), _ = case(2)
    labels[1] = IGNORED_LABEL
    stats = linear_token_stats(hidden, weight, labels, bias_V=torch.full((len(weight),), -INF))
    assert stats.entropy.isnan().all()
    assert stats.logprob.isnan().tolist() == [True, False]


def test_ignored_labels_give_logprob_zero_and_no_gradient_and_leave_the_rest():
    tensors, head = case()
    ignoring = [*tensors[:2], tensors[2].clone()]
    ignoring[2][[0, 3]] = IGNORED_LABEL
    every, some = linear_token_stats(*tensors), linear_token_stats(*ignoring)
    assert some.logprob[[0, 3]].tolist() == [0.0, 0.0]
    assert torch.equal(some.entropy, every.entropy)
    kept = [i for i in range(11) if i not in (0, 3)]
    assert torch.equal(some.logprob[kept], every.logprob[kept])
    grads = [gradients(linear_token_stats, x, head, (1.0, 0.0))["hidden"] for x in (tensors, ignoring)]
    assert not grads[1][[0, 3]].any()
    assert torch.equal(grads[0][kept], grads[1][kept])


@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("rows", [0, 5])
def test_batches_of_no_rows_or_only_ignored_ones_work(rows, weights):
    tensors, head = case(rows, bias=True)
    tensors[2][:] = IGNORED_LABEL
    assert_stats_close(linear_token_stats(*tensors, **head), reference(*tensors, **head), rtol=1e-5, atol=1e-5)
    for keep_logits in (False, True):
        actual = gradients(linear_token_stats, tensors, head | {"keep_logits": keep_logits}, weights)
        assert_gradients_close(actual, gradients(reference, tensors, head, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [["hidden"], ["weight"], ["bias_V"], ["weight", "bias_V"]], ids="+".join)
def test_each_gradient_is_made_alone(wanted):
    tensors, head = case(bias=True, softcap=4.0)
    expected = gradients(linear_token_stats, tensors, head)
    actual = gradients(linear_token_stats, tensors, head, wanted=wanted)
    for name, grad in expected.items():
        assert torch.equal(actual[name], grad) if name in wanted else actual[name] is None


def test_a_gradient_that_nobody_needs_costs_no_product(monkeypatch):
    made, tensors, tiles = [], case(ROWS, COLUMNS)[0], 1
    add_product = linear_stats.add_product
    monkeypatch.setattr(linear_stats, "add_product", lambda a, b, out: (made.append(out.shape), add_product(a, b, out)))
    gradients(linear_token_stats, tensors, {}, wanted=("hidden",))
    assert made == [(ROWS, 5)] * tiles
    gradients(linear_token_stats, tensors, {}, wanted=("weight",))
    assert made[tiles:] == [(COLUMNS, 5)] * tiles


def test_kept_logits_give_the_same_bits_and_may_be_read_twice(monkeypatch):
    tensors, head = case(bias=True, softcap=4.0, temperature=0.7)
    again = gradients(linear_token_stats, tensors, head)
    made, product = [], linear_stats.product
    monkeypatch.setattr(linear_stats, "product", lambda *x: (made.append(1), product(*x)))
    kept = gradients(linear_token_stats, tensors, head | {"keep_logits": True})
    assert len(made) == 2 * 3  # each block once
    assert all(torch.equal(kept[name], again[name]) for name in again)
    leaf = tensors[0].clone().requires_grad_()
    stats = linear_token_stats(leaf, *tensors[1:], keep_logits=True, **head)
    grads = [torch.autograd.grad(stats.entropy.sum(), leaf, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_sums_that_are_not_asked_for_are_nan_and_change_nothing_else():
    tensors, head = case(temperature=0.7)
    every, some = linear_token_stats(*tensors, **head), linear_token_stats(*tensors, sums=False, **head)
    assert torch.equal(some.logprob, every.logprob)
    assert torch.equal(some.entropy, every.entropy)
    assert some.sum_p2.isnan().all()
    assert some.sum_p2_logp.isnan().all()
    grads = [gradients(linear_token_stats, tensors, head | {"sums": sums}) for sums in (True, False)]
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_the_same_call_twice_gives_the_same_bits():
    tensors, head = case(bias=True)
    first, second = linear_token_stats(*tensors, **head), linear_token_stats(*tensors, **head)
    assert all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    grads = [gradients(linear_token_stats, tensors, head) for _ in range(2)]
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.parametrize("blocks", [(1, 1), (3, 100), (100, 3), (100, 100)])
def test_the_size_of_the_blocks_changes_nothing(blocks, monkeypatch):
    tensors, head = case(bias=True, temperature=0.8)
    stats, grads = linear_token_stats(*tensors, **head), gradients(linear_token_stats, tensors, head)
    monkeypatch.setattr(linear_stats, "BLOCKS", {"cpu": blocks})
    assert_stats_close(linear_token_stats(*tensors, **head), stats, rtol=2e-6, atol=2e-6)
    assert_gradients_close(gradients(linear_token_stats, tensors, head), grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_and_summed_in_float32(dtype):
    tensors, head = case(40, 67, dtype=dtype, bias=True, temperature=0.9)
    stats = linear_token_stats(*tensors, **head)
    assert {getattr(stats, f.name).dtype for f in fields(stats)} == {torch.float32}
    assert_stats_close(stats, reference(*tensors, **head), rtol=1e-5, atol=1e-5)
    actual, expected = gradients(linear_token_stats, tensors, head), gradients(reference, tensors, head)
    assert {grad.dtype for grad in actual.values()} == {dtype}
    eps = torch.finfo(dtype).eps  # one rounding, at the end: a sum over 5 blocks in the dtype itself would err by more
    assert_gradients_close(actual, expected, rtol=eps, atol=1e-5)


def test_states_of_any_layout_equal_their_copies():
    tensors, head = case(temperature=0.7)
    hidden, weight, labels = tensors
    strided = [hidden.t().contiguous().t(), torch.stack([weight, weight], 1)[:, 1], labels.repeat_interleave(2)[::2]]
    assert not any(x.is_contiguous() for x in strided)
    expected = linear_token_stats(*tensors, **head)
    assert_stats_close(linear_token_stats(*strided, **head), expected, rtol=2e-6, atol=2e-6)
    leaves = [x.detach().requires_grad_() for x in strided[:2]]
    stats = linear_token_stats(*leaves, strided[2], **head)
    (stats.logprob + stats.entropy).sum().backward()
    leaf = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    stats = linear_token_stats(*leaf, labels, **head)
    (stats.logprob + stats.entropy).sum().backward()
    for one, other in zip(leaves, leaf, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_uniform_logits_never_exceed_ln_v():
    for size in (1, 2, 3, 7, 50, 333, 1000):
        hidden = 1e-5 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))  # nearly, so that sums round
        weight = 1.65 + torch.rand(size, 2, generator=torch.Generator().manual_seed(size))
        stats = linear_token_stats(hidden, weight, torch.zeros(100, dtype=torch.long))
        assert (stats.entropy <= torch.tensor(math.log(size))).all()
        torch.testing.assert_close(stats.entropy, torch.full((100,), math.log(size)), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(stats.sum_p2, torch.full((100,), 1 / size), rtol=1e-5, atol=0)


def test_second_derivatives_are_refused_not_wrong():
    (hidden, weight, labels), _ = case(2, 4, dtype=torch.float64)
    stats = linear_token_stats(hidden.requires_grad_(), weight, labels)
    (first,) = torch.autograd.grad(stats.logprob.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.square().sum().backward()


def test_only_logprob_and_entropy_carry_gradient_and_inputs_are_left_as_they_were():
    tensors, head = case(bias=True)
    before = [x.clone() for x in (*tensors, head["bias_V"])]
    stats = linear_token_stats(tensors[0].requires_grad_(), *tensors[1:], **head)
    assert [getattr(stats, f.name).requires_grad for f in fields(stats)] == [True, True, False, False]
    stats.entropy.sum().backward()
    assert all(torch.equal(x, y) for x, y in zip((*tensors, head["bias_V"]), before, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="this is the run in the interpreter")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernels_pass_these_tests_in_their_interpreter():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--no-header",
        __file__,
    ]
    told_apart = (
        "definitions and dtype0 or both and dtype0 or edge and 37-17 or rises or shift or minus_infinity or nan_in"
    )
    command += ["-k", told_apart]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 30
