"""What a rollout logs, against what was measured or worked out beside it."""

import math

import pytest
import torch
from small import small_trainer

from steer_core.common.seeding import derive_seed
from steer_core.engines import make_optimizer
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.loss import REDUCTIONS, ClipRange, clip_indicator, reduce_loss
from steer_core.formulas.token_stats import token_stats
from steer_core.policy.sequences import Sequences
from steer_core.runs.responses import read
from steer_core.runs.rollouts import rollout_path
from steer_core.training.batch import MicroBatch
from steer_core.training.metrics import token_log, update_metrics


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What two rollouts of STEER log."""
    trainer = small_trainer(tmp_path_factory.mktemp("logged") / "run", "intervention.name=steer", "train.rollouts=2")
    trainer.fit()
    return trainer.run.read()


def optimizer_steps(trainer):
    """The mini-batches of one rollout, advantages from -1 to 1, and the log of their steps."""
    rollout = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
    batches = list(trainer.batches(rollout, trainer.score_rollout(rollout), torch.linspace(-1, 1, 16)))
    return batches, trainer.optimizer_steps(batches, 1).log


def test_logged_entropy_is_shannon_entropy_and_not_the_sampled_negative_log_prob(tmp_path):
    trainer = small_trainer(tmp_path / "a", "train.rollouts=1", "rollout.prompts=16")
    trainer.fit()
    row = trainer.run.read()[0]
    fresh = small_trainer(tmp_path / "b", "rollout.prompts=16")
    prompts = [p.prompt for p in fresh.problems_of(1)]
    rollout = fresh.sampler.generate(prompts, 4, fresh.config.rollout, derive_seed(0, "rollout", 1))
    ids = torch.cat([rollout.prompt_ids_BP, rollout.response_ids_BT], 1)
    mask = torch.cat([rollout.prompt_mask_BP, rollout.response_mask_BT.long()], 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = fresh.model(ids, attention_mask=mask, position_ids=positions).logits
    first = rollout.prompt_ids_BP.shape[1]
    logp = logits[:, first - 1 : -1].log_softmax(-1)
    keep = rollout.response_mask_BT.bool()
    entropy = -(logp.exp() * logp).sum(-1)[keep].mean()
    nll = -logp.gather(-1, rollout.response_ids_BT[..., None]).squeeze(-1)[keep].mean()
    assert row["entropy/policy"] == pytest.approx(float(entropy), abs=1e-5)
    assert row["entropy/sampled_nll"] == pytest.approx(float(nll), abs=1e-5)
    assert abs(row["entropy/policy"] - row["entropy/sampled_nll"]) > 1e-4


def test_quadrants_of_predicted_entropy_change_add_up_to_its_total(logged):
    for row in logged:
        parts = [value for key, value in row.items() if key.startswith("entropy_change/paper/")]
        assert len(parts) == 4
        assert sum(parts) == pytest.approx(row["entropy_change/paper"], rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("method", ["none", "steer", "entropy-advantage"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_tabular_policys_mean_entropy_changes_by_the_sum_of_the_logged_exact_estimate(tmp_path, reduction, method):
    """A free logit at every (state, token) and one SGD step: measured against `token_log`."""
    settings = ("optimizer.name=sgd", "optimizer.learning_rate=2e-3", "optimizer.learning_rate_factor=0.5")
    trainer = small_trainer(
        tmp_path / "a", *settings, f"algorithm.reduction={reduction}", f"intervention.name={method}"
    )
    generator = torch.Generator().manual_seed(0)
    sequences, width, size = 6, 9, 12
    logits = torch.nn.Parameter(torch.randn(sequences, width, size, generator=generator, dtype=torch.float64) * 2)
    noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64) * 0.2
    tokens = torch.multinomial(logits.detach().softmax(-1).view(-1, size), 1, generator=generator).view(sequences, -1)
    mask = torch.arange(width) < torch.tensor([9, 1, 4, 7, 3, 9])[:, None]
    advantages = torch.randn(sequences, 1, generator=generator, dtype=torch.float64).expand(-1, width)
    optimizer = make_optimizer(torch.nn.ParameterList([logits]), trainer.config.optimizer)

    stats = token_stats(logits, tokens)
    new, old = stats.detach(), token_stats(logits.detach() + noise, tokens)
    prompts = torch.ones(sequences, 1, dtype=torch.long)
    batch = MicroBatch(Sequences(prompts, prompts, tokens, mask), old, advantages, torch.zeros(mask.shape))
    count = trainer.update.active.denominator([batch])
    treatment = trainer.update.active.loss_terms([new], [batch], count)[0]
    assert (float(treatment.weights.min()) < 0.8) == (method == "steer")
    assert torch.equal(treatment.advantages, advantages[mask]) == (method != "entropy-advantage")
    shares = trainer.update.active.coefficients([batch], count)
    assert shares.dtype == torch.float64
    if reduction == "token-mean":
        assert torch.equal(shares, torch.full((states := int(mask.sum()),), 1 / states, dtype=torch.float64))
    reduce_loss(trainer.update.active.token_losses(stats, batch, treatment), mask, reduction, count).backward()
    optimizer.step()

    states = int(mask.sum())
    measured = float((token_stats(logits.detach(), tokens).entropy - new.entropy)[mask].mean())
    predicted = token_log(trainer.update.active, [new], [batch], [treatment], count, states)
    assert float(predicted["exact"].sum()) == pytest.approx(measured, rel=1e-3)
    assert len(predicted["exact"]) == states
    assert float(predicted["paper"].sum()) != pytest.approx(measured, rel=0.05)


def test_every_promised_metric_is_logged_and_finite(logged):
    promised = [
        "entropy/policy",
        "entropy/sampled_nll",
        "entropy_change/paper",
        "entropy_change/released",
        "entropy_change/exact",
        "lambda/q0",
        "lambda/q50",
        "lambda/q100",
        "lambda/mean",
        "lambda/share_within_1pct_of_1",
        "clip/high",
        "clip/low",
        "clip/dual",
        "ratio/q0",
        "ratio/q0.1",
        "ratio/q99.9",
        "ratio/q100",
        "reward/mean",
        "response/length",
        "grad_norm/mean",
        "time/sampling_tokens_per_second",
        "time/training_tokens_per_second",
    ]
    assert [name for name in promised for row in logged if not math.isfinite(row[name])] == []


@pytest.mark.parametrize("form", ["paper", "released"])
def test_most_damped_is_the_token_that_set_steers_maximum(tmp_path, form):
    trainer = small_trainer(tmp_path / "a", "intervention.name=steer", f"intervention.form={form}")
    batches, tokens = optimizer_steps(trainer)
    p, a, r = tokens["probability"], tokens["advantage"], tokens["ratio"]
    entropy, passes = tokens["entropy"], clip_indicator(r, a, trainer.update.active.clip)
    omega = (passes * r * a * p * (1 - p) * (p.log() + entropy)).abs()
    if form == "released":  # A / p_old = A r / p, no indicator, and the entropy of the policy that sampled
        sampled = torch.cat([part.old.entropy[part.mask_BT] for batch in batches for part in batch])
        omega = (a * r * (1 - p) * (p.log() + sampled)).abs()
    counts = [sum(int(part.mask_BT.sum()) for part in batch) for batch in batches]
    largest = [int(size.argmax()) + start for size, start in zip(omega.split(counts), (0, counts[0]), strict=True)]
    assert tokens["most_damped"].nonzero().squeeze(-1).tolist() == largest
    told = update_metrics(tokens, trainer.update.active.clip, list(ENTROPY_CHANGE), form)
    for name in ("probability", "entropy", "advantage", "ratio"):
        wanted = float(tokens[name][largest].abs().mean())
        assert told[f"lambda/most_damped/{name}"] == pytest.approx(wanted, rel=1e-6)


def test_a_step_that_damps_no_token_names_none_as_most_damped(tmp_path):
    _, tokens = optimizer_steps(small_trainer(tmp_path / "a"))
    assert not tokens["most_damped"].any()
    told = update_metrics(tokens, ClipRange(), list(ENTROPY_CHANGE), "paper")
    assert not [name for name in told if "most_damped" in name]


def test_of_the_first_problems_a_run_keeps_the_whole_group_and_of_the_others_the_first_response(tmp_path):
    settings = ("intervention.name=steer", "train.rollouts=1", "train.logged_responses=2", "train.logged_groups=1")
    trainer = small_trainer(tmp_path / "run", *settings)
    trainer.fit()
    rows = read(rollout_path(trainer.run.path, 1))
    group, first, second = trainer.config.rollout.responses, *(p.id for p in trainer.problems_of(1)[:2])
    assert [(row.problem, row.sample) for row in rows] == [(first, i) for i in range(group)] + [(second, 0)]
    assert len({row.prompt for row in rows}) == 2
    assert all(len(row.lambda_) == len(row.tokens) for row in rows)
