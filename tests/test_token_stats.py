"""Token statistics: values and gradients against a plain float64 reference, hostile logits, memory."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from storages import Storages

from steer_core.formulas.token_stats import IGNORED_LABEL, TokenStats, entropy, token_stats

INF = float("inf")


def reference(logits, labels, temperature=1.0):
    """The definitions, in float64, on the whole matrix at once; differentiable for finite logits."""
    logp = torch.log_softmax(logits.double() / temperature, -1)
    p = logp.exp()
    return TokenStats(
        logp.gather(-1, labels[..., None]).squeeze(-1), -(p * logp).sum(-1), (p * p).sum(-1), (p * p * logp).sum(-1)
    )


def random_case(rows, size, seed=0, scale=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(size, (rows,), generator=generator)


def assert_stats_close(stats, expected, **tolerance):
    for field in fields(TokenStats):
        actual, wanted = getattr(stats, field.name), getattr(expected, field.name)
        torch.testing.assert_close(
            actual, wanted.to(actual.dtype), msg=lambda m, n=field.name: f"{n}: {m}", **tolerance
        )


def gradient(function, logits, labels, weights_NS, **kwargs):
    """Gradient of sum_n weights[n, 0] logprob_n + weights[n, 1] entropy_n with respect to the logits."""
    leaf = logits.clone().requires_grad_()
    stats = function(leaf, labels, **kwargs)
    (weights_NS[:, 0] * stats.logprob + weights_NS[:, 1] * stats.entropy).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("size", [1, 2, 7, 1009])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_values_equal_the_definitions(size, temperature, dtype, tolerance):
    logits, labels = random_case(13, size, dtype=dtype)
    stats = token_stats(logits, labels, temperature)
    assert stats.logprob.dtype == dtype
    assert_stats_close(stats, reference(logits, labels, temperature), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (-2.0, 3.0)], ids=["logprob", "entropy", "both"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_gradients_equal_float64_autograd(weights, temperature, dtype, tolerance):
    logits, labels = random_case(9, 101, seed=1, dtype=dtype)
    weights_NS = torch.tensor(weights, dtype=dtype) * torch.linspace(0.5, 2, 9, dtype=dtype)[:, None]
    expected = gradient(reference, logits.double(), labels, weights_NS.double(), temperature=temperature)
    actual = gradient(token_stats, logits, labels, weights_NS, temperature=temperature, chunk_rows=4)
    torch.testing.assert_close(actual, expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_entropy_alone_is_that_of_any_token_with_its_gradient():
    logits, labels = random_case(6, 11, seed=3, dtype=torch.float64)
    wanted = token_stats(logits, labels).entropy
    assert torch.equal(entropy(logits), wanted)
    assert torch.equal(entropy(logits.view(2, 3, 11)), wanted.view(2, 3))
    assert entropy(logits[0]).shape == ()
    expected = gradient(token_stats, logits, labels, torch.tensor([[0.0, 1.0]]).expand(6, 2))
    leaf = logits.clone().requires_grad_()
    entropy(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=0)


def test_gradients_equal_finite_differences():
    logits, labels = random_case(3, 5, seed=2, dtype=torch.float64)

    def logprob_and_entropy(z):
        stats = token_stats(z, labels, temperature=0.7)
        return stats.logprob, stats.entropy

    assert torch.autograd.gradcheck(logprob_and_entropy, logits.requires_grad_())


def test_second_derivatives_are_refused_not_wrong():
    logits, labels = random_case(2, 4, dtype=torch.float64)
    stats = token_stats(logits.requires_grad_(), labels)
    (first,) = torch.autograd.grad(stats.logprob.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.square().sum().backward()


def test_only_logprob_and_entropy_carry_gradient():
    logits, labels = random_case(2, 4)
    stats = token_stats(logits.requires_grad_(), labels)
    assert [getattr(stats, f.name).requires_grad for f in fields(stats)] == [True, True, False, False]
    assert not any(getattr(stats.detach(), f.name).requires_grad for f in fields(stats))


def test_statistics_are_picked_by_mask_by_rows_and_by_rows_and_columns():
    stats = TokenStats(*torch.arange(24.0).view(4, 2, 3))
    mask = torch.tensor([[True, False, True], [False, True, False]])
    for places in (mask, [1, 0], slice(1), ([1, 0], slice(2))):
        assert all(torch.equal(getattr(stats[places], f.name), getattr(stats, f.name)[places]) for f in fields(stats))


@given(st.integers(1, 6), st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
def test_statistics_stay_within_their_bounds(rows, size, seed, scale):
    logits, labels = random_case(rows, size, seed, scale)
    stats = token_stats(logits, labels)
    assert (stats.logprob <= 0).all()
    assert (stats.entropy >= 0).all()
    assert (stats.entropy <= torch.tensor(math.log(size))).all()
    assert (stats.sum_p2 <= 1 + 1e-6).all()
    assert (stats.sum_p2 >= 1 / size - 1e-6).all()
    assert (stats.sum_p2_logp <= 0).all()
    assert_stats_close(stats, reference(logits, labels), rtol=1e-5, atol=1e-5)


@given(st.integers(1, 9), st.integers(2, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_chunking_changes_nothing(rows, size, chunk_rows, seed):
    logits, labels = random_case(rows, size, seed)
    weights = torch.linspace(-1, 1, 2 * rows).view(rows, 2)
    whole = token_stats(logits, labels, 0.8, chunk_rows=rows)
    assert_stats_close(token_stats(logits, labels, 0.8, chunk_rows=chunk_rows), whole, rtol=1e-6, atol=1e-6)
    grads = [gradient(token_stats, logits, labels, weights, chunk_rows=n) for n in (rows, chunk_rows)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


def test_uniform_logits_never_exceed_ln_v():
    for size in range(1, 3000, 7):
        found = entropy(torch.full((1, size), 3.3))
        assert found <= torch.tensor(math.log(size))
        torch.testing.assert_close(found.item(), math.log(size), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_a_shift_of_the_logits_changes_neither_values_nor_gradients(shift):
    logits, labels = random_case(8, 53)
    logits = (logits * 16).round() / 16  # so that adding 1e4 is exact in float32
    weights = torch.linspace(-1, 1, 16).view(8, 2)
    assert_stats_close(token_stats(logits + shift, labels), reference(logits, labels), rtol=2e-6, atol=2e-6)
    expected = gradient(reference, logits.double(), labels, weights.double()).float()
    torch.testing.assert_close(gradient(token_stats, logits + shift, labels, weights), expected, rtol=1e-5, atol=1e-6)


def test_all_negative_logits_equal_the_definitions():
    logits, labels = random_case(5, 31)
    assert_stats_close(
        token_stats(-logits.abs() - 50, labels), reference(-logits.abs() - 50, labels), rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("peak", [1e4, 1e30, -1e4])
def test_one_hot_policy_has_zero_entropy_never_negative(peak):
    logits = torch.full((2, 11), 0.0 if peak > 0 else peak)
    logits[:, 3] = max(peak, 0.0)
    leaf = logits.requires_grad_()
    stats = token_stats(leaf, torch.tensor([3, 10]))
    assert stats.entropy.tolist() == [0.0, 0.0]
    assert stats.logprob[0] == 0
    assert stats.logprob[1].item() == pytest.approx(-abs(peak))
    assert stats.sum_p2.tolist() == [1.0, 1.0]
    assert stats.sum_p2_logp.tolist() == [0.0, 0.0]
    (stats.logprob + stats.entropy).sum().backward()
    expected = torch.zeros(2, 11)
    expected[1, 10], expected[1, 3] = 1, -1
    torch.testing.assert_close(leaf.grad, expected)


def test_masked_vocabulary_counts_as_absent():
    logits, labels = random_case(6, 12)
    weights = torch.linspace(-1, 1, 12).view(6, 2)
    masked = torch.cat([torch.full((6, 5), -INF), logits, torch.full((6, 1), -INF)], -1)
    assert_stats_close(token_stats(masked, labels + 5), reference(logits, labels), rtol=2e-6, atol=2e-6)
    expected = torch.nn.functional.pad(gradient(reference, logits.double(), labels, weights.double()), (5, 1)).float()
    actual = gradient(token_stats, masked, labels + 5, weights, chunk_rows=4)
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)


def test_a_row_without_a_finite_logit_gives_nan_in_that_row_alone():
    logits, labels = random_case(3, 4)
    logits[1] = -INF
    assert token_stats(logits, labels).entropy.isnan().tolist() == [False, True, False]
    assert token_stats(logits, labels).logprob.isnan().tolist() == [False, True, False]


def test_label_in_the_last_place_is_read():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).repeat(5, 1)
    logprob = token_stats(logits, torch.full((5,), 3), chunk_rows=2).logprob
    torch.testing.assert_close(logprob, torch.full((5,), math.log(0.4)))


def test_ignored_labels_give_logprob_zero_and_no_gradient_and_leave_the_rest():
    logits, labels = random_case(5, 7)
    ignoring = labels.clone()
    ignoring[[0, 3]] = IGNORED_LABEL
    all_rows, some = token_stats(logits, labels), token_stats(logits, ignoring)
    assert some.logprob[[0, 3]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(some.logprob[[1, 2, 4]], all_rows.logprob[[1, 2, 4]])
    torch.testing.assert_close(some.entropy, all_rows.entropy)
    weights = torch.tensor([1.0, 0.0]).repeat(5, 1)
    grads = gradient(token_stats, logits, ignoring, weights)
    assert not grads[[0, 3]].any()
    torch.testing.assert_close(grads[[1, 2, 4]], gradient(token_stats, logits, labels, weights)[[1, 2, 4]])


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_rows_give_no_values_and_an_empty_gradient(shape):
    logits = torch.zeros(*shape, 5, requires_grad=True)
    stats = token_stats(logits, torch.zeros(shape, dtype=torch.long))
    assert all(getattr(stats, field.name).shape == shape for field in fields(stats))
    (stats.logprob.sum() + stats.entropy.sum()).backward()
    assert logits.grad.shape == logits.shape


def test_non_contiguous_logits_equal_their_copy():
    for logits in (torch.randn(31, 6).t(), torch.randn(6, 62)[:, ::2], torch.randn(6, 2, 31)[:, 1]):
        assert not logits.is_contiguous() or logits.storage_offset()
        labels = torch.arange(12)[::2]
        weights = torch.linspace(-1, 1, 12).view(6, 2)
        assert_stats_close(token_stats(logits, labels), reference(logits, labels), rtol=2e-6, atol=2e-6)
        expected = gradient(reference, logits.double(), labels, weights.double()).float()
        leaf = logits.detach().requires_grad_()
        stats = token_stats(leaf, labels)
        (weights[:, 0] * stats.logprob + weights[:, 1] * stats.entropy).sum().backward()
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6)


def test_leading_shape_is_kept():
    logits, labels = random_case(6, 5)
    stats = token_stats(logits.view(2, 3, 5), labels.view(2, 3))
    assert stats.entropy.shape == (2, 3)
    assert_stats_close(stats.map(torch.flatten), token_stats(logits, labels), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_reduced_in_float32(dtype):
    logits, labels = random_case(6, 5003, dtype=dtype)
    stats = token_stats(logits, labels, 0.9)
    assert {getattr(stats, f.name).dtype for f in fields(stats)} == {torch.float32}
    assert_stats_close(stats, reference(logits, labels, 0.9), rtol=1e-5, atol=1e-6)
    weights = torch.linspace(-1, 1, 12).view(6, 2)
    expected = gradient(reference, logits.double(), labels, weights.double())
    actual = gradient(token_stats, logits, labels, weights)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


def test_logits_are_left_as_they_were():
    logits, labels = random_case(4, 9)
    before = logits.clone()
    gradient(token_stats, logits, labels, torch.ones(4, 2), temperature=0.5)
    token_stats(logits, labels, temperature=0.5)
    assert torch.equal(logits, before)


def test_forward_makes_and_keeps_no_second_copy_of_the_logits():
    logits = torch.randn(64, 1001, requires_grad=True)
    labels, row, kept = torch.arange(64), 1001 * 4, []
    remember = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with Storages() as storages, remember:
        stats = token_stats(logits, labels, temperature=0.8, chunk_rows=4)
    assert max(storages.made) == 4 * row  # of the 64 rows' bytes
    copies = [t for t in kept if t.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr()]
    assert sum(t.untyped_storage().nbytes() for t in copies) < row
    with Storages() as storages:
        (stats.logprob - stats.entropy).sum().backward()
    assert sorted(size for size in storages.made if size > 4 * row) == [64 * row]  # the gradient itself


def test_default_chunk_bounds_what_is_made_at_once():
    logits = torch.zeros(48, 200_000)
    with Storages() as storages:
        token_stats(logits, torch.zeros(48, dtype=torch.long))
    assert max(storages.made) <= (1 << 22) * 4


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        ([0, 1, 2], {}, "shape"),
        ([[0], [1]], {}, "shape"),
        ([0, 3], {}, "outside"),
        ([0, -1], {}, "outside"),
        ([-101, IGNORED_LABEL], {}, "outside"),
        ([0, 1], {"temperature": 0.0}, "temperature"),
        ([0, 1], {"temperature": -1.0}, "temperature"),
        ([0, 1], {"temperature": math.nan}, "temperature"),
        ([0, 1], {"chunk_rows": -1}, "chunk_rows"),
    ],
)
def test_bad_input_raises(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        token_stats(torch.zeros(2, 3), torch.tensor(labels), **arguments)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_a_shift_of_all_logits_costs_no_digits_at_any_temperature(temperature):
    logits, labels = random_case(64, 500)
    logits = (logits + 1e4).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    found, wanted = token_stats(logits, labels, temperature), reference(exact, labels, temperature)
    assert_stats_close(found, wanted, atol=2e-6, rtol=1e-6)
    (found.logprob + found.entropy).sum().backward()
    (wanted.logprob + wanted.entropy).sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)
