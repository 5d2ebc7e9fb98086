"""`steer estimate` as a library: what is sampled, from which moments a step starts, what it does to each mini-batch."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import small_config, small_trainer

from steer_core.common.errors import SteerError
from steer_core.estimation import estimate as module
from steer_core.estimation.estimate import Sample, Update, attributions, estimate, optimizers_of, sample
from steer_core.policy.model import load_policy
from steer_core.problems import Countdown
from steer_core.rewards import Verdict
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.rollout import Rollout
from steer_core.runs.folder import RunFolder

DOUBLE = ("model.dtype=float64", "rollout.max_new_tokens=20")
UPDATES = [Update("sgd", 0.001), Update("adamw", 1e-5)]


def grader_of(right):
    """A grader that goes by a response's text alone."""
    return SimpleNamespace(
        name="scripted", grade=lambda references, texts: [Verdict("right" if right(x) else "wrong") for x in texts]
    )


@pytest.fixture(scope="module")
def policy():
    return load_policy("embedded", dtype=torch.float64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two rollouts with AdamW, and its checkpoint."""
    trainer = small_trainer(tmp_path_factory.mktemp("run") / "one", "train.rollouts=2", "evaluation.every=0")
    trainer.fit()
    return trainer.run


@pytest.mark.parametrize(
    ("text", "name", "eta", "label"),
    [("sgd:0.01", "sgd", 0.01, "sgd:0.01"), ("adamw:1e-4", "adamw", 1e-4, "adamw:0.0001")],
)
def test_an_update_is_an_optimiser_and_a_step_size(text, name, eta, label):
    assert Update.parse(text) == Update(name, eta)
    assert str(Update(name, eta)) == label
    assert Update.parse(label) == Update.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rmsprop:1", "update 'rmsprop:1': the optimiser 'rmsprop' is neither sgd nor adamw; write sgd:0.01"),
        (":0.1", "the optimiser '' is neither"),
        ("sgd", "the step size '' is no number; write sgd:0.01"),
        ("adamw:fast", "the step size 'fast' is no number; write adamw:0.01"),
        ("sgd:1:2", "the step size '1:2' is no number"),
        ("sgd:0", "the step size 0.0 is not above 0"),
        ("sgd:-0.1", "the step size -0.1 is not above 0"),
        ("adamw:nan", "the step size nan is not above 0"),
        ("sgd:inf", "the step size inf is not above 0"),
    ],
)
def test_another_update_is_refused_with_what_to_write(text, message):
    with pytest.raises(SteerError) as error:
        Update.parse(text)
    assert message in str(error.value)


@pytest.fixture
def scripted(monkeypatch):
    """`sample` of a policy that solves the k-th problem it is given k % 5 times of 4, at most 4; what it was given."""
    asked = []

    class Engine:
        def __init__(self, policy):
            pass

        def generate(self, prompts, responses, sampling, seed, places=None):
            texts = []
            for prompt in prompts:
                solved = len(asked) % 5
                texts += ["right"] * solved + ["wrong"] * (responses - solved)
                asked.append(prompt)
            ids = torch.arange(len(texts))[:, None] + 100 * len(asked)
            ones = torch.ones_like(ids)
            return Rollout(ids, ones, ids, ones.bool(), texts, ["stop"] * len(texts))

    monkeypatch.setattr(module, "local_sampler", Engine)
    task = Countdown()
    monkeypatch.setattr(task, "grader", grader_of(lambda text: text == "right"))
    policy = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    return lambda *settings, **options: (sample(policy, task, small_config(*settings), **options), asked)


def test_a_sample_keeps_every_group_as_it_comes(scripted):
    drawn, asked = scripted()
    assert drawn.rewards_PG.sum(1).tolist() == [0, 1, 2, 3]
    assert len(asked) == drawn.prompts_sampled == 4
    assert set(asked) <= {problem.prompt for problem in Countdown().problems("train", 64)}


def test_a_sample_with_signal_keeps_only_groups_whose_rewards_differ_and_counts_the_rest(scripted):
    drawn, asked = scripted(with_signal=True)
    assert drawn.rewards_PG.sum(1).tolist() == [1, 2, 3, 1]
    assert len(asked) == drawn.prompts_sampled == 8
    assert len(set(asked)) == 8
    assert drawn.rollout.texts == [t for n in (1, 2, 3, 1) for t in ["right"] * n + ["wrong"] * (4 - n)]
    assert drawn.rollout.response_ids_BT.flatten().tolist() == [*range(404, 416), *range(808, 812)]


def test_a_sample_with_signal_that_runs_out_of_problems_tells_how_many_it_found(scripted):
    with pytest.raises(SteerError, match=r"rollout.prompts: 4 groups .* and 3 were found among 6 problems; lower it"):
        scripted("task.train_problems=6", "rollout.responses=4", with_signal=True)


def test_the_same_seed_gives_the_same_sample_and_another_another(policy):
    task = Countdown()
    first, again, other = (sample(policy, task, small_config(f"train.seed={seed}")) for seed in (5, 5, 6))
    assert first.rollout.texts == again.rollout.texts
    assert torch.equal(first.rollout.response_ids_BT, again.rollout.response_ids_BT)
    assert torch.equal(first.rewards_PG, again.rewards_PG)
    assert not torch.equal(first.rollout.prompt_ids_BP, other.rollout.prompt_ids_BP)


def test_rewards_of_a_sample_are_the_tasks_own_group_by_group(policy):
    task, config = Countdown(), small_config("rollout.prompts=8", "rollout.responses=8")
    drawn = sample(policy, task, config)
    problems = {problem.prompt: problem for problem in task.problems("train", 64)}
    prompts = policy.tokenizer.batch_decode(drawn.rollout.prompt_ids_BP, skip_special_tokens=True)
    verdicts = task.grade([problems[p] for p in prompts], drawn.rollout.texts)
    expected = [float(verdict.correct) for verdict in verdicts]
    assert drawn.rewards_PG.flatten().tolist() == expected
    assert 0 < sum(expected) < len(expected)
    assert [len(set(prompts[i : i + 8])) for i in range(0, 64, 8)] == [1] * 8


def test_mini_batches_without_signal_are_left_out_and_groups_count_through(policy):
    config = small_config(*DOUBLE, "rollout.prompts=6")
    rollout = sample(policy, Countdown(), config).rollout
    rewards = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1.0]])
    optimizers = optimizers_of(policy, config, [Update("sgd", 0.01)], None)
    first, silent, last = attributions(policy, Sample(rollout, rewards, 6), config, optimizers)
    assert silent == {}
    for tokens, groups in ((first["sgd:0.01"].tokens, (0, 1)), (last["sgd:0.01"].tokens, (4, 5))):
        assert set(tokens["group"]) == set(groups)
        assert set(tokens["sequence"]) == {4 * group + i for group in groups for i in range(4)}
        assert (tokens["group"] == tokens["sequence"] // 4).all()
        for row in tokens.itertuples():
            assert row.token == int(rollout.response_ids_BT[row.sequence, row.position])
            right = rewards[row.group, row.sequence % 4] > rewards[row.group].mean()
            assert np.sign(row.advantage) == (0 if row.group == 0 else 1 if right else -1)


def test_the_loss_of_a_mini_batch_is_that_of_training(policy):
    """Reduction, clip range, temperature and gradient clipping of the settings reach the step."""
    settings = ("rollout.temperature=0.8", "algorithm.reduction=seq-mean-token-mean", "optimizer.max_grad_norm=1e-3")
    config = small_config(*DOUBLE, *settings, "rollout.prompts=2")
    rollout = sample(policy, Countdown(), config).rollout
    rewards = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 1.0]])
    (told,) = attributions(policy, Sample(rollout, rewards, 2), config, optimizers_of(policy, config, UPDATES, None))
    result = told["sgd:0.001"]
    tokens, scale = result.tokens, result.totals["gradient_scale"]
    assert scale < 1
    lengths = tokens.groupby("sequence")["token"].transform("size")
    share = scale * 0.001 / (8 * lengths)
    covariance = -(tokens["logprob"] - tokens["logprob"].mean()) * (tokens["advantage"] - tokens["advantage"].mean())
    np.testing.assert_allclose(tokens["covariance"], share * covariance, rtol=1e-6)
    p = np.exp(tokens["logprob"])
    paper = -tokens["advantage"] * p * (1 - p) * (tokens["logprob"] + tokens["entropy"])
    np.testing.assert_allclose(tokens["paper"], share * paper, rtol=1e-6, atol=1e-15)
    with torch.no_grad():
        logits = policy.model(rollout.prompt_ids_BP[:1][:, rollout.prompt_mask_BP[0].bool()]).logits[0, -1] / 0.8
    assert tokens["entropy"][0] == pytest.approx(float(torch.special.entr(logits.softmax(-1)).sum()), rel=1e-4)


def test_rewards_that_are_equal_within_every_group_are_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(Countdown, "grader", grader_of(lambda text: True))
    with pytest.raises(SteerError, match=r"rewards: equal within every group.*raise rollout.prompts.*--with-signal"):
        estimate("embedded", small_config("rollout.prompts=2"), [Update("sgd", 0.01)])


def test_a_runs_own_optimiser_starts_from_its_moments_and_first_order_tells_what_it_does(run):
    checkpoint = run.checkpoints.saved()[-1]
    config = small_config(*DOUBLE)
    told = estimate(str(checkpoint), config, [Update("adamw", 1e-6), Update("sgd", 1e-4)], True, run)
    adamw, sgd = told.record["updates"].values()
    assert (adamw["moments"], sgd["moments"]) == (True, False)
    assert (told.record["model"], told.record["run"]) == ("embedded", run.path.name)
    for summary in (adamw, sgd):
        scores = summary["target"]["first_order"]
        assert scores["pearson"][0] > 0.999
        assert scores["slope"][0] == pytest.approx(1, abs=0.02)
        assert abs(summary["totals"]["higher_order"]) < 0.05 * abs(summary["totals"]["first_order"])
    assert abs(adamw["totals"]["carried"]) > 0.1 * abs(adamw["totals"]["first_order"])
    assert abs(sgd["totals"]["carried"]) < 1e-9 * abs(sgd["totals"]["first_order"])


def test_a_runs_optimiser_takes_its_moments_from_the_checkpoint_and_its_settings_from_those_asked_for(run):
    config = small_config(*DOUBLE, "optimizer.weight_decay=0.3", "optimizer.betas=[0.5, 0.9]")
    policy = load_policy(str(run.checkpoints.saved()[-1]), dtype=torch.float64)
    before = [p.detach().clone() for p in policy.model.parameters()]
    updates = [Update("adamw", 1e-6), Update("adamw", 1e-5), Update("sgd", 0.1)]
    small, large, sgd = optimizers_of(policy, config, updates, RunFolder.open(run.path)).values()
    assert all(torch.equal(p, old) for p, old in zip(policy.model.parameters(), before, strict=True))
    for optimizer, rate in ((small, 1e-6), (large, 1e-5)):
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (rate, 0.3, (0.5, 0.9))
        states = [optimizer.state[p] for p in policy.model.parameters()]
        assert {float(state["step"]) for state in states} == {4.0}
        assert any(state["exp_avg"].abs().max() > 0 for state in states)
    assert not sgd.state
    assert sgd.param_groups[0]["lr"] == 0.1
    fresh = optimizers_of(policy, config, updates[:1], None)["adamw:1e-06"]
    assert not fresh.state


@pytest.mark.parametrize(("optimizer", "update"), [("adamw", "adamw:0.0001"), ("cpu-adam", "adamw:0.0001")])
def test_moments_that_deepspeed_holds_are_refused_before_anything_is_sampled(tmp_path, monkeypatch, optimizer, update):
    run = RunFolder(tmp_path, small_config("engine.name=deepspeed", f"optimizer.name={optimizer}"))
    (tmp_path / "checkpoints" / "step_000002").mkdir(parents=True)
    monkeypatch.setattr(module, "sample", None)
    with pytest.raises(SteerError, match=rf"^update {update}: DeepSpeed's moments .*step_000002 with .*config.yaml$"):
        estimate("embedded", small_config(), [Update.parse("sgd:0.1"), Update.parse(update)], run=run)


@pytest.mark.parametrize(("momentum", "refused"), [(0, False), (0.9, True)])
def test_deepspeeds_plain_sgd_holds_no_moments_and_is_not_refused(policy, tmp_path, momentum, refused):
    settings = ("engine.name=deepspeed", "optimizer.name=sgd", f"optimizer.momentum={momentum}")
    run = RunFolder(tmp_path, small_config(*settings))
    (tmp_path / "checkpoints" / "step_000002").mkdir(parents=True)
    with pytest.raises(SteerError, match="DeepSpeed's moments") if refused else nullcontext():
        assert not optimizers_of(policy, small_config(), [Update("sgd", 0.1)], run)["sgd:0.1"].state


def test_a_sample_of_more_mini_batches_measures_each_from_the_same_policy(policy):
    """No step is kept: the second mini-batch's outcome is that of the second mini-batch alone."""
    config = small_config(*DOUBLE)
    rollout = HuggingFaceSampler(policy).generate(
        [p.prompt for p in Countdown().problems("train", 4)], 4, config.rollout, seed=3
    )
    rewards = torch.tensor([[1.0, 0, 0, 0]] * 4)
    optimizers = optimizers_of(policy, config, [Update("adamw", 1e-4)], None)
    _, second = attributions(policy, Sample(rollout, rewards, 4), config, optimizers)
    alone = Sample(rollout.take(range(8, 16)), rewards[2:], 2)
    (expected,) = attributions(policy, alone, config, optimizers)
    a, b = (told["adamw:0.0001"] for told in (second, expected))
    np.testing.assert_array_equal(a.tokens["measured"], b.tokens["measured"])
    assert a.totals == b.totals
