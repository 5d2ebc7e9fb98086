"""Entropy-change estimates against the recomputed entropy of a tabular policy that really took the step."""

import itertools
import math
from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.common.errors import SteerError
from steer_core.formulas.entropy_change import (
    ENTROPY_CHANGE,
    QUADRANTS,
    covariance_entropy_change,
    entropy_change_form,
    exact_entropy_change,
    paper_entropy_change,
    quadrants,
    released_entropy_change,
    surrogate_slope,
)
from steer_core.formulas.loss import ClipRange, clipped_surrogate
from steer_core.formulas.token_stats import TokenStats, token_stats
from steer_core.interventions.steer import Steer

CLIP = ClipRange()
ETA = 1e-5


def entropy_of(logits):
    """H of softmax(logits), float64, from its definition alone."""
    p = torch.softmax(logits, -1)
    return -(p * p.log()).sum(-1)


def states(size, count, seed=0, spread=2.0):
    """`count` states of one policy over `size` tokens, each with its own sampled token: (logits, labels)."""
    generator = torch.Generator().manual_seed(seed)
    row = spread * torch.randn(size, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(row, -1), count, replacement=True, generator=generator)
    return row.expand(count, size).clone(), labels


def stats_with(logprob, entropy):
    """Statistics with the given ln p_a and H; the squared sums are those of no policy in particular."""
    logprob, entropy = torch.broadcast_tensors(
        torch.as_tensor(logprob, dtype=torch.float64), torch.as_tensor(entropy, dtype=torch.float64)
    )
    return TokenStats(logprob, entropy, torch.full_like(logprob, 0.3), torch.full_like(logprob, -0.2))


def batch(size, count=48, seed=0, log_ratio=0.4):
    """(logits, labels, new, old, advantages): both signs of A, some tokens clipped."""
    generator = torch.Generator().manual_seed(seed + 1)
    logits, labels = states(size, count, seed)
    new = token_stats(logits, labels)
    noise = log_ratio * torch.randn(count, generator=generator, dtype=torch.float64)
    old = TokenStats(new.logprob - noise, new.entropy, new.sum_p2, new.sum_p2_logp)
    advantages = 2 * torch.randn(count, generator=generator, dtype=torch.float64)
    return logits, labels, new, old, advantages


def surrogate_gradient(logits, labels, old, advantages, clip=CLIP):
    """Gradient of the summed surrogate with respect to the logits: each row is a state of its own."""
    leaf = logits.clone().requires_grad_()
    clipped_surrogate(token_stats(leaf, labels).logprob, old.logprob, advantages, clip).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("size", [2, 3, 17, 300, 5000])
def test_entropy_gradient_is_minus_p_u_by_central_differences(size):
    logits, labels = states(size, 1, seed=3)
    leaf = logits.clone().requires_grad_()
    token_stats(leaf, labels).entropy.sum().backward()
    places = torch.arange(size)[:: max(1, size // 20)]
    step = 1e-5 * torch.nn.functional.one_hot(places, size)
    measured = (entropy_of(logits + step) - entropy_of(logits - step)) / 2e-5
    torch.testing.assert_close(leaf.grad[0, places], measured, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3, 17, 300, 5000])
def test_exact_form_is_the_change_of_a_tabular_policy_that_took_the_step(size):
    logits, labels, new, old, advantages = batch(size, seed=size)
    stepped = logits - ETA * surrogate_gradient(logits, labels, old, advantages)
    measured = (entropy_of(stepped) - entropy_of(logits)) / ETA
    predicted = exact_entropy_change(new, old, advantages, CLIP)
    assert 4 < (predicted == 0).sum() < 24  # some tokens are clipped, most are not
    torch.testing.assert_close(predicted, measured, rtol=1e-4, atol=1e-4 * measured.abs().mean().item())


@pytest.mark.parametrize("size", [2, 3, 17, 300, 5000])
def test_paper_form_is_the_change_when_the_sampled_logit_alone_moves(size):
    logits, labels, new, old, advantages = batch(size, seed=size)
    sampled = torch.nn.functional.one_hot(labels, size)
    stepped = logits - ETA * surrogate_gradient(logits, labels, old, advantages) * sampled
    measured = (entropy_of(stepped) - entropy_of(logits)) / ETA
    predicted = paper_entropy_change(new, old, advantages, CLIP)
    torch.testing.assert_close(predicted, measured, rtol=1e-4, atol=1e-4 * measured.abs().mean().item())


@given(st.integers(2, 200), st.integers(0, 10**6), st.floats(0.1, 5), st.floats(-3, 3).filter(bool))
def test_mean_of_the_exact_form_under_the_policy_is_zero(size, seed, spread, advantage):
    row, _ = states(size, 1, seed, spread)
    every = token_stats(row.expand(size, size), torch.arange(size))
    change = exact_entropy_change(every, every, torch.full((size,), advantage, dtype=torch.float64), CLIP)
    p = every.logprob.exp()
    assert abs((p * change).sum()) <= 1e-12 * abs(advantage)


def test_paper_form_differs_from_the_exact_form_by_the_dropped_sum():
    logits, labels, new, old, advantages = batch(5, log_ratio=0.0)
    p = torch.softmax(logits, -1)
    pull = p.square() * (p.log() + entropy_of(logits)[:, None])  # p_j^2 u_j
    dropped = pull.sum(-1) - pull.gather(-1, labels[:, None]).squeeze(-1)
    difference = exact_entropy_change(new, old, advantages, CLIP) - paper_entropy_change(new, old, advantages, CLIP)
    torch.testing.assert_close(difference, advantages * dropped)
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("form", [paper_entropy_change, exact_entropy_change])
@pytest.mark.parametrize(
    "clip", [CLIP, ClipRange(0.2, 0.28, None), ClipRange(0.99, 5.0, 1.5), ClipRange(0.0, 0.0, 1.1)]
)
def test_change_is_zero_exactly_where_the_surrogate_has_no_gradient(form, clip):
    ratios = [1e-4, 0.005, 0.5, 0.79, 0.81, 0.999, 1.001, 1.27, 1.29, 1.4, 1.6, 3.0, 5.9, 6.1, 9.9, 10.1, 1e4]
    grid = torch.tensor(list(itertools.product(ratios, [-2.0, -0.5, 0.0, 0.5, 2.0])), dtype=torch.float64)
    logits, labels = states(6, len(grid), seed=5)
    new = token_stats(logits, labels)
    old = stats_with(new.logprob - grid[:, 0].log(), new.entropy)
    passes = surrogate_gradient(logits, labels, old, grid[:, 1], clip).any(-1)
    change = form(new, old, grid[:, 1], clip)
    assert torch.equal(change != 0, passes)
    wanted = {  # the clips of theory, by name, so that surrogate and form cannot both lose one
        (r, a): a != 0
        and not (a > 0 and r > 1 + clip.high)
        and not (a < 0 and r < 1 - clip.low)
        and not (a < 0 and clip.dual is not None and r > clip.dual)
        for r, a in grid.tolist()
    }
    assert dict(zip(map(tuple, grid.tolist()), passes.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("form", [paper_entropy_change, exact_entropy_change])
@pytest.mark.parametrize(("log_ratio", "advantage"), [(25.0, -1.0), (-25.0, 1.0)])
def test_change_is_zero_where_the_log_ratio_bound_stops_the_gradient(form, log_ratio, advantage):
    logits, labels = states(6, 1, seed=5)
    new = token_stats(logits, labels)
    old = stats_with(new.logprob - log_ratio, new.entropy)
    advantages, clip = torch.tensor([advantage], dtype=torch.float64), ClipRange(dual=None)
    assert not surrogate_gradient(logits, labels, old, advantages, clip).any()
    assert form(new, old, advantages, clip).item() == 0


@pytest.mark.parametrize("form", [paper_entropy_change, exact_entropy_change])
@given(st.floats(0.81, 1.27), st.floats(-4, 4))
def test_change_is_linear_in_the_ratio_and_in_the_advantage(form, ratio, advantage):
    logits, labels = states(7, 20, seed=2)
    new = token_stats(logits, labels)
    ones = torch.ones(20, dtype=torch.float64)
    unit = form(new, new, ones, CLIP)
    assert unit.abs().min() > 1e-4
    old = stats_with(new.logprob - math.log(ratio), 0.123)  # the old policy enters through the ratio alone
    torch.testing.assert_close(form(new, old, advantage * ones, CLIP), ratio * advantage * unit)


@given(st.floats(-12, -1e-3), st.floats(-12, -1e-3), st.floats(0.01, 6), st.floats(-3, 3))
def test_released_form_is_advantage_over_old_probability_without_clip(logp, old_logp, old_entropy, advantage):
    new, old = stats_with([logp], 99.0), stats_with([old_logp], old_entropy)
    actual = released_entropy_change(new, old, torch.tensor([advantage], dtype=torch.float64), CLIP).item()
    p, p_old = math.exp(logp), math.exp(old_logp)
    assert actual == pytest.approx(-(advantage / p_old) * p * (1 - p) * (logp + old_entropy), rel=1e-9, abs=1e-12)


def test_released_form_is_the_paper_form_over_the_probability_on_policy():
    _, _, new, _, advantages = batch(9)
    paper = paper_entropy_change(new, new, advantages, CLIP)
    torch.testing.assert_close(released_entropy_change(new, new, advantages, CLIP), paper / new.logprob.exp())


@pytest.mark.parametrize(
    ("logp", "old_logp", "p", "p_old"),
    [
        (0.0, -1.0, 1 - 1e-8, math.exp(-1)),
        (-50.0, -1.0, 1e-8, math.exp(-1)),
        (-1.0, -50.0, math.exp(-1), 1e-8),
        (-1.0, 0.5, math.exp(-1), 1.0),
    ],
    ids=["p below 1", "p above 0", "old p above 0", "old p at most 1"],
)
def test_released_form_clamps_probabilities(logp, old_logp, p, p_old):
    actual = released_entropy_change(
        stats_with([logp], 1.0), stats_with([old_logp], 2.5), torch.tensor([1.0], dtype=torch.float64), CLIP
    )
    assert actual.item() == pytest.approx(-p * (1 - p) * (math.log(p) + 2.5) / p_old, rel=1e-6)


def test_released_form_turns_non_finite_values_into_zero():
    new, old = stats_with([-1.0, -1.0, math.nan, -1.0], 1.0), stats_with(-1.0, [1.0, math.inf, 1.0, 2.0])
    advantages = torch.tensor([math.inf, 1.0, 1.0, 1.0], dtype=torch.float64)
    change = released_entropy_change(new, old, advantages, CLIP)
    assert change[:3].tolist() == [0.0, 0.0, 0.0]
    assert change[3] != 0


@given(st.floats(-8, -0.01), st.floats(0.05, 6), st.sampled_from([-1.5, 1.5]))
def test_sign_follows_from_advantage_and_likelihood(logp, entropy, advantage):
    new, advantages = stats_with([logp], entropy), torch.tensor([advantage], dtype=torch.float64)
    change = paper_entropy_change(new, new, advantages, CLIP).sign().item()
    assert change == -math.copysign(1, advantage) * (logp > -entropy) + math.copysign(1, advantage) * (logp < -entropy)


def test_quadrants_by_hand():
    new = stats_with([-0.5, -2.0, -0.5, -2.0, -0.5, -2.0], 1.0)
    masks = quadrants(new, torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0]))
    assert tuple(masks) == QUADRANTS
    assert {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()} == {
        "positive_likely": [0],
        "positive_unlikely": [1],
        "negative_likely": [2],
        "negative_unlikely": [3],
    }


def test_quadrants_lower_and_raise_entropy_as_named():
    _, _, new, _, advantages = batch(30, count=200)
    change = paper_entropy_change(new, new, advantages, CLIP)
    masks = quadrants(new, advantages)
    assert all(mask.sum() > 5 for mask in masks.values())
    assert (change[masks["positive_likely"] | masks["negative_unlikely"]] < 0).all()
    assert (change[masks["positive_unlikely"] | masks["negative_likely"]] > 0).all()


@given(st.integers(0, 10**6))
def test_quadrants_partition_the_tokens_with_an_advantage(seed):
    _, _, new, _, advantages = batch(8, count=40, seed=seed)
    advantages = advantages.round()  # many exact zeros
    counts = torch.stack(list(quadrants(new, advantages).values())).sum(0)
    assert torch.equal(counts, (advantages != 0).long())


@pytest.mark.parametrize("form", ENTROPY_CHANGE.values(), ids=ENTROPY_CHANGE)
def test_no_form_carries_gradient(form):
    logits, labels, _, old, advantages = batch(6)
    assert not form(token_stats(logits.requires_grad_(), labels), old, advantages, CLIP).requires_grad


@pytest.mark.parametrize("form", ENTROPY_CHANGE.values(), ids=ENTROPY_CHANGE)
def test_no_advantage_means_no_change(form):
    _, _, new, old, advantages = batch(6)
    assert not form(new, old, torch.zeros_like(advantages), CLIP).any()


def test_every_configurable_form_exists():
    assert set(get_args(get_type_hints(Steer)["form"])) == set(ENTROPY_CHANGE)


def test_covariance_form_by_hand():
    new, advantages = stats_with([-1.0, -2.0, -6.0], 99.0), torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    old = stats_with([5.0, 6.0, 7.0], 98.0)  # neither the old policy nor the clip enters
    change = covariance_entropy_change(new, old, advantages, ClipRange(0.0, 0.0, 1.0))
    torch.testing.assert_close(change, torch.tensor([-4.0, 1.0, -3.0], dtype=torch.float64))


@given(st.integers(2, 60), st.integers(0, 10**6))
def test_mean_of_the_covariance_form_is_minus_the_population_covariance(count, seed):
    _, _, new, old, advantages = batch(9, count=count, seed=seed)
    mean = covariance_entropy_change(new, old, advantages, CLIP).mean()
    both = torch.stack([new.logprob, advantages])
    torch.testing.assert_close(mean, -torch.cov(both, correction=0)[0, 1], rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(-50, 50))
def test_covariance_form_ignores_what_all_tokens_share(seed, lift, bonus):
    _, _, new, old, advantages = batch(9, seed=seed)
    shifted = TokenStats(new.logprob + lift, new.entropy, new.sum_p2, new.sum_p2_logp)
    change = covariance_entropy_change(new, old, advantages, CLIP)
    torch.testing.assert_close(
        covariance_entropy_change(shifted, old, advantages + bonus, CLIP), change, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("size", [3, 20, 300])
def test_covariance_under_the_policy_is_the_change_of_a_natural_gradient_step(size):
    """Natural policy gradient adds eta A_j to logit j: dH = -eta Cov_p(ln p, A) (arXiv 2505.22617, theorem 1)."""
    generator = torch.Generator().manual_seed(size)
    row, _ = states(size, 1, seed=size)
    advantages = torch.randn(size, generator=generator, dtype=torch.float64)
    step = 1e-7
    measured = (entropy_of(row[0] + step * advantages) - entropy_of(row[0])) / step
    draws = torch.multinomial(row[0].softmax(-1), 400_000, replacement=True, generator=generator)
    new = token_stats(row, torch.zeros(1, dtype=torch.long)).map(lambda x: x.expand(len(draws)))
    new = TokenStats(row[0].log_softmax(-1)[draws], new.entropy, new.sum_p2, new.sum_p2_logp)
    predicted = covariance_entropy_change(new, new, advantages[draws], CLIP)
    assert abs(predicted.mean() - measured) < 5 * predicted.std() / math.sqrt(len(draws))


@pytest.mark.parametrize(
    "clip", [CLIP, ClipRange(0.2, 0.28, None), ClipRange(0.99, 5.0, 1.5), ClipRange(0.0, 0.0, 1.1)]
)
@given(st.integers(0, 10**6), st.floats(0.05, 4))
def test_surrogate_slope_is_minus_the_derivative_of_the_surrogate_by_the_log_prob(clip, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    logp, noise, advantages = torch.randn(3, 64, generator=generator, dtype=torch.float64)
    logp = -logp.abs() - 0.01
    noise[::16] *= 30  # some beyond the bound of the log-ratio
    new, old = stats_with(logp, 0.7), stats_with(logp - spread * noise, 0.7)
    leaf = new.logprob.clone().requires_grad_()
    clipped_surrogate(leaf, old.logprob, advantages, clip).sum().backward()
    torch.testing.assert_close(surrogate_slope(new, old, advantages, clip), -leaf.grad, rtol=1e-12, atol=0)


def test_surrogate_slope_by_hand():
    ratios = torch.tensor([1.0, 1.2, 1.3, 1.3, 0.7, 0.7, 9.0, 11.0, 1e9, 1e9], dtype=torch.float64)
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, 2.0, -1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    new = stats_with(torch.zeros(10), 1.0)
    old = stats_with(-ratios.log(), 1.0)
    wanted = [2.0, 2.4, 0.0, -2.6, 0.0, 1.4, -9.0, 0.0, 0.0, 0.0]
    assert surrogate_slope(new, old, advantages, CLIP).tolist() == pytest.approx(wanted)
    wanted[7] = -11.0  # without the dual clip it passes; past e^20 nothing does
    assert surrogate_slope(new, old, advantages, ClipRange(dual=None)).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("form", ENTROPY_CHANGE.values(), ids=ENTROPY_CHANGE)
def test_every_form_is_positive_where_the_update_raises_entropy(form):
    """Tokens 0.7, 0.1 and eight of 0.025; rewarding the second and punishing the first flattens the policy."""
    row = torch.tensor([0.7, 0.1, *[0.025] * 8], dtype=torch.float64).log()
    logits, labels = row.expand(2, 10), torch.tensor([0, 1])
    new, advantages = token_stats(logits, labels), torch.tensor([-1.0, 1.0], dtype=torch.float64)
    stepped = logits - ETA * surrogate_gradient(logits, labels, new, advantages)
    assert (entropy_of(stepped) > entropy_of(logits)).all()
    assert (form(new, new, advantages, CLIP) > 0).all()
    assert (form(new, new, -advantages, CLIP) < 0).all()


@pytest.mark.parametrize("form", ENTROPY_CHANGE.values(), ids=ENTROPY_CHANGE)
def test_every_form_gives_the_same_values_whatever_the_shape_of_its_tokens(form):
    _, _, new, old, advantages = batch(9, count=24)
    flat = form(new, old, advantages, CLIP)
    assert flat.shape == (24,)
    square = form(*(x.map(lambda v: v.view(4, 6)) for x in (new, old)), advantages.view(4, 6), CLIP)
    assert torch.equal(square, flat.view(4, 6))


@pytest.mark.parametrize("form", [paper_entropy_change, exact_entropy_change, released_entropy_change])
def test_forms_of_one_state_do_not_look_at_other_tokens_and_the_covariance_form_does(form):
    _, _, new, old, advantages = batch(9, count=24)
    some = slice(3, 11)
    part = [x.map(lambda v: v[some]) for x in (new, old)]
    assert torch.equal(form(*part, advantages[some], CLIP), form(new, old, advantages, CLIP)[some])
    whole = covariance_entropy_change(new, old, advantages, CLIP)[some]
    assert not torch.allclose(covariance_entropy_change(*part, advantages[some], CLIP), whole)


@pytest.mark.parametrize("name", list(ENTROPY_CHANGE))
def test_a_form_is_found_by_its_name(name):
    assert entropy_change_form(name) is ENTROPY_CHANGE[name]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("exat", "did you mean 'exact'"),
        ("covar", "did you mean 'covariance'"),
        ("zzz", "known: paper, released, exact"),
    ],
)
def test_an_unknown_form_is_refused_with_the_nearest_name(name, hint):
    with pytest.raises(SteerError, match=f"'{name}' is no estimate.*{hint}"):
        entropy_change_form(name)


def test_a_token_of_a_uniform_state_is_unlikely_for_its_log_prob_is_not_above_minus_the_entropy():
    uniform = TokenStats(*(torch.tensor([value], dtype=torch.float64) for value in (-1.0, 1.0, 0.5, -0.5)))
    masks = quadrants(uniform, torch.ones(1, dtype=torch.float64))
    assert [name for name, mask in masks.items() if mask.any()] == ["positive_unlikely"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_on_a_logit_of_minus_infinity_has_the_limit_of_ever_rarer_tokens(dtype):
    def changes(logit):
        logits = torch.tensor([[0.3, 1.1, logit, 2.0], [0.3, 1.1, -0.4, 2.0], [1.0, 0.0, 0.5, 0.2]], dtype=dtype)
        stats, advantages = token_stats(logits, torch.tensor([2, 1, 0])), torch.tensor([1.3, -0.7, 0.4], dtype=dtype)
        return {name: form(stats, stats, advantages, CLIP) for name, form in ENTROPY_CHANGE.items()}, stats, advantages

    found, stats, advantages = changes(-math.inf)
    limit = changes(-300.0)[0]
    assert stats.logprob[0] == -math.inf
    for name in ("paper", "exact", "released"):
        torch.testing.assert_close(found[name], limit[name])
    assert found["paper"][0] == 0  # p ln p is 0 where p is 0
    assert found["exact"][0] == advantages[0] * (stats.sum_p2_logp + stats.entropy * stats.sum_p2)[0]
    others = covariance_entropy_change(stats[1:], stats[1:], advantages[1:], CLIP)
    torch.testing.assert_close(found["covariance"], torch.cat([torch.zeros(1, dtype=dtype), others]))
