"""The training step: what changes it and what must not."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small import grade_by, small_trainer, without_time

from steer_core.common.errors import SteerError
from steer_core.formulas.advantages import ADVANTAGES
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.formulas.loss import REDUCTIONS
from steer_core.rewards import Verdict
from steer_core.runs.responses import read
from steer_core.runs.rollouts import rollout_path


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same_weights(a, b, equal=True):
    same = all(torch.equal(a[name], b[name]) for name in a)
    assert same == equal


def update_once(trainer, rewards=None):
    """One rollout's updates from the same sampled responses; the weights after them and the readings."""
    rollout = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
    advantages = torch.linspace(-1, 1, len(rollout.texts)) if rewards is None else rewards
    old = trainer.score_rollout(rollout)
    readings, norms, _ = trainer.optimizer_steps(list(trainer.batches(rollout, old, advantages)), 1)
    return weights_of(trainer), readings, norms


def test_responses_that_are_not_judged_are_counted_and_noted_and_a_broken_grader_ends_the_run(tmp_path):
    trainer = small_trainer(tmp_path / "run", "train.rollouts=1", "evaluation.every=0")
    slow, broken = Verdict("timed out", detail="no answer"), Verdict("crashed", detail="no sympy")
    trainer.task.grader = SimpleNamespace(
        name="scripted", grade=lambda references, texts: [slow, broken, *[Verdict("right")] * (len(texts) - 2)]
    )
    trainer.fit()
    (row,), (note,) = trainer.run.read(), trainer.run.read("notes.jsonl")[:1]
    assert (row["reward/unjudged"], row["reward/mean"]) == (2 / 16, 14 / 16)
    assert note["note"].startswith("2 of 16 responses were not judged, their reward is 0 (timed out: no answer)")
    trainer.task.grader = SimpleNamespace(name="scripted", grade=lambda references, texts: [broken] * len(texts))
    with pytest.raises(SteerError, match=r"rollout 2: the grader crashed on every response \(crashed: no sympy\)"):
        trainer.rollout_and_update(2)


@pytest.mark.parametrize("form", list(ENTROPY_CHANGE))
def test_every_form_of_steer_changes_the_update(tmp_path, form):
    grpo, _, _ = update_once(small_trainer(tmp_path / "a"))
    steer, readings, _ = update_once(
        small_trainer(tmp_path / "b", "intervention.name=steer", f"intervention.form={form}")
    )
    assert_same_weights(grpo, steer, equal=False)
    assert readings["lambda"].min() == pytest.approx(0.7)
    assert readings["lambda"].max() <= 1


def test_same_seed_gives_the_same_metrics_twice_and_another_seed_others(tmp_path):
    seeds = (("a", 1), ("b", 1), ("c", 2))
    runs = [small_trainer(tmp_path / name, f"train.seed={seed}", "train.rollouts=2") for name, seed in seeds]
    for trainer in runs:
        assert trainer.fit()
    metrics = [without_time(trainer.run.read()) for trainer in runs]
    assert metrics[0] == metrics[1]
    assert metrics[0][0]["entropy/policy"] != metrics[2][0]["entropy/policy"]
    assert without_time(runs[0].run.read("evaluations.jsonl")) == without_time(runs[1].run.read("evaluations.jsonl"))
    assert_same_weights(weights_of(runs[0]), weights_of(runs[1]))


def test_scope_rollout_divides_by_the_maximum_of_the_policy_that_sampled(tmp_path):
    trainer = small_trainer(tmp_path / "a", "intervention.name=steer", "intervention.scope=rollout")
    rollout = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
    old = trainer.score_rollout(rollout)
    advantages = torch.linspace(-1, 1, len(rollout.texts))
    readings, _, _ = trainer.optimizer_steps(list(trainer.batches(rollout, old, advantages)), 1)
    p, a, mask = old.logprob.exp(), advantages[:, None], rollout.response_mask_BT.bool()
    omega = (a * p * (1 - p) * (old.logprob + old.entropy)).abs()
    assert trainer.update.active.memory == {"normaliser": pytest.approx(float(omega[mask].max()), rel=1e-5)}
    first = mask.clone()  # the first step is that of the policy that sampled
    first[8:] = False
    wanted = torch.exp(math.log(0.7) * omega / omega[mask].max())[first]
    torch.testing.assert_close(readings["lambda"][: len(wanted)], wanted, rtol=0, atol=1e-5)


def test_equal_rewards_give_no_gradient_no_nan_and_a_note(tmp_path):
    trainer = small_trainer(tmp_path / "a", "intervention.name=steer", "train.rollouts=2")
    grade_by(trainer, lambda response: False)
    before = weights_of(trainer)
    assert trainer.fit()
    assert_same_weights(before, weights_of(trainer))
    for row in trainer.run.read():
        assert row["grad_norm/max"] == 0
        assert row["lambda/q0"] == 1
        assert row["reward/groups_without_signal"] == 1
        assert all(math.isfinite(value) for value in row.values())
    notes = trainer.run.read("notes.jsonl")
    assert [note["step"] for note in notes] == [1, 2]
    assert "equal" in notes[0]["note"]


@pytest.mark.parametrize(
    ("advantage", "message"),
    [
        (float("nan"), r"intervention.name: none makes advantages that are not finite; .*learning_rate"),
        (float("inf"), r"intervention.name: none makes advantages that are not finite; .*learning_rate"),
    ],
)
def test_what_is_not_finite_is_refused_before_it_reaches_the_weights(tmp_path, advantage, message):
    trainer = small_trainer(tmp_path / "a")
    before = weights_of(trainer)
    with pytest.raises(SteerError, match=message):
        update_once(trainer, torch.full((16,), advantage))
    assert_same_weights(before, weights_of(trainer))


def test_a_step_whose_gradients_are_not_finite_is_skipped_and_counted_and_too_many_in_a_row_end_the_run(tmp_path):
    trainer = small_trainer(tmp_path / "a", "optimizer.skipped_steps=3", "train.probe_sequences=0")
    before, huge = weights_of(trainer), torch.full((16,), 1e38)
    *_, norms = update_once(trainer, huge)
    assert norms == [None, None]
    assert_same_weights(before, weights_of(trainer))
    assert not trainer.engine.optimizer.state_dict()["state"]
    assert trainer.update.skipped == 2
    *_, norms = update_once(trainer, torch.linspace(-1, 1, 16))
    assert all(norm > 0 for norm in norms)
    assert trainer.update.skipped == 0
    before = weights_of(trainer)
    update_once(trainer, huge)
    with pytest.raises(
        SteerError, match=r"gradients of 4 optimiser steps in a row .*skipped_steps 3.*start again in another folder"
    ):
        update_once(trainer, huge)
    assert_same_weights(before, weights_of(trainer))


def test_skipped_steps_are_logged(tmp_path):
    trainer = small_trainer(tmp_path / "a", "train.rollouts=1", "evaluation.every=0", "train.probe_sequences=0")
    backward, calls = trainer.engine.backward, []

    def spoilt(loss, last):
        calls.append(last)
        backward(loss * (float("nan") if len(calls) == 1 else 1.0), last)

    trainer.engine.backward = spoilt
    grade_by(trainer, lambda response: len(response) % 2 == 0)
    trainer.fit()
    (row,) = trainer.run.read()
    assert row["steps/skipped"] == 1
    assert all(math.isfinite(value) for value in row.values())


def test_log_probs_that_turn_nan_after_sampling_are_refused_before_the_loss(tmp_path):
    trainer = small_trainer(tmp_path / "a")
    rollout = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
    batches = list(
        trainer.batches(
            rollout,
            trainer.score_rollout(rollout),
            torch.linspace(-1, 1, 16),
        )
    )
    with torch.no_grad():
        next(trainer.model.parameters())[5, 0] = float("nan")
    with pytest.raises(
        SteerError,
        match=r"rollout 7: the log-probs or entropies are not finite .*learning_rate.*start again in another",
    ):
        trainer.optimizer_steps(batches, 7)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_step_does_not_depend_on_the_order_of_sequences_within_a_mini_batch(tmp_path, reduction):
    order = [*torch.randperm(8, generator=torch.Generator().manual_seed(1)).tolist(), *range(15, 7, -1)]
    results = []
    for name, rows in (("a", list(range(16))), ("b", order)):
        overrides = (f"algorithm.reduction={reduction}", "intervention.name=steer", "optimizer.micro_batch_sequences=3")
        trainer = small_trainer(tmp_path / name, *overrides, "optimizer.name=sgd", "optimizer.learning_rate=0.1")
        rollout = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
        tensors = {key: value[rows] for key, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
        rollout = replace(rollout, **tensors)
        before = weights_of(trainer)
        batches = list(
            trainer.batches(
                rollout,
                trainer.score_rollout(rollout),
                torch.linspace(-1, 1, 16)[rows],
            )
        )
        _, norms, _ = trainer.optimizer_steps(batches, 1)
        results.append((weights_of(trainer), norms))
        assert_same_weights(before, results[-1][0], equal=False)
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, atol=2e-6, rtol=0)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-4)


def test_an_epoch_visits_every_problem_once_and_the_next_in_another_order(tmp_path):
    trainer = small_trainer(tmp_path / "a", "task.train_problems=10")
    stream = [problem.id for step in range(1, 6) for problem in trainer.problems_of(step)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == sorted(problem.id for problem in trainer.problems)
    assert stream[:10] != stream[10:]


def test_methods_see_the_same_problems_at_one_seed(tmp_path):
    a = small_trainer(tmp_path / "a", "train.seed=4")
    b = small_trainer(tmp_path / "b", "train.seed=4", "intervention.name=steer", "optimizer.learning_rate=1e-5")
    assert a.problems_of(3) == b.problems_of(3)
    assert a.run.config.train.seed == 4


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_rollouts_advantages_are_those_of_its_rewards_and_lengths(tmp_path, monkeypatch, name):
    seen, estimate = [], ADVANTAGES[name]
    monkeypatch.setitem(
        ADVANTAGES, name, lambda *given, **told: seen.append((*given, told)) or estimate(*given, **told)
    )
    settings = ("rollout.prompts=2", "train.rollouts=1", "evaluation.every=0", "train.probe_sequences=0")
    trainer = small_trainer(tmp_path / "a", *settings, f"algorithm.advantage={name}", "algorithm.pass_k=2")
    verdicts = itertools.cycle([True, False, False])
    grade_by(trainer, lambda response: next(verdicts))
    assert trainer.fit()
    ((rewards_PG, lengths_PG, told),) = seen
    assert told == {"pass-at-k": {"k": 2}, "quantile": {"quantile": 0.4}}.get(name, {})
    assert rewards_PG.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]
    rows = read(rollout_path(trainer.run.path, 1))
    assert [len(row.logprob) for row in rows] == lengths_PG[:, 0].tolist()
    assert [row.advantage for row in rows] == estimate(rewards_PG, lengths_PG, **told)[:, 0].tolist()


def test_a_requested_stop_ends_after_the_rollout_in_hand_with_a_checkpoint(tmp_path):
    trainer = small_trainer(tmp_path / "a", "train.checkpoint_every=4")

    def stop(step, metrics):
        trainer.stop_requested = step == 3

    assert not trainer.fit(stop)
    assert [path.name for path in trainer.run.checkpoints.saved()] == ["step_000003"]
    assert trainer.run.read()[-1]["step"] == 3
