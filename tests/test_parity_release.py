"""The authors' released STEER, written here from its description, against ours: equal to 1e-6, or a named difference.

The release (a tree of verl 0.4.1) weighs the tokens of one micro-batch on one rank by
    m = |A / clamp(p_old, 1e-8, 1) p (1 - p)(ln p + H_old)|, p clamped to [1e-8, 1 - 1e-8], 0 where not finite,
with p of the current policy and H of the old one, and no clip indicator:
    exponential: exp(-k m) clamped to [lambda_min, 1], k = -ln(lambda_min) / max(max m, 0.02);
    linear: from [min m, max m] onto [high, low], (low + high) / 2 where m is constant.
Masked tokens get 0. The weight multiplies the per-token loss after the clip, before the reduction.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.common.errors import SteerError
from steer_core.common.settings import build
from steer_core.formulas.entropy_change import paper_entropy_change, released_entropy_change
from steer_core.formulas.loss import ClipRange, clipped_by, clipped_surrogate, importance_ratio, reduce_loss
from steer_core.formulas.token_stats import TokenStats, token_stats
from steer_core.formulas.weights import normaliser, steer_weights
from steer_core.interventions.base import Tokens
from steer_core.interventions.steer import Steer

FLOOR = 0.02
ROWS, WIDTH, VOCABULARY = 4, 8, 50
LOW, HIGH = 0.8, 1.2  # of the linear map

seeds = st.integers(0, 10**6)
lambda_mins = st.floats(0.05, 0.99)


def released_metric(advantages, new: TokenStats, old: TokenStats):
    """m of the description, any shape."""
    p, p_old = new.logprob.exp().clamp(1e-8, 1 - 1e-8), old.logprob.exp().clamp(1e-8, 1)
    m = (advantages / p_old * p * (1 - p) * (p.log() + old.entropy)).abs()
    return torch.where(m.isfinite(), m, torch.zeros_like(m))


def released_exponential(m, mask, lambda_min):
    """The exponential weights of a micro-batch, (B, T)."""
    if not mask.any():
        return torch.zeros_like(m)
    k = -math.log(lambda_min) / max(m[mask].max().item(), FLOOR)
    return torch.where(mask, (-k * m).exp().clamp(lambda_min, 1), torch.zeros_like(m))


def released_linear(m, mask, low, high):
    """The linear weights of a micro-batch, (B, T)."""
    smallest, largest = m[mask].min(), m[mask].max()
    share = (m - smallest) / (largest - smallest)
    weights = high - share * (high - low) if largest > smallest else torch.full_like(m, (low + high) / 2)
    return torch.where(mask, weights, torch.zeros_like(m))


class Sample:
    """One micro-batch of softmax states, (B, T) in float64: ragged, new and old policies apart; `size` scales A."""

    def __init__(self, seed: int, size: float = 1.0):
        source = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=source, dtype=torch.float64)  # noqa: E731
        logits = 2 * draw(ROWS, WIDTH, VOCABULARY)
        labels = torch.distributions.Categorical(logits=logits).sample()
        self.new = token_stats(logits, labels)
        self.old = token_stats(logits + 0.5 * draw(ROWS, WIDTH, VOCABULARY), labels)
        self.advantages = size * draw(ROWS, 1).expand(-1, WIDTH).clone()
        lengths = torch.randint(1, WIDTH + 1, (ROWS,), generator=source)
        self.mask = torch.arange(WIDTH) < lengths[:, None]

    @property
    def metric(self):
        return released_metric(self.advantages, self.new, self.old)

    def tokens(self, rows=slice(None), clip=ClipRange()) -> Tokens:  # noqa: B008
        """The response tokens of some rows as an intervention sees them."""
        new, old = (stats.map(lambda x: x[rows][self.mask[rows]]) for stats in (self.new, self.old))
        advantages = self.advantages[rows][self.mask[rows]]
        return Tokens(new, old, advantages, clip, torch.rand_like(advantages), {})


def released(**settings) -> Steer:
    """The settings that name the release."""
    return Steer(form="released", scope="micro", smallest_normaliser=FLOOR, **settings)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@given(seeds)
def test_the_released_form_is_the_releases_metric(seed):
    sample = Sample(seed)
    ours = released_entropy_change(sample.new, sample.old, sample.advantages, ClipRange())
    assert_close(ours.abs(), sample.metric)


@given(seeds, lambda_mins, st.sampled_from([1e-3, 1.0, 30.0]))
def test_exponential_weights_are_the_releases(seed, lambda_min, size):
    sample = Sample(seed, size)
    theirs = released_exponential(sample.metric, sample.mask, lambda_min)[sample.mask]
    assert_close(released(lambda_min=lambda_min).loss_terms(sample.tokens()).weights, theirs)


def test_below_the_floor_no_token_gets_lambda_min_in_either():
    sample = Sample(0, size=1e-4)
    assert sample.metric[sample.mask].max() < FLOOR / 10
    weights = released(lambda_min=0.5).loss_terms(sample.tokens()).weights
    assert_close(weights, released_exponential(sample.metric, sample.mask, 0.5)[sample.mask])
    assert weights.min() > 0.9
    unfloored = Steer(form="released", scope="micro", lambda_min=0.5).loss_terms(sample.tokens()).weights
    assert unfloored.min() == 0.5


def test_tokens_that_the_clip_stops_are_weighed_too():
    sample, clip = Sample(1), ClipRange(0.1, 0.1, 1.5)
    tokens = sample.tokens(clip=clip)
    stopped = sum(clipped_by(importance_ratio(tokens.new.logprob, tokens.old.logprob), tokens.advantages, clip)) > 0
    assert stopped.any()
    weights = released().loss_terms(tokens).weights
    assert_close(weights, released_exponential(sample.metric, sample.mask, 0.7)[sample.mask])
    assert (weights[stopped] < 1).all()
    assert not paper_entropy_change(tokens.new, tokens.old, tokens.advantages, clip)[stopped].any()


def test_the_entropy_is_the_old_policys():
    sample = Sample(2)
    tokens = sample.tokens()
    mixed = TokenStats(tokens.old.logprob, tokens.new.entropy, tokens.old.sum_p2, tokens.old.sum_p2_logp)
    ours = released_entropy_change(tokens.new, tokens.old, tokens.advantages, ClipRange())
    assert (ours - released_entropy_change(tokens.new, mixed, tokens.advantages, ClipRange())).abs().max() > 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["advantages", "entropy", "logprob"])
def test_a_metric_that_is_not_finite_is_0_and_its_token_keeps_weight_1(bad, where):
    sample = Sample(3)
    if where == "advantages":
        sample.advantages[0, 0] = bad
    else:
        getattr(sample.old if where == "entropy" else sample.new, where)[0, 0] = bad
    metric = sample.metric
    if where == "logprob" and bad == math.inf:  # p is clamped below 1, and the metric stays finite
        assert metric[0, 0] > 0
    else:
        assert metric[0, 0] == 0
    tokens = sample.tokens()
    ours = released_entropy_change(tokens.new, tokens.old, tokens.advantages, ClipRange())
    assert_close(ours.abs(), metric[sample.mask])
    if where != "advantages":
        weights = released().loss_terms(tokens).weights
        assert_close(weights, released_exponential(metric, sample.mask, 0.7)[sample.mask])


def test_the_maximum_is_a_micro_batchs_so_a_split_moves_the_weights_of_the_release_and_of_scope_micro():
    sample = Sample(4)
    whole, parts = released_exponential(sample.metric, sample.mask, 0.5), []
    for rows in (slice(0, 2), slice(2, 4)):
        parts.append(released_exponential(sample.metric[rows], sample.mask[rows], 0.5)[sample.mask[rows]])
        assert_close(released(lambda_min=0.5).loss_terms(sample.tokens(rows)).weights, parts[-1])
    assert (torch.cat(parts) - whole[sample.mask]).abs().max() > 0.01


@given(seeds)
def test_weights_multiply_the_clipped_loss_before_the_reduction(seed):
    sample, clip = Sample(seed), ClipRange()
    surrogate = clipped_surrogate(sample.new.logprob, sample.old.logprob, sample.advantages, clip)
    theirs = (released_exponential(sample.metric, sample.mask, 0.7) * surrogate).sum() / sample.mask.sum()
    weights = torch.ones_like(surrogate).masked_scatter(sample.mask, released().loss_terms(sample.tokens()).weights)
    ours = reduce_loss(weights * surrogate, sample.mask, "token-mean", int(sample.mask.sum()))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)


@given(seeds)
def test_linear_weights_are_the_releases_where_the_smallest_change_gets_lambda_max(seed):
    sample = Sample(seed)
    m, mask = sample.metric, sample.mask
    scale, smallest = normaliser(m, mask), m[mask].min()
    ours = steer_weights(m, mask, LOW, scale, "linear", HIGH, smallest)
    assert_close(ours[mask], released_linear(m, mask, LOW, HIGH)[mask])


# ---- differences


def test_the_method_steer_maps_linearly_from_0_and_the_release_from_the_smallest_metric():
    sample = Sample(5)
    m = sample.metric[sample.mask]
    weights = released(map="linear", lambda_min=LOW, lambda_max=HIGH).loss_terms(sample.tokens()).weights
    theirs = released_linear(sample.metric, sample.mask, LOW, HIGH)[sample.mask]
    assert_close(weights, HIGH - m / m.max() * (HIGH - LOW))
    assert_close(theirs, HIGH - (m - m.min()) / (m.max() - m.min()) * (HIGH - LOW))
    assert theirs.max() == HIGH > weights.max()
    assert weights.min() == theirs.min() == LOW


@pytest.mark.parametrize(("constant", "ours"), [(0.5, LOW), (0.0, HIGH)])
def test_a_constant_metric_gets_the_middle_in_the_release_and_an_end_in_ours(constant, ours):
    m, mask = torch.full((2, 3), constant), torch.ones(2, 3, dtype=torch.bool)
    assert (released_linear(m, mask, LOW, HIGH) == (LOW + HIGH) / 2).all()
    for smallest in (0.0, m.min()):
        weights = steer_weights(m, mask, LOW, normaliser(m, mask), "linear", HIGH, smallest)
        assert_close(weights, torch.full_like(m, ours))


def test_the_exponential_map_ignores_the_upper_bound_in_the_release_and_starts_from_it_in_ours():
    sample = Sample(6)
    theirs = released_exponential(sample.metric, sample.mask, LOW)[sample.mask]
    ours = released(lambda_min=LOW, lambda_max=HIGH).loss_terms(sample.tokens()).weights
    assert theirs.max() <= 1 < ours.max() <= HIGH
    assert_close(released(lambda_min=LOW).loss_terms(sample.tokens()).weights, theirs)


def test_masked_tokens_get_0_in_the_release_and_1_in_ours_and_neither_reaches_the_loss():
    sample = Sample(7)
    m, mask = sample.metric, sample.mask
    theirs = released_exponential(m, mask, 0.7)
    ours = steer_weights(m, mask, 0.7, normaliser(m, mask).clamp(min=FLOOR))
    assert not theirs[~mask].any()
    assert (ours[~mask] == 1).all()
    losses = [reduce_loss(weights, mask, "token-mean", int(mask.sum())) for weights in (ours, theirs)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_lambda_min_0_is_nan_in_the_release_and_refused_in_ours():
    k = math.inf  # -ln 0
    assert torch.tensor(0.0).mul(-k).exp().isnan()
    with pytest.raises(SteerError, match="lambda_min: 0 is not allowed"):
        build(Steer, {"lambda_min": 0}, "intervention")


def test_the_two_forms_damp_different_tokens():
    sample = Sample(8)
    tokens = sample.tokens()
    forms = (paper_entropy_change, released_entropy_change)
    most = [form(tokens.new, tokens.old, tokens.advantages, tokens.clip).abs().argmax() for form in forms]
    paper, release = tokens.new.logprob.exp()[torch.stack(most)].tolist()
    assert release < paper


def test_the_papers_form_is_the_releases_times_p_where_old_and_new_agree_and_nothing_is_clipped():
    sample = Sample(9)
    old = sample.new
    paper = paper_entropy_change(sample.new, old, sample.advantages, ClipRange())
    release = released_entropy_change(sample.new, old, sample.advantages, ClipRange())
    assert_close(paper, release * sample.new.logprob.exp())
