"""What a step leaves out: gradients of responses without an advantage, and sums that nothing reads."""

import pytest
import torch
from small import small_trainer

from steer_core.interventions import INTERVENTIONS
from steer_core.training import loss_terms

SETTINGS = {
    "steer": ("optimizer.micro_batch_sequences=4",),
    "kl-cov": ("intervention.share=0.1",),
    "clip-cov": ("intervention.low=0", "intervention.share=0.1"),
    "stare": ("intervention.target=9",),
    "adaptive-entropy-loss": ("intervention.target=0.5",),
    "entrocraft": ("intervention.target=9",),
    "ce-gppo": ("algorithm.clip_low=0.01", "algorithm.clip_high=0.01"),
    "steer-control": ("intervention.control=uniform",),
}
ALL = tuple(sorted({"none", *INTERVENTIONS}))


def batches(trainer, dead=(0, 2)):
    """The mini-batches of a rollout whose groups `dead` have no advantage."""
    rollout = trainer.sample(1).rollout
    group = trainer.config.rollout.responses
    old = trainer.score_rollout(rollout)
    advantages_B = torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0)).to(old.entropy)
    for place in dead:
        advantages_B[place * group : (place + 1) * group] = 0
    return list(trainer.batches(rollout, old, advantages_B))


def steps(trainer, everything, monkeypatch):
    """What two optimiser steps leave: weights, and the log of every token."""
    with monkeypatch.context() as patch:
        if everything:
            patch.setattr(
                loss_terms.ActiveIntervention, "learnt_rows", lambda self, part: list(range(len(part.mask_BT)))
            )
        log = trainer.optimizer_steps(batches(trainer), 1).log
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]), log


@pytest.mark.parametrize("method", ALL)
def test_no_method_steps_or_logs_otherwise_for_it(tmp_path, monkeypatch, method):
    settings = ("model.dtype=float64", f"intervention.name={method}", *SETTINGS.get(method, ()))
    (ours, log), (plain, plain_log) = (
        steps(small_trainer(tmp_path / name, *settings), everything, monkeypatch)
        for name, everything in (("some", False), ("all", True))
    )
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    seen = INTERVENTIONS[method]().sees_without_advantage
    kept = torch.ones_like(log["lambda"], dtype=torch.bool) if seen else log["advantage"] != 0
    for name, values in log.items():
        # means over all tokens; a token of smallest weight that ERC would have masked, had it looked
        if seen or (name, method) not in {("covariance", method), ("most_damped", "erc")}:
            near = {"rtol": 1e-7, "atol": 1e-10, "msg": lambda m, n=name: f"{n}: {m}"}
            torch.testing.assert_close(values[kept], plain_log[name][kept], **near)
    assert seen or (log["ratio"][~kept] == 1).sum() > 100


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        (["intervention.name=none"], False),
        (["intervention.name=w-reinforce"], False),
        (["intervention.name=entrocraft"], False),
        (["intervention.name=steer"], False),
        (["intervention.name=steer", "intervention.normaliser=quantile", "intervention.scope=rollout"], False),
        (["intervention.name=steer", "intervention.form=covariance"], True),
        (["intervention.name=fork-tokens"], True),
        (["intervention.name=clip-cov"], True),
        (["intervention.name=entropic"], True),
        (["intervention.name=influence"], True),
        (["intervention.name=entropy-loss"], True),
    ],
)
def test_a_response_without_an_advantage_is_scored_again_only_for_a_method_that_looks_at_it(
    tmp_path, monkeypatch, settings, seen
):
    trainer = small_trainer(tmp_path, *settings)
    part, read, score = batches(trainer, dead=(0,))[0][0], [], loss_terms.score
    assert trainer.update.active.method.sees_without_advantage == seen

    def spy(model, sequences, *others):
        read.append(len(sequences.response_ids_BT))
        return score(model, sequences, *others)

    monkeypatch.setattr(loss_terms, "score", spy)
    stats = trainer.update.active.score(part)
    group, count = trainer.config.rollout.responses, len(part.mask_BT)
    assert sum(read) == (count if seen else count - group)
    if not seen:
        assert torch.equal(stats.logprob[:group].detach(), part.old.logprob[:group])
    with torch.no_grad():
        trainer.update.active.score(part)
    assert sum(read) == 2 * (count if seen else count - group)


@pytest.mark.parametrize(
    ("method", "learns"),
    [
        ("none", False),
        ("steer", False),
        ("influence", False),
        ("entropy-advantage", False),
        ("entrocraft", False),
        ("erc", False),
        ("ce-gppo", False),
        ("entropy-loss", True),
        ("kl-cov", True),
    ],
)
def test_rows_without_an_advantage_have_a_gradient_only_where_the_method_gives_them_one(tmp_path, method, learns):
    trainer = small_trainer(tmp_path, f"intervention.name={method}")
    active, part = trainer.update.active, batches(trainer, dead=(0,))[0][0]
    assert active.method.learns_without_advantage == learns
    group, count = trainer.config.rollout.responses, len(part.mask_BT)
    live = list(range(count)) if learns else list(range(group, count))
    assert active.learnt_rows(part) == live
    stats = active.score(part)
    gradient_BT = torch.autograd.grad(stats.logprob.sum(), stats.logprob)[0]
    assert gradient_BT.shape == part.mask_BT.shape
    leaf = trainer.model.get_input_embeddings().weight
    still = torch.zeros(count, dtype=torch.bool)
    still[[row for row in range(count) if row not in live]] = True
    if still.any():
        moved = torch.autograd.grad(stats.logprob[still].sum() + 0 * stats.logprob.sum(), leaf)[0]
        assert not moved.any()


def test_the_backward_pass_reads_the_tokens_of_learnt_rows_alone(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path, "intervention.name=fork-tokens")
    part, read, score = batches(trainer, dead=(0,))[0][0], [], loss_terms.score

    def spy(model, sequences, *others):
        read.append((torch.is_grad_enabled(), len(sequences.response_ids_BT)))
        return score(model, sequences, *others)

    monkeypatch.setattr(loss_terms, "score", spy)
    trainer.update.active.score(part)
    group, count = trainer.config.rollout.responses, len(part.mask_BT)
    assert sorted(read) == [(False, group), (True, count - group)]
    read.clear()
    with torch.no_grad():
        trainer.update.active.score(part)
    assert read == [(False, count)]


def test_a_micro_batch_without_any_advantage_still_makes_its_step(tmp_path):
    trainer = small_trainer(tmp_path, "intervention.name=steer")
    part = batches(trainer, dead=range(4))[0][0]
    assert trainer.update.active.learnt_rows(part) == [0]
    made = trainer.optimizer_steps([[part]], 1)
    assert made.norms == [0.0]
    assert set(made.log["ratio"].tolist()) == {1.0}  # the row that was scored too, or the split would show


@pytest.mark.parametrize(
    ("settings", "computed"),
    [
        (["train.probe_sequences=0"], False),
        (["train.probe_sequences=4"], True),
        (["train.probe_sequences=0", "intervention.name=steer", "intervention.form=exact"], True),
        (["train.probe_sequences=0", "intervention.name=steer"], False),
    ],
)
def test_the_square_sums_are_computed_where_something_reads_them(tmp_path, settings, computed):
    trainer = small_trainer(tmp_path, "train.rollouts=1", "evaluation.every=0", *settings)
    assert trainer.fit()
    assert ("entropy_change/exact" in trainer.run.read()[-1]) == computed
    assert "entropy_change/paper" in trainer.run.read()[-1]
