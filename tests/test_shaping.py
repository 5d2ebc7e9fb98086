"""KL to a reference and punishment of long responses, on hand-made numbers."""

import math

import pytest
import torch

from steer_core.formulas.shaping import KL_ESTIMATORS, kl_estimate, overlong_punishment


@pytest.mark.parametrize(("estimator", "value"), [("k1", -1.0), ("k2", 0.5), ("k3", math.e - 2)])
def test_an_estimate_at_a_token_that_the_reference_has_e_times_as_likely(estimator, value):
    found = kl_estimate(torch.tensor([-2.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64), estimator)
    torch.testing.assert_close(found, torch.tensor([value], dtype=torch.float64))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_the_kl_in_the_mean_over_the_policy(estimator):
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mean = (p * kl_estimate(p.log(), q.log(), estimator)).sum()
    torch.testing.assert_close(mean, (p * (p / q).log()).sum())


def test_the_gradient_of_k2_is_that_of_the_kl_in_the_mean_and_k1_has_none():
    logits = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    p = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)
    found = {}
    for estimator in ("k1", "k2"):
        sampled = (p.exp().detach() * kl_estimate(p, q, estimator)).sum()
        (found[estimator],) = torch.autograd.grad(sampled, logits, retain_graph=True)
    torch.testing.assert_close(found["k2"], exact)
    torch.testing.assert_close(found["k1"], torch.zeros(3, dtype=torch.float64))


def test_equal_policies_have_no_kl_and_far_ones_a_finite_one():
    for estimator in KL_ESTIMATORS:
        assert not kl_estimate(torch.tensor([-3.0]), torch.tensor([-3.0]), estimator).any()
        assert kl_estimate(torch.tensor([-500.0]), torch.tensor([-1.0]), estimator).isfinite().all()
    with pytest.raises(ValueError, match="'k4' is unknown"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_a_token_that_the_policy_has_all_but_lost_is_never_pushed_further_from_the_reference():
    logprob = torch.tensor([-30.0, -10.0, -1.0], dtype=torch.float64, requires_grad=True)
    value = kl_estimate(logprob, torch.tensor([-1.0, -1.0, -9.0], dtype=torch.float64), "k3")
    (slope,) = torch.autograd.grad(value.sum(), logprob)
    assert slope[0] == 0  # beyond the bound
    assert float(value[0]) == pytest.approx(math.expm1(20) - 20)
    assert slope[1] == pytest.approx(1 - math.exp(9))
    assert slope[2] == pytest.approx(1 - math.exp(-8))


def test_the_punishment_falls_from_0_to_minus_1_over_the_buffer():
    lengths = torch.tensor([1, 12, 13, 14, 16, 20])
    torch.testing.assert_close(overlong_punishment(lengths, 16, 4), torch.tensor([0, 0, -0.25, -0.5, -1, -1]))


@pytest.mark.parametrize("buffer", [0, 17])
def test_a_buffer_that_does_not_fit_is_refused(buffer):
    with pytest.raises(ValueError, match=f"buffer: {buffer} is not within 1 and the longest response"):
        overlong_punishment(torch.tensor([3]), 16, buffer)
