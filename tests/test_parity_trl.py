"""TRL's own GRPO loss against ours: equal to 1e-6 in value and gradient, or a difference that a test is named for.

The loss is that of a real `GRPOTrainer`; only the log-probs and entropies that its model would give are
handed to it, so that the gradient with respect to them can be read.
"""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from steer_core.formulas.loss import ClipRange, clipped_surrogate, denominator, reduce_loss
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Tokens
from steer_core.interventions.fork_tokens import ForkTokens
from steer_core.policy.model import load_policy

ROWS, WIDTH, LONGEST = 6, 9, 12
REDUCTION = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "dapo": "token-mean",
}

seeds = st.integers(0, 10**6)
losses = st.sampled_from(sorted(REDUCTION))
clips = st.builds(
    ClipRange, low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.6), dual=st.one_of(st.none(), st.floats(1.7, 5))
)


class Sample:
    """Ragged log-probs, entropies, advantages and a mask, (B, T) in float64; new and old policies apart."""

    def __init__(self, seed: int, rows: int = ROWS, empty_rows: int = 0, drift: float = 0.4):
        source = torch.Generator().manual_seed(seed)
        draw = lambda: torch.randn(rows, WIDTH, generator=source, dtype=torch.float64)  # noqa: E731
        self.new = (-1.5 + 0.8 * draw()).clamp(max=-1e-3).requires_grad_()
        self.old = (self.new.detach() + drift * draw()).clamp(max=-1e-3)
        self.old[0] = self.new.detach()[0]  # ratio 1, where both branches of the minimum tie
        self.entropy = draw().abs().float()  # TRL takes its quantile in float32
        self.advantages = draw()
        lengths = torch.randint(1, WIDTH + 1, (rows,), generator=source)
        lengths[:empty_rows] = 0
        self.mask = torch.arange(WIDTH) < lengths[:, None]

    def ours(self, clip: ClipRange, mode: str, count: int | None = None, weights=1.0):
        """(loss, gradient with respect to the new log-probs); count: the reduction's denominator."""
        surrogate = weights * clipped_surrogate(self.new, self.old, self.advantages, clip)
        count = denominator(self.mask, mode, LONGEST) if count is None else count
        loss = reduce_loss(surrogate, self.mask, mode, count)
        return loss.item(), torch.autograd.grad(loss, self.new)[0]

    def fork_weights(self, share: float) -> torch.Tensor:
        """Our weights of fork tokens, (B, T), 0 where masked."""
        new, entropy, old, advantages = (
            x.detach()[self.mask] for x in (self.new, self.entropy, self.old, self.advantages)
        )
        stats, before = TokenStats(new, entropy, new, new), TokenStats(old, old, old, old)
        tokens = Tokens(stats, before, advantages, ClipRange(), torch.rand_like(new), {})
        weights = ForkTokens(share=share).loss_terms(tokens).weights
        return torch.zeros_like(self.old).masked_scatter(self.mask, weights)


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    """loss(sample, type, clip, ...): (loss, gradient) of a real trainer on the sample."""
    policy = load_policy("embedded")
    settings = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        max_completion_length=LONGEST,
        num_generations=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    data = Dataset.from_dict({"prompt": ["1"] * 4})
    trainer = GRPOTrainer(
        policy.model,
        lambda completions, **_: [0.0] * len(completions),
        settings,
        data,
        processing_class=policy.tokenizer,
    )
    trainer.model.train()

    def loss(sample: Sample, kind: str, clip: ClipRange, items: int | None = None, splits=(1, 1), share: float = 1.0):
        """items: tokens of the generation batch. splits: micro-batches of an optimiser step, of a generation batch."""
        trainer.loss_type, trainer.top_entropy_quantile = kind, share
        trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta = clip.low, clip.high, clip.dual
        trainer.current_gradient_accumulation_steps, trainer.args.steps_per_generation = splits
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (sample.new, sample.entropy, None)
        ids = torch.zeros(sample.mask.shape, dtype=torch.long)
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1] + 1,
            "completion_ids": ids,
            "completion_mask": sample.mask.long(),
            "advantages": sample.advantages,
            "old_per_token_logps": sample.old,
            "num_items_in_batch": torch.tensor(float(sample.mask.sum() if items is None else items)),
        }
        value = trainer._compute_loss(trainer.model, inputs)
        return value.item(), torch.autograd.grad(value, sample.new)[0]

    return loss


def assert_same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6, abs=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-6)


@given(seed=seeds, kind=losses, clip=clips)
def test_loss_types_are_our_clipped_loss_and_its_reductions(trl, seed, kind, clip):
    sample = Sample(seed)
    assert_same(sample.ours(clip, REDUCTION[kind]), trl(sample, kind, clip))


@pytest.mark.parametrize("seed", range(3))
def test_delta_is_the_dual_clip(trl, seed):
    sample = Sample(seed, drift=1.5)
    clip = ClipRange(0.2, 0.28, 1.5)
    ours = sample.ours(clip, "token-mean")
    assert_same(ours, trl(sample, "dapo", clip))
    assert ours[0] < sample.ours(ClipRange(0.2, 0.28, None), "token-mean")[0] - 1e-3


def test_a_delta_below_the_upper_clip_bound_swaps_the_two_in_trl_and_not_in_ours(trl):
    sample, clip = Sample(1, drift=1.5), ClipRange(0.2, 0.5, 1.2)
    swapped = ClipRange(0.2, 0.2, 1.5)  # in TRL delta bounds positive advantages, 1 + epsilon_high negative ones
    assert_same(sample.ours(swapped, "token-mean"), trl(sample, "dapo", clip))
    assert abs(sample.ours(clip, "token-mean")[0] - sample.ours(swapped, "token-mean")[0]) > 1e-3


@given(seed=seeds, kind=losses, steps=st.integers(2, 3))
def test_micro_batches_of_equal_size_add_up_to_our_mini_batch(trl, seed, kind, steps):
    parts = [Sample(seed + i) for i in range(steps)]
    for part in parts[1:]:  # bnpo and dapo differ where the numbers of tokens do: see below
        part.mask = parts[0].mask
    mode, clip = REDUCTION[kind], ClipRange()
    count = sum(denominator(part.mask, mode, LONGEST) for part in parts)
    items = sum(int(part.mask.sum()) for part in parts)
    for part in parts:
        assert_same(part.ours(clip, mode, count), trl(part, kind, clip, items, splits=(steps, steps)))


@given(seed=seeds)
def test_dapo_is_the_token_mean_of_a_step_however_ragged_its_micro_batches(trl, seed):
    parts = [Sample(seed), Sample(seed + 1), Sample(seed + 2, rows=2)]
    count = sum(int(part.mask.sum()) for part in parts)
    for part in parts:
        assert_same(part.ours(ClipRange(), "token-mean", count), trl(part, "dapo", ClipRange(), count, splits=(3, 3)))


def test_bnpo_averages_token_means_of_micro_batches_and_ours_is_the_token_mean_of_the_step(trl):
    parts = [Sample(0), Sample(1, rows=2)]
    counts = [int(part.mask.sum()) for part in parts]
    theirs = [trl(part, "bnpo", ClipRange(), splits=(2, 2))[0] for part in parts]
    ours = [part.ours(ClipRange(), "token-mean", sum(counts))[0] for part in parts]
    assert abs(sum(ours) - sum(theirs)) > 1e-3
    assert ours == pytest.approx([2 * x * n / sum(counts) for x, n in zip(theirs, counts, strict=True)])


def test_dapo_divides_by_a_steps_share_of_the_generation_batch_and_ours_by_the_steps_own_tokens(trl):
    first, second = Sample(0), Sample(1, rows=2)  # one optimiser step each
    counts = [int(part.mask.sum()) for part in (first, second)]
    theirs = trl(first, "dapo", ClipRange(), sum(counts), splits=(1, 2))[0]
    ours = first.ours(ClipRange(), "token-mean")[0]
    assert theirs == pytest.approx(ours * counts[0] / (sum(counts) / 2), rel=1e-6)
    assert abs(theirs - ours) > 1e-3


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_rows_without_a_token_count_as_sequences_in_trl_and_not_in_ours(trl, kind):
    sample = Sample(2, empty_rows=2)
    ours, theirs = sample.ours(ClipRange(), REDUCTION[kind]), trl(sample, kind, ClipRange())
    assert theirs[0] == pytest.approx(ours[0] * (ROWS - 2) / ROWS, rel=1e-6)


@pytest.mark.parametrize("kind", sorted(REDUCTION))
def test_without_a_response_token_both_are_0(trl, kind):
    sample = Sample(0, empty_rows=ROWS)
    assert trl(sample, kind, ClipRange())[0] == sample.ours(ClipRange(), REDUCTION[kind])[0] == 0


def test_the_log_ratio_is_bounded_at_20_in_ours_only(trl):
    sample = Sample(0)
    sample.advantages, sample.old = -sample.advantages.abs(), sample.new.detach() - 25
    ours, theirs = sample.ours(ClipRange(dual=None), "token-mean"), trl(sample, "dapo", ClipRange(dual=None))
    assert theirs[0] == pytest.approx(ours[0] * torch.tensor(5.0).exp().item(), rel=1e-6)
    assert not ours[1].any()
    assert theirs[1].any()


@given(seed=seeds, share=st.floats(0.05, 0.95), kind=losses)
def test_the_top_entropy_mask_is_our_fork_tokens(trl, seed, share, kind):
    sample = Sample(seed)
    weights = sample.fork_weights(share)
    ours = sample.ours(ClipRange(), REDUCTION[kind], weights=weights)
    assert_same(ours, trl(sample, kind, ClipRange(), share=share))
    assert 0 < weights.sum() <= sample.mask.sum()


def test_the_top_entropy_mask_keeps_the_tokens_that_it_drops_in_the_denominator(trl):
    sample = Sample(3)
    weights = sample.fork_weights(0.2)
    theirs = trl(sample, "dapo", ClipRange(), share=0.2)[0]
    kept = SimpleNamespace(all=int(sample.mask.sum()), top=int(weights.sum()))
    only = sample.ours(ClipRange(), "token-mean", kept.top, weights)[0]
    assert kept.top < kept.all
    assert theirs == pytest.approx(only * kept.top / kept.all, rel=1e-6)


def test_the_top_entropy_quantile_is_a_micro_batchs_in_trl_and_a_steps_in_ours(trl):
    low, high = Sample(4), Sample(5)
    high.entropy = high.entropy + 10
    whole = torch.cat([low.entropy[low.mask], high.entropy[high.mask]])
    assert ForkTokens(share=0.2).scope == "step"
    assert low.entropy.max() < whole.quantile(0.8)  # over the step, no token of the first micro-batch counts
    items = len(whole)
    assert trl(low, "dapo", ClipRange(), items, splits=(2, 2), share=0.2)[1].any()
