"""What each intervention makes of hand-made tokens: every rule by numbers worked out here."""

import math
from dataclasses import replace

import pytest
import torch
from hand import stats_of, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from steer_core.formulas.loss import ClipRange
from steer_core.interventions.adaptive_entropy_loss import AdaptiveEntropyLoss
from steer_core.interventions.base import Intervention
from steer_core.interventions.clip_higher import ClipHigher
from steer_core.interventions.covariance import ClipCov, KLCov, covariance
from steer_core.interventions.entropic import EntroPIC
from steer_core.interventions.entropy_advantage import EntropyAdvantage
from steer_core.interventions.entropy_loss import EntropyLoss
from steer_core.interventions.fork_tokens import ForkTokens
from steer_core.interventions.quadrants import Quadrants
from steer_core.interventions.stare import Stare
from steer_core.interventions.steer import Steer
from steer_core.interventions.steer_control import SteerControl
from steer_core.interventions.w_reinforce import WReinforce

some = st.lists(
    st.tuples(st.floats(-8, -0.01), st.floats(0, 3), st.floats(-3, 3), st.floats(0, 1, exclude_max=True)),
    min_size=1,
    max_size=30,
)


def drawn(rows, **others):
    """Tokens of (log-prob, entropy, advantage, draw) rows."""
    logprob, entropy, advantages, draws = (list(column) for column in zip(*rows, strict=True))
    return tokens_of(logprob, advantages, entropy, draws=draws, **others)


def told(values):
    """A tensor as rounded numbers."""
    return [round(x, 12) for x in values.double().tolist()]


def test_no_intervention_keeps_advantages_weights_and_loss():
    tokens = tokens_of([-1, -2], [3, -4])
    treatment = Intervention().loss_terms(tokens)
    assert treatment.advantages is tokens.advantages
    assert treatment.weights.tolist() == [1, 1]
    assert treatment.extra is None


def test_clip_higher_sets_the_upper_bound_alone():
    assert ClipHigher().clip_range(ClipRange(0.1, 0.2, 3.0)) == ClipRange(0.1, 0.5, 3.0)
    assert ClipHigher(high=0.5).clip_range(ClipRange(0.1, 0.2, None)) == ClipRange(0.1, 0.5, None)


def test_entropy_loss_is_minus_the_coefficient_times_the_entropy_of_the_new_policy():
    rule, tokens = EntropyLoss(coefficient=0.25), tokens_of([-1, -2], [1, -1], entropy=[0.4, 2.0])
    assert rule.extra_loss(tokens.new, stats_of([-1, -2], [9, 9])).tolist() == [-0.4, -2.0]
    assert rule.loss_terms(tokens).extra.tolist() == [0.25, 0.25]


def test_the_adaptive_coefficient_rises_below_the_target_falls_from_it_on_and_acts_up_to_it():
    rule, tokens = AdaptiveEntropyLoss(target=0.2, step=0.001, maximum=0.0025), tokens_of([-1], [1])
    state, seen = {}, [rule.extra_factors(tokens).item()]
    for entropy in (0.3, 0.1, 0.15, 0.1, 0.2, 0.21, 0.1, 0.5):
        state = rule.next_memory(state, entropy)
        seen.append((round(state["coefficient"], 9), rule.extra_factors(replace(tokens, memory=state)).item()))
        assert state["entropy"] == entropy
    coefficients = [0, 0.001, 0.002, 0.0025, 0.0015, 0.0005, 0.0015, 0.0005]
    acts = [False, True, True, True, True, False, True, False]
    assert seen[0] == 0
    assert [c for c, _ in seen[1:]] == coefficients
    assert [f for _, f in seen[1:]] == [pytest.approx(c * a) for c, a in zip(coefficients, acts, strict=True)]
    assert rule.extra_loss(stats_of([-1], [0.7]), None).tolist() == [-0.7]


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.4, [0, 0, 1, 0, 1]), (0.2, [0, 0, 0, 0, 1]), (0.25, [0, 0, 1, 0, 1]), (1.0, [1] * 5), (1e-9, [0, 0, 0, 0, 1])],
)
def test_fork_tokens_are_those_at_or_above_the_quantile_of_entropy(share, kept):
    """Of (0.1, 0.2, 0.3, 0.4, 0.5) the 60% quantile is 0.34, the 80% one 0.42 and the 75% one 0.4."""
    tokens = tokens_of([-1] * 5, [1] * 5, entropy=[0.1, 0.2, 0.4, 0.3, 0.5])
    assert ForkTokens(share=share).loss_terms(tokens).weights.tolist() == kept


@given(some, st.floats(0.01, 1))
def test_no_token_that_counts_has_less_entropy_than_one_that_does_not(rows, share):
    tokens = drawn(rows)
    kept, entropy = ForkTokens(share=share).mask(tokens), tokens.new.entropy
    assert kept.sum() >= math.floor(share * (len(rows) - 1) + 1e-9) + 1
    assert kept.all() or entropy[kept].min() > entropy[~kept].max()


def test_w_reinforce_weighs_positive_advantages_alone():
    assert told(WReinforce().loss_terms(tokens_of([-1] * 3, [2, -1, 0])).weights) == [0.1, 1, 1]
    assert told(WReinforce(positive=0.7).loss_terms(tokens_of([-1] * 3, [2, -1, 0])).weights) == [0.7, 1, 1]


def test_entropy_advantage_by_hand():
    tokens = tokens_of([-1] * 5, [1, 1, -1, -1, 0], entropy=[0.5, 3.0, 3.0, 0.5, 3.0])
    treatment = EntropyAdvantage().loss_terms(tokens)  # 0.4 H, at most |A| / 2
    assert told(treatment.advantages) == [1.2, 1.5, -0.5, -0.8, 0]
    assert told(EntropyAdvantage(alpha=0.1, kappa=4).loss_terms(tokens).advantages) == [1.05, 1.25, -0.75, -0.95, 0]
    assert treatment.weights.tolist() == [1] * 5


@given(some, st.floats(0, 5), st.floats(1, 9, exclude_min=True))
def test_the_entropy_bonus_is_never_negative_and_never_turns_the_sign(rows, alpha, kappa):
    tokens = drawn(rows)
    changed = EntropyAdvantage(alpha=alpha, kappa=kappa).advantages(tokens)
    assert (changed >= tokens.advantages).all()
    assert (changed * tokens.advantages >= 0).all()


COVARIANT = ([-1, -2, -6], [3, 0, 0])
"""Means -3 and 1, so covariances 2 x 2, 1 x -1 and -3 x -1: 4, -1 and 3."""


def test_covariance_by_hand():
    assert covariance(tokens_of(*COVARIANT)).tolist() == [4, -1, 3]


@pytest.mark.parametrize(
    ("settings", "draws", "kept"),
    [
        ({"share": 1}, [0.9, 0.1, 0.2], [0, 1, 0]),
        ({"share": 1, "high": 4}, [0.9, 0.1, 0.2], [1, 1, 0]),
        ({"share": 1, "high": 4.001}, [0.9, 0.1, 0.2], [0, 1, 0]),
        ({"share": 1, "low": 3}, [0.9, 0.1, 0.2], [0, 1, 1]),
        ({"share": 1, "low": 2.999}, [0.9, 0.1, 0.2], [0, 1, 0]),
        ({"share": 1, "low": -2}, [0.9, 0.1, 0.2], [0, 0, 0]),
        ({"share": 1, "low": 4, "high": 9}, [0.9, 0.1, 0.2], [1, 1, 1]),
        ({"share": 0.66}, [0.9, 0.1, 0.2], [1, 1, 0]),  # int(1.98) is 1: the candidate of the smallest draw
        ({"share": 0.67}, [0.9, 0.1, 0.2], [0, 1, 0]),  # int(2.01) is 2
        ({}, [0.9, 0.1, 0.2], [1, 1, 0]),  # 0.0002 of 3 tokens, at least one
        ({}, [0.1, 0.9, 0.2], [0, 1, 1]),
        ({"share": 0}, [0.9, 0.1, 0.2], [1, 1, 1]),
    ],
)
def test_clip_cov_drops_tokens_between_its_bounds_by_their_draws(settings, draws, kept):
    assert ClipCov(**settings).loss_terms(tokens_of(*COVARIANT, draws=draws)).weights.tolist() == kept


def test_clip_cov_draws_no_token_that_is_clipped_already():
    old = stats_of([-1 - math.log(1.3), -2, -6])
    tokens = tokens_of(*COVARIANT, draws=[0.1, 0.2, 0.3], old=old)
    assert ClipCov().mask(tokens).tolist() == [True, True, False]
    assert ClipCov().mask(replace(tokens, clip=ClipRange(high=0.4))).tolist() == [False, True, True]


@given(some, st.floats(0, 1))
def test_clip_cov_drops_as_many_as_it_may_and_only_candidates(rows, share):
    tokens = drawn(rows)
    value = covariance(tokens)
    candidates = (value > 0.1) & (value < 2)
    dropped = ~ClipCov(share=share, low=0.1, high=2).mask(tokens)
    most = max(1, int(share * len(rows))) if share else 0
    assert not (dropped & ~candidates).any()
    assert int(dropped.sum()) == min(most, int(candidates.sum()))


@pytest.mark.parametrize(
    ("share", "factors"),
    [(1, [2, 2, 2]), (0.66, [2, 0, 0]), (0.67, [2, 0, 2]), (0.0002, [2, 0, 0]), (0, [0, 0, 0])],
)
def test_kl_cov_penalises_the_tokens_of_highest_covariance(share, factors):
    treatment = KLCov(share=share, coefficient=2).loss_terms(tokens_of(*COVARIANT))
    assert treatment.extra.tolist() == factors
    assert treatment.weights.tolist() == [1, 1, 1]


def test_kl_covs_penalty_is_the_absolute_log_ratio_without_a_gradient_at_ratio_1_and_without_a_clip():
    logprob = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    new = replace(stats_of([0, 0, 0]), logprob=logprob)
    penalty = KLCov().extra_loss(new, stats_of([-1.0, -2.5, -1.5]))
    assert penalty.tolist() == [0, 0.5, 1.5]
    penalty.sum().backward()
    assert logprob.grad.tolist() == [0, 1, -1]
    assert KLCov().clip_range(ClipRange()) == ClipRange(1.0, math.inf, None)


def test_quadrant_factors_by_hand():
    """ln p above -H is likely, at -H is not; A = 0 is in no quadrant."""
    tokens = tokens_of(
        [-0.2, -0.7, -0.2, -2.3, -0.2, -2.3], [1, 1, -1, -1, 0, 0], entropy=[0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    )
    rule = Quadrants(positive_likely=2, positive_unlikely=3, negative_likely=4, negative_unlikely=5)
    assert rule.loss_terms(tokens).weights.tolist() == [2, 3, 4, 5, 1, 1]


@pytest.mark.parametrize(
    ("share", "gate", "weights"),
    [
        (0.5, 1.0, [1, 1.5, 1.5, 1, 0.6, 1, 1]),  # 2 of 4 tokens with A > 0, 1 of 2 with A < 0
        (0.3, 1.0, [1, 1.5, 1.5, 1, 0.6, 1, 1]),  # 1.2 and 0.6, rounded up
        (0.25, 1.0, [1, 1.5, 1, 1, 0.6, 1, 1]),
        (1.0, 1.0, [1.5, 1.5, 1.5, 1.5, 0.6, 0.6, 1]),
        (0.5, 0.0, [1] * 7),
    ],
)
def test_stare_weighs_the_least_probable_tokens_of_each_sign_while_its_gate_is_open(share, gate, weights):
    tokens = tokens_of([-1, -4, -2, -0.5, -3, -0.1, -9], [1, 2, 1, 1, -1, -1, 0], memory={"gate": gate})
    assert Stare(share=share, positive=1.5, negative=0.6).loss_terms(tokens).weights.tolist() == weights


@pytest.mark.parametrize("share", [0.07, 0.14, 0.28, 0.29])
def test_stares_share_of_100_tokens_is_not_rounded_up_by_floating_point(share):
    tokens = tokens_of([-0.01 * i for i in range(100)], [1] * 100, memory={"gate": 1.0})
    assert int((Stare(share=share).loss_terms(tokens).weights == 1.1).sum()) == round(100 * share)


def test_stares_gate_is_open_below_the_target_in_the_mean_entropy_of_the_policy_that_sampled():
    rule = Stare(target=0.5)
    for entropies, gate in (([0.25, 0.5], 1.0), ([0.25, 0.75], 0.0), ([0.5, 0.75], 0.0)):
        tokens = tokens_of([-1, -1], [1, -1], entropy=[9, 9], old=stats_of([-1, -1], entropies))
        assert rule.begin_rollout({"gate": 1 - gate}, tokens) == {"gate": gate}


PIC = {"logprob": [math.log(0.99), math.log(0.5), math.log(0.96)], "advantages": [2, 1, -4], "entropy": [0.1, 0.6, 0.2]}
"""Mean entropy 0.3; two of three tokens above 0.95."""


@pytest.mark.parametrize(
    ("settings", "integral", "alpha"),
    [
        ({"target": 0.5}, 0.0, -0.2),
        ({"target": 0.5}, -10.0, -0.3),  # 1 x -0.2 + 0.01 x -10
        ({"target": 0.5, "kp": 0.5, "ki": 0.02}, -10.0, -0.3),
        ({"target": 0.2}, 10.0, 0.2),
        ({"target": 0.5, "kp": 100}, 0.0, -1.0),
        ({"target": 0.2, "kp": 100}, 0.0, 1.0),
        ({"target": 0.5, "kp": 0}, 0.0, 0.0),
    ],
)
def test_entropic_factors_are_alpha_times_the_advantage_over_the_share_of_likely_tokens(settings, integral, alpha):
    factors = EntroPIC(**settings).loss_terms(tokens_of(**PIC, memory={"integral": integral})).extra
    assert told(factors) == [pytest.approx(x, abs=1e-12) for x in (alpha * 2 * 1.5, 0, alpha * 4 * 1.5)]


def test_entropics_token_mean_is_alpha_times_the_mean_of_minus_r_over_the_likely_tokens():
    old = stats_of([x - math.log(r) for x, r in zip(PIC["logprob"], (3, 1, 0.5), strict=True)])
    tokens = tokens_of(**PIC, old=old)
    rule = EntroPIC(target=0.5)
    term = (rule.extra_factors(tokens) * rule.extra_loss(tokens.new, tokens.old)).mean()
    assert term.item() == pytest.approx(-0.2 * -(3 * 2 + 0.5 * 4) / 2)


def test_entropic_without_a_likely_token_adds_nothing_and_the_threshold_itself_is_not_likely():
    assert EntroPIC().loss_terms(tokens_of([-1, -2], [1, -1])).extra.tolist() == [0, 0]
    at = tokens_of([math.log(0.5), math.log(0.75)], [1, 1], entropy=[0.3, 0.3])
    assert told(EntroPIC(threshold=0.5, target=0.1).loss_terms(at).extra) == [0, 0.4]


def test_entropics_integral_adds_up_the_errors():
    rule, state, seen = EntroPIC(target=0.3), {}, []
    for entropy in (0.5, 0.1, 0.1, 0.35):
        state = rule.next_memory(state, entropy)
        seen.append(round(state["integral"], 12))
    assert seen == [0.2, 0.0, -0.2, -0.15]
    assert set(state) == {"integral"}


@given(some, st.floats(0.05, 1), st.sampled_from(["paper", "exact", "covariance"]))
def test_steer_is_lambda_min_to_the_share_of_the_largest_change(rows, lambda_min, form):
    tokens, rule = drawn(rows), Steer(lambda_min=lambda_min, form=form)
    size = rule.change(tokens.new, tokens.old, tokens.advantages, tokens.clip).abs()
    expected = lambda_min ** (size / size.max()) if size.any() else torch.ones_like(size)
    torch.testing.assert_close(rule.loss_terms(tokens).weights, expected, rtol=1e-9, atol=0)


@given(some, st.floats(0.05, 1))
def test_the_shuffled_control_deals_steers_weights_out_among_the_tokens_that_move(rows, lambda_min):
    tokens = drawn(rows)
    steer, control = (kind(lambda_min=lambda_min).loss_terms(tokens).weights for kind in (Steer, SteerControl))
    moving = Steer().change(tokens.new, tokens.old, tokens.advantages, tokens.clip) != 0
    assert torch.equal(control.sort().values, steer.sort().values)
    assert torch.equal(control[~moving], steer[~moving])
    again = replace(tokens, draws=tokens.draws.flip(0))
    assert torch.equal(SteerControl(lambda_min=lambda_min).loss_terms(again).weights.sort().values, steer.sort().values)


def test_the_shuffled_control_follows_the_draws():
    tokens = tokens_of([-0.1, -0.7, -1, -3, -1], [1, 1, 1, 1, 0], draws=[0.3, 0.1, 0.9, 0.2, 0.0])
    steer, control = (rule.loss_terms(tokens).weights for rule in (Steer(), SteerControl(control="shuffled")))
    assert len(set(steer.tolist())) == 5
    assert control.tolist() == steer[[1, 3, 0, 2, 4]].tolist()


@given(some, st.floats(0.05, 1))
def test_the_uniform_control_keeps_the_mean_and_leaves_tokens_that_do_not_move_alone(rows, lambda_min):
    tokens = drawn(rows)
    steer, control = (
        rule.loss_terms(tokens).weights
        for rule in (Steer(lambda_min=lambda_min), SteerControl(lambda_min=lambda_min, control="uniform"))
    )
    moving = Steer().change(tokens.new, tokens.old, tokens.advantages, tokens.clip) != 0
    assert control.mean().item() == pytest.approx(steer.mean().item())
    assert torch.equal(control[~moving], steer[~moving])
    assert len(set(control[moving].tolist())) == bool(moving.any())


def test_scope_rollout_divides_by_what_the_rollout_kept():
    rule, tokens = Steer(scope="rollout", lambda_min=0.5), tokens_of([-0.1, -1, -3], [1, -1, 1])
    state = rule.begin_rollout({"other": 2.0}, tokens)
    size = rule.change(tokens.new, tokens.old, tokens.advantages, tokens.clip).abs()
    assert state == {"other": 2.0, "normaliser": size.max().item()}
    doubled = {"normaliser": 2 * size.max().item()}
    weights = rule.loss_terms(replace(tokens, memory=doubled)).weights
    assert told(weights) == told(0.5 ** (size / size.max() / 2))
    assert Steer().begin_rollout({"other": 2.0}, tokens) == {"other": 2.0}
