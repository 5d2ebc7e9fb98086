"""verl's own functions against ours: equal to 1e-6 in value and gradient, or a difference that a test is named for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("verl")

from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig, PolicyLossConfig

from steer_core.formulas.advantages import ADVANTAGES
from steer_core.formulas.loss import LOG_RATIO_BOUND, REDUCTIONS, ClipRange, clipped_surrogate, denominator, reduce_loss
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Tokens
from steer_core.interventions.covariance import ClipCov, KLCov, covariance

ROWS, WIDTH = 6, 9
NO_DUAL = 1e9  # above e^20, the largest ratio that verl's vanilla loss lets through

seeds = st.integers(0, 10**6)
clips = st.builds(
    ClipRange, low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.6), dual=st.one_of(st.none(), st.floats(1.1, 5))
)


class Sample:
    """Ragged log-probs, advantages and a mask, (B, T) in float64; new and old policies apart."""

    def __init__(self, seed: int, empty_rows: int = 0, drift: float = 0.4):
        source = torch.Generator().manual_seed(seed)
        draw = lambda: torch.randn(ROWS, WIDTH, generator=source, dtype=torch.float64)  # noqa: E731
        self.new = (-1.5 + 0.8 * draw()).clamp(max=-1e-3).requires_grad_()
        self.old = (self.new.detach() + drift * draw()).clamp(max=-1e-3)
        self.old[0] = self.new.detach()[0]  # ratio 1, where both branches of the maximum tie
        self.advantages = draw()
        lengths = torch.randint(1, WIDTH + 1, (ROWS,), generator=source)
        lengths[:empty_rows] = 0
        self.mask = torch.arange(WIDTH) < lengths[:, None]

    def tokens(self, clip: ClipRange, draws: torch.Tensor | None = None) -> Tokens:
        """The response tokens as an intervention sees them."""
        new, old, advantages = (x.detach()[self.mask] for x in (self.new, self.old, self.advantages))
        unknown = torch.full_like(new, torch.nan)
        both = (TokenStats(x, unknown, unknown, unknown) for x in (new, old))
        return Tokens(*both, advantages, clip, torch.rand_like(new) if draws is None else draws, {})

    def verl(self, name: str, config: ActorConfig, mode: str = "token-mean") -> tuple[float, torch.Tensor]:
        """(loss, gradient with respect to the new log-probs) of a policy loss of verl."""
        loss, _ = core_algos.get_policy_loss_fn(name)(
            self.old, self.new, self.advantages, self.mask, mode, config, None
        )
        return loss.item(), torch.autograd.grad(loss, self.new)[0]

    def ours(self, loss: torch.Tensor, mode: str = "token-mean") -> tuple[float, torch.Tensor]:
        """The same of per-token losses (B, T) of ours."""
        loss = reduce_loss(loss, self.mask, mode, denominator(self.mask, mode, WIDTH))
        return loss.item(), torch.autograd.grad(loss, self.new)[0]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the response tokens at their places in (B, T), 0 elsewhere."""
        return torch.zeros_like(self.old).masked_scatter(self.mask, values)


def actor(clip: ClipRange = ClipRange(), **policy_loss) -> ActorConfig:  # noqa: B008
    """verl's settings of an actor with these bounds."""
    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=clip.low,
        clip_ratio_high=clip.high,
        clip_ratio_c=clip.dual or NO_DUAL,
        policy_loss=PolicyLossConfig(**policy_loss),
    )


def assert_same(ours, verl):
    assert ours[0] == pytest.approx(verl[0], rel=1e-6, abs=1e-6)
    torch.testing.assert_close(ours[1], verl[1], rtol=1e-6, atol=1e-6)


# ---- the clipped loss


@given(seeds, clips, st.sampled_from(REDUCTIONS), st.integers(0, 2))
def test_clipped_loss_and_its_gradient_are_those_of_verls_vanilla_loss(seed, clip, mode, empty_rows):
    sample = Sample(seed, empty_rows)
    ours = sample.ours(clipped_surrogate(sample.new, sample.old, sample.advantages, clip), mode)
    assert_same(ours, sample.verl("vanilla", actor(clip), mode))


@pytest.mark.parametrize("sign", [1, -1])
def test_both_bound_the_log_ratio_at_20(sign):
    sample = Sample(0)
    sample.old = sample.new.detach() - sign * 25
    clip = ClipRange(dual=None)
    ours = sample.ours(clipped_surrogate(sample.new, sample.old, sample.advantages, clip))
    assert_same(ours, sample.verl("vanilla", actor(clip)))
    assert not ours[1].any()


def test_verl_cannot_switch_the_dual_clip_off():
    sample = Sample(0)
    with pytest.raises(AssertionError, match=r"greater than 1\.0"):
        sample.verl("vanilla", actor(ClipRange(dual=1.0)))
    with pytest.raises(TypeError):
        sample.verl("vanilla", ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, clip_ratio_c=None))


# ---- reductions


@given(seeds, st.sampled_from(REDUCTIONS), st.integers(0, ROWS - 1))
def test_reductions_are_those_of_verl(seed, mode, empty_rows):
    sample = Sample(seed, empty_rows)
    verl = core_algos.agg_loss(sample.new, sample.mask, mode)
    assert_same(sample.ours(sample.new, mode), (verl.item(), torch.autograd.grad(verl, sample.new)[0]))


@given(seeds, st.sampled_from(REDUCTIONS), st.integers(1, ROWS - 1))
def test_micro_batches_and_ranks_add_up_to_the_same_number_as_in_verl(seed, mode, cut):
    sample, ranks = Sample(seed), 2
    whole = denominator(sample.mask, mode, WIDTH)
    parts = [slice(0, cut), slice(cut, ROWS)]
    ours = sum(reduce_loss(sample.new[part], sample.mask[part], mode, whole) for part in parts)
    known = dict(batch_num_tokens=int(sample.mask.sum()), global_batch_size=ROWS, loss_scale_factor=WIDTH)
    verl = [core_algos.agg_loss(sample.new[part], sample.mask[part], mode, ranks, **known) for part in parts]
    assert ours.item() == pytest.approx(sum(verl).item() / ranks, rel=1e-6, abs=1e-6)  # the ranks' mean, as DDP takes


@pytest.mark.parametrize("mode", REDUCTIONS)
def test_without_a_response_token_ours_is_0_and_verls_is_nan(mode):
    losses, mask = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    assert core_algos.agg_loss(losses, mask, mode).isnan()
    assert reduce_loss(losses, mask, mode, denominator(mask, mode, 3)) == 0


@pytest.mark.parametrize("mode", ["seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_verls_global_batch_size_counts_empty_rows_and_ours_does_not(mode):
    sample = Sample(1, empty_rows=2)
    ours = sample.ours(sample.new, mode)[0]
    verl = core_algos.agg_loss(sample.new, sample.mask, mode, global_batch_size=ROWS).item()
    assert ours == pytest.approx(verl * ROWS / (ROWS - 2), rel=1e-6)


def test_seq_mean_token_sum_norm_divides_by_the_padded_width_in_verl_and_by_a_given_length_in_ours():
    sample = Sample(2)
    wide, mask = (torch.nn.functional.pad(x, (0, 3)) for x in (sample.new.detach(), sample.mask))
    mode = "seq-mean-token-sum-norm"
    verl = [core_algos.agg_loss(*pair, mode).item() for pair in ((sample.new, sample.mask), (wide, mask))]
    ours = [reduce_loss(wide, mask, mode, denominator(mask, mode, WIDTH)).item(), sample.ours(sample.new, mode)[0]]
    assert verl[1] == pytest.approx(verl[0] * WIDTH / (WIDTH + 3))
    assert ours[0] == pytest.approx(ours[1]) == pytest.approx(verl[0], rel=1e-6)
    assert ours[0] == pytest.approx(core_algos.agg_loss(wide, mask, mode, loss_scale_factor=WIDTH).item(), rel=1e-6)


# ---- Clip-Cov and KL-Cov


@given(seeds, clips, st.floats(-0.5, 0.3), st.floats(0.4, 3), st.floats(0.001, 1))
def test_clip_cov_is_verls_given_the_same_choice(seed, clip, low, high, share):
    sample, clip = Sample(seed), ClipRange(clip.low, clip.high, None)
    config = actor(clip, clip_cov_ratio=share, clip_cov_lb=low, clip_cov_ub=high)
    rule = ClipCov(share=share, low=low, high=high)
    everything = ClipCov(share=1, low=low, high=high).loss_terms(sample.tokens(clip)).weights == 0
    order = torch.randperm(int(everything.sum()), generator=torch.Generator().manual_seed(seed))
    draws = torch.ones(len(everything), dtype=torch.float64)
    draws[everything.nonzero().squeeze(-1)[order]] = torch.arange(len(order)).double() / ROWS / WIDTH
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # verl draws from torch's own generator
        verl = sample.verl("clip_cov", config)
    weights = sample.spread(rule.loss_terms(sample.tokens(clip, draws)).weights)
    ours = sample.ours(weights * clipped_surrogate(sample.new, sample.old, sample.advantages, clip))
    assert_same(ours, verl)


@pytest.mark.parametrize("seed", range(4))
def test_clip_cov_with_share_1_drops_every_candidate_in_both(seed):
    sample, clip = Sample(seed), ClipRange(dual=None)
    config = actor(clip, clip_cov_ratio=1.0, clip_cov_lb=0.1, clip_cov_ub=5.0)
    weights = ClipCov(share=1, low=0.1, high=5).loss_terms(sample.tokens(clip)).weights
    assert (weights == 0).sum() > 2
    surrogate = clipped_surrogate(sample.new, sample.old, sample.advantages, clip)
    assert_same(sample.ours(sample.spread(weights) * surrogate), sample.verl("clip_cov", config))


def test_clip_cov_keeps_the_dual_clip_in_ours_and_has_none_in_verl():
    sample, clip = Sample(3, drift=1.5), ClipRange(dual=1.2)
    weights = sample.spread(ClipCov(share=1, low=0.1, high=5).loss_terms(sample.tokens(clip)).weights)
    ours = sample.ours(weights * clipped_surrogate(sample.new, sample.old, sample.advantages, clip))
    verl = sample.verl("clip_cov", actor(clip, clip_cov_ratio=1.0, clip_cov_lb=0.1, clip_cov_ub=5.0))
    assert ours[0] < verl[0] - 1e-3
    stopped = (sample.advantages < 0) & ((sample.new - sample.old).exp() > 1.2) & sample.mask
    assert stopped.any()
    assert not ours[1][stopped].any()
    assert verl[1][stopped].any()


def test_clip_cov_share_0_draws_none_in_ours_and_is_refused_by_verl():
    sample = Sample(0)
    assert ClipCov(share=0, low=-9, high=9).loss_terms(sample.tokens(ClipRange())).weights.all()
    with pytest.raises(AssertionError):
        sample.verl("clip_cov", actor(clip_cov_ratio=0.0))


def kl_cov(sample: Sample, rule: KLCov) -> tuple[float, torch.Tensor]:
    clip = rule.clip_range(ClipRange())
    treatment = rule.loss_terms(sample.tokens(clip))
    stats, old = (TokenStats(x, x, x, x) for x in (sample.new, sample.old))
    surrogate = clipped_surrogate(sample.new, sample.old, sample.advantages, clip)
    penalty = sample.spread(treatment.extra) * rule.extra_loss(stats, old)
    return sample.ours(sample.spread(treatment.weights) * surrogate + penalty)


@given(seeds, st.floats(0.0001, 1), st.floats(0.01, 3))
def test_kl_cov_is_verls_with_the_same_fraction_and_coefficient(seed, share, coefficient):
    sample = Sample(seed)
    config = actor(kl_cov_ratio=share, ppo_kl_coef=coefficient)
    assert_same(kl_cov(sample, KLCov(share=share, coefficient=coefficient)), sample.verl("kl_cov", config))


def test_kl_cov_share_is_a_fraction_as_in_verl_and_a_hundredth_of_the_authors_per_cent():
    per_cent = 20.0
    sample = Sample(5)
    count = max(1, int(int(sample.mask.sum()) * per_cent / 100))
    factors = KLCov(share=per_cent / 100).loss_terms(sample.tokens(ClipRange())).extra
    assert int((factors > 0).sum()) == count > 1
    assert factors[covariance(sample.tokens(ClipRange())).topk(count).indices].all()
    ours = kl_cov(sample, KLCov(share=per_cent / 100, coefficient=0.1))
    assert_same(ours, sample.verl("kl_cov", actor(kl_cov_ratio=per_cent / 100)))


def test_kl_cov_default_coefficient_is_the_authors_1_and_a_tenth_of_it_in_verl():
    assert (KLCov().coefficient, PolicyLossConfig().ppo_kl_coef) == (1.0, 0.1)
    assert KLCov().share == PolicyLossConfig().kl_cov_ratio == ClipCov().share == PolicyLossConfig().clip_cov_ratio
    assert (ClipCov().low, ClipCov().high) == (PolicyLossConfig().clip_cov_lb, PolicyLossConfig().clip_cov_ub)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_covariance_rules_bound_the_log_ratio_at_20_in_ours_only(name):
    sample = Sample(0)
    sample.advantages = -sample.advantages.abs()
    sample.old = sample.new.detach() - 25
    ours = clipped_surrogate(sample.new, sample.old, sample.advantages, ClipRange(1.0, float("inf"), None))
    config = actor(ClipRange(dual=None), clip_cov_lb=1e6, clip_cov_ub=1e7, ppo_kl_coef=0.0)
    assert sample.verl(name, config)[0] == pytest.approx(sample.ours(ours)[0] * np.exp(25 - LOG_RATIO_BOUND))


# ---- advantages

VERL_NAMES = {
    "grpo": "grpo",
    "dr-grpo": "grpo",
    "rloo": "rloo",
    "opo": "opo",
    "reinforce++": "reinforce_plus_plus",
    "reinforce++-baseline": "reinforce_plus_plus_baseline",
}


def verl_advantages(name: str, rewards_PG, lengths_PG, vectorised: bool = False) -> torch.Tensor:
    """verl's estimate of every token, (rows, tokens), from rewards at the last token of each response."""
    lengths = lengths_PG.flatten()
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(rewards_PG)
    rewards = torch.zeros_like(mask)
    rewards[torch.arange(len(lengths)), lengths - 1] = rewards_PG.flatten()
    index = np.repeat(np.arange(len(rewards_PG)), rewards_PG.shape[1]).astype(object)
    arguments = {} if name == "reinforce++" else {"index": index}
    if VERL_NAMES[name] == "grpo":
        arguments["norm_adv_by_std_in_grpo"] = name == "grpo"
    estimator = core_algos.get_adv_estimator_fn(VERL_NAMES[name] + "_vectorized" * vectorised)
    return estimator(token_level_rewards=rewards, response_mask=mask, config=AlgoConfig(gamma=1.0), **arguments)[0]


def our_advantages(name: str, rewards_PG, lengths_PG) -> torch.Tensor:
    lengths = lengths_PG.flatten()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return ADVANTAGES[name](rewards_PG, lengths_PG).flatten()[:, None] * mask


@st.composite
def rollouts(draw):
    """(rewards, lengths), (prompts, group): groups of at least two; binary or real rewards, not all equal."""
    shape, source = (draw(st.integers(1, 4)), draw(st.integers(2, 6))), torch.Generator().manual_seed(draw(seeds))
    rewards = torch.randn(shape, generator=source, dtype=torch.float64)
    if draw(st.booleans()):
        rewards = (rewards > 0).double()
        rewards[0, 0] = 1 - rewards[-1, -1]
    return rewards, torch.randint(1, WIDTH, shape, generator=source)


@pytest.mark.parametrize("name", sorted(VERL_NAMES))
@given(rollouts())
def test_advantages_are_those_of_verl(name, rollout):
    ours = our_advantages(name, *rollout)
    torch.testing.assert_close(ours, verl_advantages(name, *rollout), rtol=1e-6, atol=1e-6)


@given(rollouts())
def test_rloo_is_verls_vectorised_one_too(rollout):
    ours = our_advantages("rloo", *rollout)
    torch.testing.assert_close(ours, verl_advantages("rloo", *rollout, vectorised=True), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "verl"), [("grpo", 3 / (1 + 1e-6)), ("dr-grpo", 3), ("rloo", 3), ("opo", 3)])
def test_a_group_of_one_gets_0_in_ours_and_its_reward_in_verl(name, verl):
    rewards, lengths = torch.tensor([[3.0], [3.0]], dtype=torch.float64), torch.tensor([[2], [1]])
    assert not our_advantages(name, rewards, lengths).any()
    assert verl_advantages(name, rewards, lengths)[:, 0].tolist() == pytest.approx([verl, verl])


def test_a_group_of_one_is_whitened_reward_in_verls_reinforce_plus_plus_baseline_and_0_in_ours():
    rewards, lengths = torch.tensor([[3.0], [1.0]], dtype=torch.float64), torch.tensor([[2], [1]])
    assert not our_advantages("reinforce++-baseline", rewards, lengths).any()
    verl = verl_advantages("reinforce++-baseline", rewards, lengths)
    torch.testing.assert_close(verl, verl_advantages("reinforce++", rewards, lengths))
    assert verl.any()


@pytest.mark.parametrize(("name", "reward", "group"), [("grpo", 0.1, 7), ("dr-grpo", 0.1, 7), ("reinforce++", 0.1, 7)])
def test_equal_rewards_give_exactly_0_in_ours_and_rounding_noise_in_verl(name, reward, group):
    rewards, lengths = torch.full((1, group), reward), torch.full((1, group), 3)
    assert not our_advantages(name, rewards, lengths).any()
    noise = verl_advantages(name, rewards, lengths).abs().max()
    assert 0 < noise < 0.01


def test_a_response_without_a_token_is_refused_by_ours_and_taken_by_verl():
    rewards, lengths = torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 2]])
    for name in ("opo", "reinforce++"):
        with pytest.raises(ValueError, match="a response has no token"):
            ADVANTAGES[name](rewards, lengths)
        assert verl_advantages(name, rewards, lengths).isfinite().all()


def test_one_token_in_all_is_0_in_ours_and_refused_by_verls_whitening():
    rewards, lengths = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.long)
    assert not our_advantages("reinforce++", rewards, lengths).any()
    with pytest.raises(ValueError, match="division by zero"):
        verl_advantages("reinforce++", rewards, lengths)
