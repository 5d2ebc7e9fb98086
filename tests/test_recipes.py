"""What papers use beside the method: schedules, KL, several passes over a rollout, dynamic sampling, long responses."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from small import small_config, small_trainer, trainer_in, without_time
from transformers import get_scheduler

from steer_core.common.errors import SteerError
from steer_core.config.config import load_config
from steer_core.formulas.shaping import kl_estimate
from steer_core.planner.machine import Machine
from steer_core.planner.memory import memory
from steer_core.planner.shapes import shape_of
from steer_core.planner.times import step_time
from steer_core.runs.folder import RunFolder
from steer_core.training.data_order import rollout_problems
from steer_core.training.reference import shaped_rewards
from steer_core.training.resampling import with_signal
from steer_core.training.schedule import LearningRate

QUICK = ("evaluation.every=0", "train.rollouts=3", "train.probe_sequences=0", "train.checkpoint_every=1")
RECIPES = {
    "a schedule": ("optimizer.schedule=linear", "optimizer.warmup_steps=2"),
    "KL in the loss": ("algorithm.kl_coefficient=0.5",),
    "KL in the reward": ("algorithm.kl_coefficient=0.5", "algorithm.kl_in=reward", "algorithm.kl_estimator=k1"),
    "several passes": ("optimizer.repeats=2", "intervention.name=clip-cov"),
    "dynamic sampling": ("rollout.resample=2",),
    "long responses": ("algorithm.overlong_buffer=30", "algorithm.overlong_penalty=0.5"),
}


def rows_of(trainer):
    return without_time(trainer.run.read())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The log of a run without any of them."""
    trainer = small_trainer(tmp_path_factory.mktemp("plain"), *QUICK)
    trainer.fit()
    return rows_of(trainer)


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES)
def test_a_resumed_run_is_the_uninterrupted_one_and_differs_from_a_plain_one(overrides, plain, tmp_path):
    whole = small_trainer(tmp_path / "whole", *QUICK, *overrides)
    whole.fit()
    cut = small_trainer(tmp_path / "cut", *QUICK, *overrides)
    cut.stop_requested = True
    cut.fit()
    again = trainer_in(RunFolder.open(tmp_path / "cut"))
    again.resume()
    assert again.finished == 1
    again.fit()
    assert rows_of(again) == rows_of(whole)
    for mine, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert rows_of(whole) != plain


def test_what_is_off_logs_nothing(plain):
    names = {name for row in plain for name in row}
    assert not [
        name for name in names if name.startswith(("kl/", "resampled", "learning_rate", "reward/s", "reward/o"))
    ]


# --- schedules


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("constant_with_warmup", {}),
        ("linear", {}),
        ("cosine", {"num_cycles": 1}),
        ("polynomial", {"power": 2, "lr_end": 1e-5}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 3}),
    ],
)
def test_every_step_has_the_rate_that_transformers_scheduler_gives_it(name, settings):
    config = small_config(f"optimizer.schedule={name}", "optimizer.warmup_steps=3", "optimizer.repeats=2")
    config = replace(config, optimizer=replace(config.optimizer, schedule_settings=settings))
    rate, optimizer = LearningRate(config), torch.optim.SGD([torch.zeros(1)], lr=config.optimizer.step_size)
    theirs = get_scheduler(name, optimizer, 3, 16, settings)  # 4 rollouts of 2 steps, twice
    for rollout in range(1, 5):
        for step in range(4):
            assert rate.at(rollout, step) == theirs.get_last_lr()[0]
            optimizer.step()
            theirs.step()


def test_the_optimiser_steps_at_the_rate_and_a_warm_up_begins_with_none(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "optimizer.schedule=constant_with_warmup", "optimizer.warmup_steps=2")
    before = [p.clone() for p in trainer.model.parameters()]
    rates, step = [], trainer.engine.step

    def watched():
        rates.append(trainer.engine.optimizer.param_groups[0]["lr"])
        norm = step()
        if len(rates) == 1:
            assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
        return norm

    trainer.engine.step = watched
    trainer.fit()
    assert rates == [0.0, 0.5e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    assert [row["learning_rate"] for row in rows_of(trainer)] == [0.5e-3, 1e-3, 1e-3]


def test_a_schedule_stays_at_its_end():
    rate = LearningRate(small_config("optimizer.schedule=cosine", "optimizer.schedule_rollouts=2"))
    assert rate.at(1, 0) == 1e-3
    assert 0 < rate.at(2, 1) < 1e-3
    assert [rate.at(3, 0), rate.at(4, 1)] == [0, 0]


def test_a_run_whose_rate_falls_until_its_end_takes_no_other_length(tmp_path):
    run = RunFolder(tmp_path / "a", small_config("optimizer.schedule=linear")).start()
    with pytest.raises(SteerError, match=r"train\.rollouts: the learning rate of .* falls until the planned end"):
        run.plan(9)
    for overrides in (["optimizer.schedule=linear", "optimizer.schedule_rollouts=4"], []):
        open_end = RunFolder(tmp_path / str(len(overrides)), small_config(*overrides)).start()
        open_end.plan(9)
        assert open_end.config.train.rollouts == 9


# --- KL to a reference


def test_kl_to_the_model_that_the_run_began_from_is_0_at_first_and_grows(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "algorithm.kl_coefficient=1e-3")
    trainer.fit()
    kl = [row["kl/k3"] for row in rows_of(trainer)]
    assert kl[0] == 0 < min(kl[1:])
    assert not any(p.requires_grad for p in trainer.reference.policy.model.parameters())


def test_a_step_on_kl_alone_brings_the_policy_nearer_to_the_reference(tmp_path):
    settings = ("optimizer.name=sgd", "optimizer.learning_rate=1e-2", "algorithm.kl_coefficient=1")
    trainer = small_trainer(tmp_path, *QUICK, *settings, "algorithm.kl_estimator=k2")
    with torch.no_grad():
        for i, parameter in enumerate(trainer.model.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    sampled = trainer.sample(1)
    old, reference_BT = trainer.score_rollout(sampled.rollout), trainer.reference.logprobs(sampled.rollout)
    none_B, config = torch.zeros_like(sampled.rewards_B), trainer.config
    before = shaped_rewards(sampled, old, reference_BT, config)[1]["kl/k2"]
    for batch in trainer.batches(sampled.rollout, old, none_B, 1, sampled.places, reference_BT):
        trainer.update.step(batch, 100, 1)
    after = shaped_rewards(sampled, trainer.score_rollout(sampled.rollout), reference_BT, config)[1]["kl/k2"]
    assert 0 < after < before


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_loss_of_a_token_has_the_estimate_at_its_weight_beside_the_surrogate(estimator, tmp_path):
    settings = (f"algorithm.kl_estimator={estimator}", "algorithm.kl_coefficient=0.25", "intervention.name=steer")
    trainer = small_trainer(tmp_path, *QUICK, *settings)
    sampled = trainer.sample(1)
    old = trainer.score_rollout(sampled.rollout)
    reference_BT = old.logprob - 0.3
    batch, *_ = trainer.batches(sampled.rollout, old, sampled.rewards_B, 1, sampled.places, reference_BT)
    active, part = trainer.update.active, batch[0]
    terms = active.loss_terms([part.old], [part], 1)[0]
    with_kl, without = (active.token_losses(part.old, one, terms) for one in (part, replace(part, reference_BT=None)))
    expected = 0.25 * kl_estimate(part.old.logprob, part.reference_BT, estimator)
    torch.testing.assert_close((with_kl - without)[part.mask_BT], expected[part.mask_BT])


def test_a_response_without_an_advantage_learns_from_kl(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "algorithm.kl_coefficient=1")
    sampled = trainer.sample(1)
    old, none_B = trainer.score_rollout(sampled.rollout), torch.zeros_like(sampled.rewards_B)
    for reference_BT, rows in ((old.logprob - 1, 8), (None, 1)):
        batch, *_ = trainer.batches(sampled.rollout, old, none_B, 1, sampled.places, reference_BT)
        assert sum(len(trainer.update.active.learnt_rows(part)) for part in batch) == rows


def test_a_reward_loses_the_sum_of_its_tokens_estimates(tmp_path):
    settings = ("algorithm.kl_coefficient=0.5", "algorithm.kl_in=reward", "algorithm.kl_estimator=k1")
    trainer = small_trainer(tmp_path, *QUICK, *settings)
    sampled = trainer.sample(1)
    old = trainer.score_rollout(sampled.rollout)
    rewards_PG, told = shaped_rewards(sampled, old, old.logprob - 0.1, trainer.config)
    torch.testing.assert_close(rewards_PG, sampled.rewards_PG - 0.5 * 0.1 * sampled.lengths_PG)
    assert told["kl/k1"] == pytest.approx(0.1, rel=1e-4)
    (batch, *_) = trainer.batches(sampled.rollout, old, sampled.rewards_B, 1, sampled.places, old.logprob)
    assert batch[0].reference_BT is None


def test_the_plan_counts_the_reference_and_its_pass_and_every_pass_over_a_rollout():
    shape, machine = shape_of("embedded"), Machine(gpus=1)
    plain, held = load_config(None), load_config(None, ["algorithm.kl_coefficient=0.1"])
    weights = {moment: parts.get("reference weights") for moment, parts in memory(held, shape, machine).moments.items()}
    assert weights == dict.fromkeys(weights, 4.0 * shape.parameters)
    assert "reference weights" not in memory(plain, shape, machine).moments["rollout"]
    scoring = [step_time(config, shape, machine).parts["scoring"] for config in (plain, held)]
    assert scoring[1] == 2 * scoring[0]
    again = load_config(None, ["optimizer.repeats=3"])
    update = [step_time(config, shape, machine).parts["update"] for config in (plain, again)]
    assert update[1] == pytest.approx(3 * update[0])


# --- several passes over a rollout


def test_a_rollout_is_learnt_from_in_every_pass_with_the_policy_that_sampled(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "optimizer.repeats=3", "optimizer.learning_rate=1e-2")
    sampled = trainer.sample(1)
    old = trainer.score_rollout(sampled.rollout)
    batches = list(trainer.batches(sampled.rollout, old, sampled.rewards_B, 1, sampled.places))
    assert len(batches) == 6
    for first, later in zip(batches[:2], batches[4:], strict=True):
        assert [part.rows for part in first] == [part.rows for part in later]
        assert torch.equal(first[0].old.logprob, later[0].old.logprob)
        assert not torch.equal(first[0].draws_BT, later[0].draws_BT)
    trainer.fit()
    ratios = [row["ratio/q100"] for row in rows_of(trainer)]
    assert max(ratios) > 1.01


def test_a_closed_loop_is_shown_a_rollout_once(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "optimizer.repeats=2", "train.rollouts=1")
    shown, begin = [], trainer.update.active.begin_rollout
    trainer.update.active.begin_rollout = lambda batches, n: (shown.append(len(batches)), begin(batches, n))
    trainer.fit()
    assert shown == [2]


# --- dynamic sampling


def graded(rewards, group=2):
    """A stand-in of a graded rollout: its rewards, by which its groups are told apart."""
    return SimpleNamespace(rewards=rewards, problems=rewards)


def test_without_tries_a_rollout_is_sampled_once_and_nothing_is_told():
    calls = []
    found = with_signal(lambda attempt, places: calls.append((attempt, places)) or graded([0, 0]), [3], 0)
    assert (calls, found[1]) == ([(0, [3])], {})


def test_groups_without_signal_are_replaced_at_their_places_and_the_cost_is_told(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "rollout.resample=5", "rollout.responses=2")
    seen, generate = [], trainer.sampler.generate

    def counted(prompts, *others):
        seen.append((len(prompts), others[-1]))
        return generate(prompts, *others)

    trainer.sampler.generate = counted
    sampled = trainer.sample(1)
    told = sampled.resampled
    extra = sum(count for count, _ in seen[1:])
    assert seen[0] == (4, [0, 1, 2, 3])
    assert all(set(later) <= set(earlier) for (_, earlier), (_, later) in pairwise(seen))
    assert (told["resampled/tries"], told["resampled/responses"]) == (len(seen) - 1, 2 * extra)
    lacking = (sampled.rewards_PG == sampled.rewards_PG[:, :1]).all(-1).sum()
    assert told["resampled/groups_without_signal/after"] == lacking
    assert told["resampled/groups_without_signal/before"] == (seen[1][0] if len(seen) > 1 else 0)
    assert told["resampled/tokens"] >= told["resampled/responses"]
    own_PG = torch.tensor(sampled.graded.rewards).view(-1, 2)
    assert torch.equal(own_PG, sampled.rewards_PG.to(own_PG))
    assert [p.id for p in sampled.problems] == sampled.ids_P
    assert [p.prompt for p in sampled.graded.problems[::2]] == [p.prompt for p in sampled.problems]
    decoded = trainer.policy.tokenizer.batch_decode(
        [
            ids[mask.bool()]
            for ids, mask in zip(sampled.rollout.prompt_ids_BP, sampled.rollout.prompt_mask_BP, strict=True)
        ]
    )
    assert decoded == [p.prompt for p in sampled.graded.problems]


def test_tries_take_other_problems_of_the_same_order():
    config, problems = small_config("rollout.resample=2"), list(range(1000))
    lots = [rollout_problems(problems, n, config, attempt) for n in (1, 2) for attempt in range(3)]
    stream = [rollout_problems(problems, n, small_config()) for n in range(1, 7)]
    assert lots == stream


# --- long responses


def test_long_responses_lose_their_share_of_the_penalty(tmp_path):
    trainer = small_trainer(tmp_path, *QUICK, "algorithm.overlong_buffer=40", "algorithm.overlong_penalty=0.5")
    sampled = trainer.sample(1)
    rewards_PG, told = shaped_rewards(sampled, None, None, trainer.config)
    torch.testing.assert_close(rewards_PG, sampled.rewards_PG - 0.5 * sampled.lengths_PG / 40)
    assert told["reward/shaped"] == pytest.approx(float(rewards_PG.mean()))
    assert told["reward/overlong"] == pytest.approx(float((rewards_PG - sampled.rewards_PG).mean()), rel=1e-5)


# --- what does not go together


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("optimizer.warmup_steps=3", "optimizer.warmup_steps: 3 is of a schedule, and optimizer.schedule is constant"),
        ("optimizer.schedule_settings.power=2", "optimizer.schedule_settings: {'power': 2"),
        ("optimizer.schedule=lambda", "optimizer.schedule: 'lambda' is not allowed"),
        ("algorithm.overlong_buffer=41", "algorithm.overlong_buffer: 41 is more than rollout.max_new_tokens (40)"),
        ("algorithm.overlong_buffer=4 algorithm.advantage=pass-at-k", "algorithm.overlong_buffer: 4 changes rewards"),
        (
            "algorithm.kl_coefficient=1 algorithm.kl_in=reward algorithm.advantage=pass-at-k",
            "algorithm.kl_in: reward changes rewards",
        ),
        (
            "algorithm.kl_coefficient=1 engine.name=deepspeed engine.zero_stage=3 train.probe_sequences=0",
            "algorithm.kl_coefficient: 1 needs a reference model, which every rank would hold whole",
        ),
        (
            "rollout.resample=1 engine.name=deepspeed engine.zero_stage=3 train.probe_sequences=0",
            "rollout.resample: 1 lets a rank sample alone, and with engine.zero_stage=3 none can",
        ),
        (
            "rollout.resample=1 rollout.engine=vllm rollout.tensor_parallel=2",
            "rollout.resample: 1 lets a rank sample alone, and rollout.tensor_parallel=2",
        ),
    ],
)
def test_what_does_not_go_together_is_told(overrides, message):
    with pytest.raises(SteerError) as caught:
        load_config(None, overrides.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_a_schedule_does_not_take_are_told_before_the_run():
    config = small_config("optimizer.schedule=linear", "optimizer.schedule_settings.power=2")
    with pytest.raises(SteerError, match=r"optimizer\.schedule: linear does not take these settings"):
        LearningRate(config)
    with pytest.raises(SteerError, match=r"optimizer\.schedule: warmup_stable_decay does not take these settings"):
        LearningRate(small_config("optimizer.schedule=warmup_stable_decay"))
