"""Entrocraft, ERC and CE-GPPO on hand-made tokens, and CE-GPPO's gradient beside the authors' formula."""

import math
from dataclasses import replace

import pytest
import torch
from hand import stats_of, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from steer_core.formulas.loss import ClipRange, clipped_surrogate
from steer_core.interventions.ce_gppo import CEGPPO
from steer_core.interventions.entrocraft import Entrocraft
from steer_core.interventions.erc import ERC

SIGNS = [2.0, -1.0, 0.0, -0.5, 1.0]


@pytest.mark.parametrize(("sign", "kept"), [(0.0, [1, 1, 1, 1, 1]), (-1.0, [0, 1, 1, 1, 0]), (1.0, [1, 0, 1, 0, 1])])
def test_entrocraft_keeps_the_tokens_of_one_sign_outside_its_band_and_all_within(sign, kept):
    treatment = Entrocraft().loss_terms(tokens_of([-1] * 5, SIGNS, memory={"sign": sign}))
    assert treatment.weights.tolist() == kept
    assert treatment.advantages.tolist() == SIGNS


@pytest.mark.parametrize(
    ("entropies", "sign"),
    [
        ([0.5, 0.5], 0.0),
        ([0.25, 0.75], 0.0),
        ([0.25, 0.25], 0.0),  # at the lower bound
        ([0.75, 0.75], 0.0),  # at the upper bound
        ([0.25, 0.125], -1.0),  # below: failures alone, which raise entropy
        ([0.75, 0.875], 1.0),  # above: successes alone
    ],
)
def test_entrocrafts_band_is_about_the_target_and_its_bounds_belong_to_it(entropies, sign):
    rule = Entrocraft(target=0.5, margin=0.25)
    tokens = tokens_of([-1, -1], [1, -1], entropy=[9, 9], old=stats_of([-1, -1], entropies))
    assert rule.begin_rollout({"sign": 7.0}, tokens) == {"sign": sign}


def test_entrocrafts_band_moves_with_the_target_in_force():
    rule = Entrocraft(target="0.5 to 1.5 over 2", margin=0.25)
    tokens = tokens_of([-1], [1], old=stats_of([-1], [1.0]))
    assert [rule.begin_rollout(rule.settings_at(n), tokens)["sign"] for n in (1, 2)] == [1.0, -1.0]


@pytest.mark.parametrize(
    ("new", "old", "kept"),
    [
        (1.0, 1.0, True),
        (1.04, 1.0, True),
        (1.21, 1.0, False),
        (0.96, 1.0, True),
        (0.79, 1.0, False),
        (0.0, 1.0, False),
        (0.0, 0.0, True),  # no entropy before nor now: no change
        (1e-6, 0.0, False),  # entropy where there was none
        (2e-10, 0.0, True),  # of a size that only rounding has
        (0.0, 1e-6, False),
    ],
)
def test_erc_keeps_tokens_whose_states_entropy_changed_by_less_than_its_bounds(new, old, kept):
    tokens = tokens_of([-1, -1], [1, -1], entropy=[new, 1.0], old=stats_of([-1, -1], [old, 1.0]))
    assert ERC().loss_terms(tokens).weights.tolist() == [kept, 1]


def test_ercs_bounds_themselves_are_outside_and_settings_move_them():
    tokens = tokens_of([-1] * 4, [1] * 4, entropy=[0.5, 2.0, 0.75, 1.75], old=stats_of([-1] * 4, [1.0] * 4))
    ratio = (tokens.new.entropy + 1e-8) / (1.0 + 1e-8)
    at = ERC(low=float(ratio[0]), high=float(ratio[1]))
    assert at.mask(tokens).tolist() == [False, False, True, True]
    assert ERC(low=0.7, high=1.7).mask(tokens).tolist() == [False, False, True, False]
    assert ERC(low=0.0, high=1e30).mask(tokens).all()


CLIP = ClipRange(low=0.2, high=0.28, dual=3.0)
RATIOS = [1.0, 1.27, 1.5, 0.5, 0.5, 0.81, 1.5, 2.9, 5.0, 40.0, 1.5]
ADVANTAGES = [1.0, 2.0, 2.0, 2.0, -3.0, -3.0, -3.0, -3.0, -3.0, 2.0, 0.0]


def off_policy(ratios, advantages, clip=CLIP):
    """Tokens whose ratios to the policy that sampled are these."""
    old = stats_of([-1 - math.log(r) for r in ratios])
    return tokens_of([-1] * len(ratios), advantages, old=old, clip=clip)


def test_ce_gppo_by_hand():
    """High: 1.5 and 40 with A > 0. Low: 0.5 with A < 0. Beyond the dual clip, 5 with A < 0, nothing is kept."""
    factors = CEGPPO(low=0.25, high=0.5).loss_terms(off_policy(RATIOS, ADVANTAGES)).extra
    high, low = 0.5 * 1.28 * 2.0, 0.25 * 0.8 * -3.0
    assert factors.tolist() == pytest.approx([0, 0, high, 0, low, 0, 0, 0, 0, high, 0], abs=1e-12)


def authors_loss(logprob, old_logprob, advantages, clip, low, high):
    """CE-GPPO's loss of each token, as its paper and code define it, with the dual clip."""
    ratio = (logprob - old_logprob).exp()
    kept = ratio / ratio.detach()
    loss = -ratio * advantages
    below, above = (ratio < 1 - clip.low) & (advantages < 0), (ratio > 1 + clip.high) & (advantages > 0)
    loss = torch.where(below, -low * (1 - clip.low) * kept * advantages, loss)
    loss = torch.where(above, -high * (1 + clip.high) * kept * advantages, loss)
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * clip.dual), loss)


def gradients(tokens, rule):
    """By log-prob: of the whole loss of each token here, and of the authors'."""
    leaf = tokens.new.logprob.clone().requires_grad_()
    terms, clip = rule.loss_terms(tokens), tokens.clip
    ours = terms.weights * clipped_surrogate(leaf, tokens.old.logprob, terms.advantages, clip)
    ours = ours + terms.extra * rule.extra_loss(replace(tokens.new, logprob=leaf), tokens.old)
    theirs = authors_loss(leaf, tokens.old.logprob, tokens.advantages, clip, rule.low, rule.high)
    return [torch.autograd.grad(loss.sum(), leaf)[0] for loss in (ours, theirs)]


@given(
    st.lists(st.tuples(st.floats(0.05, 20), st.floats(-3, 3)), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 2),
)
def test_ce_gppos_gradient_is_that_of_the_authors_loss(rows, low, high):
    ratios, advantages = (list(column) for column in zip(*rows, strict=True))
    ours, theirs = gradients(off_policy(ratios, advantages), CEGPPO(low=low, high=high))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_ce_gppos_term_has_no_value_and_without_factors_it_is_ppo():
    tokens = off_policy(RATIOS, ADVANTAGES)
    rule = CEGPPO()
    assert not rule.extra_loss(tokens.new, tokens.old).any()
    ours, _ = gradients(tokens, CEGPPO(low=0, high=0))
    leaf = tokens.new.logprob.clone().requires_grad_()
    clipped_surrogate(leaf, tokens.old.logprob, tokens.advantages, CLIP).sum().backward()
    assert torch.equal(ours, leaf.grad)


def test_ce_gppos_gradient_does_not_grow_with_the_ratio():
    tokens = off_policy([1.5, 3.0, 30.0, 0.5, 0.05], [1.0, 1.0, 1.0, -1.0, -1.0])
    ours, _ = gradients(tokens, CEGPPO())
    assert ours.tolist() == pytest.approx([-1.28, -1.28, -1.28, 0.75 * 0.8, 0.75 * 0.8])
