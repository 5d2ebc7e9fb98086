"""STEER in TRL: real training on the embedded Countdown task, against this package's own weights and loss."""

import importlib
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from steer_core.common import ranks
from steer_core.common.errors import SteerError
from steer_core.formulas.loss import ClipRange, clipped_by, clipped_surrogate, importance_ratio
from steer_core.formulas.token_stats import IGNORED_LABEL, TokenStats, concatenate, token_stats
from steer_core.integrations.trl import SteerGRPOTrainer
from steer_core.interventions.base import Tokens
from steer_core.interventions.steer import Steer
from steer_core.interventions.steer_control import SteerControl
from steer_core.policy.model import load_policy
from steer_core.problems import Countdown
from steer_core.rewards.countdown import is_solution

LOW, HIGH, DUAL, TEMPERATURE = 0.1, 0.15, 1.2, 0.9
CLIP = ClipRange(LOW, HIGH, DUAL)
# A generation batch of 16 responses feeds two optimiser steps of two micro-batches.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_generations": 8,
    "max_completion_length": 28,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "temperature": TEMPERATURE,
    "epsilon": LOW,
    "epsilon_high": HIGH,
    "delta": DUAL,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_vllm": False,
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
TASK = Countdown()
PROBLEMS = {problem.prompt: problem for problem in TASK.problems("train", 32)}


def reward(prompts, completions, **_):
    """Whether the verifier accepts, and a little for length, so that every group has a gradient."""
    return [
        is_solution(PROBLEMS[p].prompt, text) + 0.01 * len(text) for p, text in zip(prompts, completions, strict=True)
    ]


def config(folder, **settings):
    return GRPOConfig(output_dir=str(folder), **(SETTINGS | settings))


def make(folder, kind=SteerGRPOTrainer, steer=None, **settings):
    policy = load_policy("embedded")
    data = Dataset.from_dict({"prompt": list(PROBLEMS)})
    named = {"steer": steer} if kind is SteerGRPOTrainer else {}
    return kind(policy.model, reward, config(folder, **settings), data, processing_class=policy.tokenizer, **named)


def train(folder, kind=SteerGRPOTrainer, **settings):
    """(trainer after training, what TRL's own loss was given at each micro-batch and what it gave)."""
    trainer, seen, original = make(folder, kind, **settings), [], {}

    def generate(self, inputs):
        self.sampling_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        return original["_generate_and_score_completions"](self, inputs)

    def score(self, *arguments, **named):
        self.scored = original["_get_per_token_logps_and_entropies"](self, *arguments, **named)
        return self.scored

    def loss(self, model, inputs):
        buffered = self._buffered_inputs[self._step % self.args.steps_per_generation]
        part = SimpleNamespace(inputs=inputs, raw=buffered["advantages"], sampling_weights=self.sampling_weights)
        seen.append(part)
        if kind is SteerGRPOTrainer:  # the last pass TRL took is the one that this loss is given
            keep = inputs["completion_mask"].bool()
            logprob, entropy = (values[keep].detach() for values in self.scored[:2])
            part.new = same_but_exactly(statistics(self.model, inputs), logprob, entropy)
        part.loss = original["_compute_loss"](self, model, inputs)
        return part.loss

    replaced = {
        "_generate_and_score_completions": generate,
        "_get_per_token_logps_and_entropies": score,
        "_compute_loss": loss,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, function in replaced.items():
            original[name] = getattr(GRPOTrainer, name)
            patch.setattr(GRPOTrainer, name, function)
        trainer.train()
    return trainer, seen


def same_but_exactly(stats, logprob, entropy):
    """Statistics from the logits, with TRL's own values put in, once they are seen to agree to its rounding."""
    torch.testing.assert_close(logprob, stats.logprob, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, stats.entropy, rtol=0, atol=1e-5)
    return replace(stats, logprob=logprob, entropy=entropy)


@torch.no_grad()
def statistics(model, inputs):
    """Statistics (N,) of the response tokens from the model's own logits."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(ids, attention_mask=mask).logits[:, -inputs["completion_ids"].shape[1] - 1 : -1]
    keep = inputs["completion_mask"].bool()
    labels = inputs["completion_ids"].masked_fill(~keep, IGNORED_LABEL)
    return token_stats(logits, labels, TEMPERATURE).map(lambda x: x[keep])


def tokens_of(parts, state=None):
    """The tokens of some recorded micro-batches as an intervention takes them, from the logits of both policies."""
    model, olds, advantages = load_policy("embedded").model, [], []
    for part in parts:
        model.load_state_dict(part.sampling_weights)
        old, keep = statistics(model, part.inputs), part.inputs["completion_mask"].bool()
        given = [part.inputs[name][keep] for name in ("old_per_token_logps", "steer_old_entropy")]
        olds.append(same_but_exactly(old, *given))
        advantages.append(part.raw[:, None].expand(keep.shape)[keep])
    advantages = torch.cat(advantages)
    new = concatenate(part.new for part in parts)
    return Tokens(new, concatenate(olds), advantages, CLIP, torch.zeros_like(advantages), state or {})


def given_weights(part):
    """(lambda (N,) that TRL's loss was given, where A is not 0 and it can be read)."""
    keep = part.inputs["completion_mask"].bool()
    raw = part.raw[:, None].expand(keep.shape)[keep]
    return torch.where(raw != 0, part.inputs["advantages"][keep] / raw, torch.nan), raw != 0


def expected_weights(steer, seen):
    """lambda (N,) of every recorded micro-batch of one generation batch, by this package alone."""
    state = {}
    if steer.scope == "rollout":
        rollout = tokens_of(seen)
        state = steer.begin_rollout({}, replace(rollout, new=rollout.old))
    size = {"micro": 1, "step": 2, "rollout": 4}[steer.scope]
    groups = [seen[i : i + size] for i in range(0, len(seen), size)]
    return torch.cat([steer.loss_terms(tokens_of(group, state)).weights for group in groups])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three optimiser steps under the paper's form, over two generation batches."""
    return train(tmp_path_factory.mktemp("trained"), steer=Steer(lambda_min=0.75), max_steps=3)


def test_it_trains_and_logs_the_distribution_of_its_weights(trained):
    trainer, seen = trained
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["lambda/q0"] == 0.75
        quantiles = [value for name, value in row.items() if name.startswith("lambda/q")]
        assert quantiles == sorted(quantiles)
        assert len(quantiles) == 9
        assert 0.75 <= min(quantiles) <= row["lambda/mean"] <= max(quantiles) <= 1
        assert 0 < row["lambda/share_within_1pct_of_1"] < 1
        assert 0 < row["lambda/most_damped/probability"] < 1
        assert 0 < row["entropy/policy"] < math.log(20)
        assert row["grad_norm"] > 0
    first = concatenate(part.new for part in seen[:2])
    assert rows[0]["entropy/policy"] == pytest.approx(float(first.entropy.mean()), abs=1e-5)
    assert rows[0]["entropy/sampled_nll"] == pytest.approx(float(-first.logprob.mean()), abs=1e-5)
    weights = trainer.steer.loss_terms(tokens_of(seen[2:4])).weights
    assert rows[1]["lambda/mean"] == pytest.approx(float(weights.mean()), abs=1e-6)


@pytest.mark.parametrize(
    "steer",
    [
        Steer(form="paper"),
        Steer(form="exact"),
        Steer(form="covariance"),
        Steer(form="released", smallest_normaliser=0.02),
        Steer(form="paper", scope="rollout", sides="lowering"),
        Steer(form="exact", scope="rollout", map="binary", normaliser="quantile"),
        Steer(form="released", scope="micro", map="linear", lambda_min=0.8, lambda_max=1.2),
    ],
    ids=lambda steer: f"{steer.form}-{steer.scope}-{steer.map}",
)
def test_weights_are_this_packages_on_the_same_tokens(steer, tmp_path):
    _, seen = train(tmp_path, steer=steer)
    assert len(seen) == 4
    given, known = zip(*map(given_weights, seen), strict=True)
    given, known = torch.cat(given), torch.cat(known)
    expected = expected_weights(steer, seen)
    torch.testing.assert_close(given[known], expected[known], rtol=0, atol=1e-6)
    assert known.float().mean() > 0.8
    assert expected[known].std() > 0.001
    last = tokens_of(seen[2:])
    stopped = clipped_by(importance_ratio(last.new.logprob, last.old.logprob), last.advantages, CLIP)
    assert all(side.any() for side in stopped)  # the second step is off-policy, on every side of the clip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The parameters after three optimiser steps of TRL's own trainer."""
    trainer, _ = train(tmp_path_factory.mktemp("plain"), GRPOTrainer, max_steps=3)
    return trainer.model.state_dict()


@pytest.mark.parametrize("form", ["paper", "exact"])
def test_lambda_min_1_is_plain_grpo_bit_for_bit(form, plain, trained, tmp_path):
    trainer, _ = train(tmp_path, steer=Steer(form=form, lambda_min=1.0), max_steps=3)
    weights, damped = trainer.model.state_dict(), trained[0].model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.items())
    assert not any(torch.equal(value, damped[name]) for name, value in plain.items())


def test_scope_step_gives_the_same_weights_however_the_step_is_split_and_scope_micro_does_not(tmp_path):
    def weights(scope, size):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
        split |= {"steps_per_generation": 16 // size, "max_steps": 1}
        _, seen = train(tmp_path / f"{scope}{size}", steer=Steer(scope=scope), **split)
        assert len(seen) == 16 // size
        return torch.cat([part.inputs["advantages"][part.inputs["completion_mask"].bool()] for part in seen])

    whole = weights("step", 16)
    torch.testing.assert_close(weights("step", 4), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights("micro", 16), whole, rtol=0, atol=1e-6)
    assert (weights("micro", 4) - whole).abs().max() > 1e-3


def test_only_the_clipped_loss_is_weighted_and_delta_is_the_dual_clip(tmp_path):
    steer = Steer(scope="micro", lambda_min=0.3)
    beta = 0.2
    _, seen = train(tmp_path, steer=steer, loss_type="bnpo", beta=beta, use_bias_correction_kl=False)
    for part in seen:
        tokens = tokens_of([part])
        losses = clipped_surrogate(tokens.new.logprob, tokens.old.logprob, tokens.advantages, CLIP)
        weighted = steer.loss_terms(tokens).weights * losses
        keep = part.inputs["completion_mask"].bool()
        log_ratio = part.inputs["ref_per_token_logps"][keep] - tokens.new.logprob
        kl = log_ratio.exp() - log_ratio - 1
        assert float(part.loss.detach()) == pytest.approx(float((weighted + beta * kl).mean() / 2), rel=1e-5)
    assert float((beta * kl).mean()) > 1e-3


@pytest.mark.parametrize(
    ("scope", "micro_batches", "passes"),
    [("micro", 2, 2), ("step", 1, 1), ("step", 2, 4), ("rollout", 2, 3)],
)
def test_further_forward_passes_are_taken_only_where_the_scope_needs_them(
    scope, micro_batches, passes, tmp_path, monkeypatch
):
    calls, original = [], GRPOTrainer._get_per_token_logps_and_entropies

    def counted(self, *arguments, **named):
        calls.append(arguments)
        return original(self, *arguments, **named)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", counted)
    split = {"gradient_accumulation_steps": micro_batches, "steps_per_generation": micro_batches}
    train(tmp_path, steer=Steer(scope=scope), max_steps=1, per_device_train_batch_size=8, **split)
    assert len(calls) == passes


def weights_given_to_trl(trainer, inputs, monkeypatch):
    """lambda A of one micro-batch, without training on it."""
    given = []
    original = GRPOTrainer._compute_loss
    monkeypatch.setattr(
        GRPOTrainer, "_compute_loss", lambda self, *arguments: given.append(arguments[1]) or original(self, *arguments)
    )
    trainer._compute_loss(trainer.model, inputs)
    return given[0]["advantages"]


@pytest.fixture
def idle(trained, monkeypatch):
    """The trained trainer between steps, one micro-batch of its buffer, and its statistics."""
    trainer, _ = trained
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 1)
    trainer.model.train()
    inputs = trainer._buffered_inputs[0]
    keep = inputs["completion_mask"].bool()
    new = statistics(trainer.model, inputs)
    unread = torch.zeros_like(new.entropy)
    old = TokenStats(inputs["old_per_token_logps"][keep], inputs["steer_old_entropy"][keep], unread, unread)
    advantages = inputs["advantages"][:, None].expand(keep.shape)[keep]
    return trainer, inputs, Tokens(new, old, advantages, CLIP, unread, {})


def test_tokens_of_other_ranks_enter_the_normaliser(idle, monkeypatch):
    trainer, inputs, tokens = idle
    keep = inputs["completion_mask"].bool()
    terms = trainer.active.terms

    def of_two_ranks(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "world_size", lambda: 2)
            patch.setattr(ranks, "all_gather_rows", lambda values: torch.cat([values, elsewhere(values)]))
            patch.setattr(ranks, "local_rows", lambda gathered, values: gathered[: len(values)])
            return terms(*arguments)

    def elsewhere(values):  # as many tokens, their advantages three times as large
        return values * torch.tensor([1.0] * 8 + [3.0, 1.0])

    monkeypatch.setattr(trainer.active, "terms", of_two_ranks)
    given = weights_given_to_trl(trainer, inputs, monkeypatch)[keep]
    change = trainer.steer.change(tokens.new, tokens.old, tokens.advantages, CLIP)
    expected = trainer.steer.lambdas(change, 3 * trainer.steer.scale(change))
    torch.testing.assert_close(given, tokens.advantages * expected, rtol=0, atol=1e-5)
    assert expected.min() > 0.85


def test_vllms_correction_enters_the_estimate_once(idle, monkeypatch):
    trainer, inputs, tokens = idle
    keep = inputs["completion_mask"].bool()
    correction = torch.linspace(0, 2, keep.numel()).view(keep.shape)
    monkeypatch.setattr(trainer, "use_vllm", True)
    given = weights_given_to_trl(trainer, {**inputs, "importance_sampling_ratio": correction}, monkeypatch)[keep]
    change = trainer.steer.change(tokens.new, tokens.old, tokens.advantages * correction[keep], CLIP)
    expected = tokens.advantages * trainer.steer.lambdas(change, trainer.steer.scale(change))
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_evaluation_is_left_alone(idle):
    trainer, inputs, _ = idle
    trainer.model.eval()
    assert torch.equal(
        trainer._compute_loss(trainer.model, inputs), GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "cispo"}, r"loss_type: 'cispo'.*use grpo or bnpo or dr_grpo or dapo"),
        ({"loss_type": "sapo"}, r"loss_type: 'sapo'"),
        ({"loss_type": "vespo"}, r"loss_type: 'vespo'"),
        ({"loss_type": "luspo"}, r"loss_type: 'luspo'"),
        ({"importance_sampling_level": "sequence"}, r"importance_sampling_level: 'sequence'.*use token"),
        ({"use_liger_kernel": True}, r"use_liger_kernel: True.*use False"),
        ({"top_entropy_quantile": 0.2}, r"top_entropy_quantile: 0.2.*use 1.0"),
        ({"off_policy_mask_threshold": 0.5}, r"off_policy_mask_threshold: 0.5.*use None"),
        ({"delta": 1.1}, r"delta: 1.1 is below 1 \+ epsilon_high \(1.15\).*use None"),
        ({"steps_per_generation": 1, "per_device_train_batch_size": 16}, r"steer.scope: step needs.*use scope micro"),
        ({"steer": SteerControl()}, r"steer: .*is no Steer"),
        ({"steer": "steer"}, r"steer: 'steer' is no Steer"),
    ],
)
def test_settings_that_leave_steer_without_meaning_are_refused(settings, message, tmp_path):
    with pytest.raises(SteerError, match=message):
        make(tmp_path, **settings)


def test_scope_micro_takes_what_scope_step_must_refuse(tmp_path):
    trainer = make(tmp_path, steer=Steer(scope="micro"), steps_per_generation=1, per_device_train_batch_size=16)
    assert trainer.steer.scope == "micro"


def test_without_trl_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "steer_core.integrations.trl")
    with pytest.raises(SteerError, match=r"trl: not installed.*pip install -c constraints.txt -e '\.\[parity\]'"):
        importlib.import_module("steer_core.integrations.trl")
