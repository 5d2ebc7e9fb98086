"""A tabular policy, a free logit at every state and token, that really takes the surrogate's gradient step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_core.common.errors import SteerError
from steer_core.formulas.entropy_change import exact_entropy_change, paper_entropy_change
from steer_core.formulas.loss import ClipRange, clip_indicator, clipped_surrogate, importance_ratio
from steer_core.formulas.tabular import measured_change, rival_logits
from steer_core.formulas.token_stats import TokenStats, token_stats

CLIP = ClipRange()
ETA = 1e-5
SIZES = [2, 3, 10, 100, 1000, 50000]
CHUNK = 1 << 21


def entropy_of(logits):
    """H of softmax(logits), from its definition alone; 0 ln 0 is 0."""
    return torch.special.entr(torch.softmax(logits, -1)).sum(-1)


def likely_top(logits):
    """One token of every state holds nearly all the probability, up to 1 - 1e-5."""
    gap = 5 + 7 * torch.rand(len(logits), 1, dtype=logits.dtype, generator=torch.Generator().manual_seed(7))
    rest = logits.scatter(-1, logits.argmax(-1, keepdim=True), -math.inf).logsumexp(-1, keepdim=True)
    return logits.scatter(-1, logits.argmax(-1, keepdim=True), rest + gap)


def masked_vocabulary(logits):
    """Every other token is outside the vocabulary in use; with two tokens none is."""
    return logits.index_fill(-1, torch.arange(2, logits.shape[-1], 2), -math.inf)


HOSTILE = {
    "plain": lambda z: z,
    "shifted up": lambda z: z + 1e4,
    "shifted down": lambda z: z - 1e4,
    "all negative": lambda z: -z.abs() - 1,
    "wide": lambda z: 10 * z,
    "nearly one-hot": likely_top,
    "masked vocabulary": masked_vocabulary,
}


def chunks_of(size, count, kind="plain", seed=0):
    """`count` states in chunks that fit in memory: (logits, labels, new, old, advantages) of each chunk.

    Tokens are sampled from the policy, or uniformly in every fourth state, so that unlikely ones occur.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, CHUNK // size)
    for start in range(0, count, rows):
        n = min(rows, count - start)
        logits = HOSTILE[kind](2 * torch.randn(n, size, generator=generator).double())
        p = torch.softmax(logits, -1)
        p[3::4] = (p[3::4] > 0).double()
        total = p.cumsum_(-1)
        draw = torch.rand(n, 1, generator=generator, dtype=torch.float64) * total[:, -1:]
        labels = torch.searchsorted(total, draw, right=True).squeeze(-1)
        new = token_stats(logits, labels)
        log_ratio = 0.4 * torch.randn(n, generator=generator, dtype=torch.float64)
        log_ratio[5::50] = 3.0  # beyond the dual clip
        log_ratio[7::50] = 1.2  # short of it: with A < 0 the gradient passes, 3 times as large
        old = TokenStats(new.logprob - log_ratio, new.entropy, new.sum_p2, new.sum_p2_logp)
        yield logits, labels, new, old, torch.randn(n, generator=generator, dtype=torch.float64)


def surrogate_step(logits, labels, old, advantages, moves=None):
    """The logits after one gradient step of size ETA on the summed surrogate; `moves` marks those that may."""
    leaf = logits.clone().requires_grad_()
    logp = torch.log_softmax(leaf, -1).gather(-1, labels[:, None]).squeeze(-1)
    clipped_surrogate(logp, old.logprob, advantages, CLIP).sum().backward()
    return logits - ETA * (leaf.grad if moves is None else leaf.grad * moves)


def predicted_and_measured(form, size, count, kind="plain", sampled_alone=False):
    """dH at unit step of every state: by a form, and by taking the step and reading the entropy again."""
    predicted, measured = [], []
    for logits, labels, new, old, advantages in chunks_of(size, count, kind):
        moves = torch.nn.functional.one_hot(labels, size) if sampled_alone else None
        stepped = surrogate_step(logits, labels, old, advantages, moves)
        measured.append((entropy_of(stepped) - entropy_of(logits)) / ETA)
        predicted.append(form(new, old, advantages, CLIP))
    return torch.cat(predicted), torch.cat(measured)


def relative_error(predicted, measured):
    return float((predicted - measured).norm() / measured.norm())


def every_action(logits, advantages=1.0):
    """One row of logits as a state an action, on policy: (statistics, probabilities, advantages), (V,) each."""
    size = logits.shape[-1]
    stats = token_stats(logits.expand(size, size), torch.arange(size))
    return stats, torch.softmax(logits, -1), torch.as_tensor(advantages, dtype=logits.dtype).expand(size)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("size", SIZES)
def test_exact_form_is_the_measured_change_of_a_tabular_policy(size, kind):
    count = 2000 if size < 50000 else 800 if kind == "plain" else 200
    predicted, measured = predicted_and_measured(exact_entropy_change, size, count, kind)
    assert len(predicted) == count
    assert relative_error(predicted, measured) <= 1e-4
    assert (predicted == 0).sum() > count / 5
    assert not measured[predicted == 0].any()  # clipped tokens move nothing


def test_the_states_hold_both_signs_of_the_advantage_and_every_clip():
    for kind in HOSTILE:
        for _, _, new, old, advantages in chunks_of(100, 1000, kind):
            ratio = importance_ratio(new.logprob, old.logprob)
            passes = clip_indicator(ratio, advantages, CLIP).bool()
            for stopped in (
                (advantages > 0) & (ratio > 1.28) & (ratio < 10),
                (advantages < 0) & (ratio < 0.8),
                (advantages < 0) & (ratio > 10),
            ):
                assert stopped.sum() >= 5
                assert not passes[stopped].any()
            assert (passes & (advantages > 0)).sum() > 200
            assert (passes & (advantages < 0)).sum() > 200
            assert (passes & (ratio > 3)).sum() > 5


@pytest.mark.parametrize("kind", ["plain", "masked vocabulary"])
def test_exact_form_holds_with_statistics_of_float32_logits(kind):
    logits, labels, _, _, advantages = next(chunks_of(100, 2000, kind))
    logits = logits.float()
    new = token_stats(logits, labels)
    assert new.entropy.dtype is torch.float32
    predicted = exact_entropy_change(new, new, advantages.float(), CLIP)
    logits = logits.double()
    stepped = surrogate_step(logits, labels, token_stats(logits, labels), advantages)
    measured = (entropy_of(stepped) - entropy_of(logits)) / ETA
    assert relative_error(predicted, measured) <= 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_paper_form_is_the_measured_change_when_the_sampled_logit_alone_moves(size):
    count = 2000 if size < 50000 else 80
    predicted, measured = predicted_and_measured(paper_entropy_change, size, count, sampled_alone=True)
    assert relative_error(predicted, measured) <= 1e-4


@pytest.mark.parametrize("size", [2, 3, 10, 100, 1000, 50000])
def test_paper_form_misses_one_part_in_v_where_all_other_tokens_are_equally_likely(size):
    """By hand: u_b = -p u_a / (1 - p), so the dropped sum is -p (1 - p) u_a / (V - 1): exact = V / (V - 1) paper."""
    logits = torch.zeros(5, size, dtype=torch.float64)
    logits[:, 1] = torch.tensor([-3.0, -0.5, 0.7, 4.0, 9.0], dtype=torch.float64)
    new, ones = token_stats(logits, torch.ones(5, dtype=torch.long)), torch.ones(5, dtype=torch.float64)
    exact, paper = (form(new, new, ones, CLIP) for form in (exact_entropy_change, paper_entropy_change))
    torch.testing.assert_close(exact, size / (size - 1) * paper, rtol=1e-9, atol=1e-15)
    assert paper[2:].max() < 0


@pytest.mark.parametrize("kind", HOSTILE)
def test_paper_form_is_half_the_measured_change_with_two_tokens(kind):
    predicted, measured = predicted_and_measured(paper_entropy_change, 2, 500, kind)
    assert relative_error(2 * predicted, measured) <= 1e-4


def test_paper_form_has_another_scale_than_the_measured_change_where_it_drops_much():
    predicted, measured = predicted_and_measured(paper_entropy_change, 10, 2000)
    slope = float(predicted @ measured / (predicted @ predicted))
    assert slope == pytest.approx(1.5, abs=0.2)
    assert relative_error(slope * predicted, measured) > 0.1  # nor is it one factor for all states


@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from(sorted(HOSTILE)), st.floats(-3, 3).filter(bool))
def test_mean_of_the_exact_form_over_all_actions_is_zero_on_hostile_logits(size, seed, kind, advantage):
    row = HOSTILE[kind](2 * torch.randn(1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    stats, p, advantages = every_action(row[0], advantage)
    change = exact_entropy_change(stats, stats, advantages, CLIP)
    assert abs(float((p * change)[p > 0].sum())) <= 1e-6 * abs(advantage)


@pytest.mark.parametrize("size", [2, 3, 10, 100])
@pytest.mark.parametrize("advantage", [-1.5, 1.5])
def test_the_expected_on_policy_update_at_constant_advantage_moves_no_logit_and_no_entropy(size, advantage):
    logits = 2 * torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    logp = torch.log_softmax(leaf, -1)
    loss = clipped_surrogate(logp, logp.detach(), torch.full_like(logits, advantage), CLIP)
    (logp.detach().exp() * loss).sum().backward()
    assert leaf.grad.abs().max() < 1e-15
    assert abs(entropy_of(logits - leaf.grad) - entropy_of(logits)) < 1e-14


@given(st.integers(2, 60), st.integers(0, 10**6))
def test_mean_of_the_exact_form_is_the_change_of_the_expected_update(size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
    stats, p, _ = every_action(logits)
    advantages = torch.randn(size, generator=generator, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    logp = torch.log_softmax(leaf, -1)
    (p * clipped_surrogate(logp, logp.detach(), advantages, CLIP)).sum().backward()
    measured = (entropy_of(logits - ETA * leaf.grad) - entropy_of(logits)) / ETA
    predicted = (p * exact_entropy_change(stats, stats, advantages, CLIP)).sum()
    torch.testing.assert_close(predicted, measured, rtol=1e-3, atol=1e-6)


def test_a_rival_has_its_share_of_what_the_token_leaves_and_the_others_the_remainder_alike():
    probabilities = rival_logits(torch.tensor([0.2, 0.6]), 0.75, 4).exp()
    expected = torch.tensor([[0.2, 0.6, 0.1, 0.1], [0.6, 0.3, 0.05, 0.05]])
    torch.testing.assert_close(probabilities, expected)
    assert rival_logits(torch.tensor([0.5]), 0.0, 3)[0, 1] == -math.inf
    with pytest.raises(SteerError, match="vocabulary: 2 is below 3"):
        rival_logits(torch.tensor([0.5]), 0.5, 2)


def test_a_step_along_a_token_raises_its_log_prob_and_so_lowers_entropy_at_a_likely_one():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    change = measured_change(logits, torch.tensor([0, 1]), torch.ones(2, dtype=torch.float64), 0.1)
    before = token_stats(logits, torch.tensor([0, 1])).entropy
    moved = torch.stack([logits[0] + 0.1 * (torch.tensor([1.0, 0.0]) - logits[0].softmax(-1)),
                         logits[1] + 0.1 * (torch.tensor([0.0, 1.0]) - logits[1].softmax(-1))])  # fmt: skip
    torch.testing.assert_close(change, token_stats(moved, torch.tensor([0, 1])).entropy - before)
    assert change[0] < 0 < change[1]
