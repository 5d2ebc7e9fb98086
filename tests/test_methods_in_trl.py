"""Every method in TRL: really trained, its loss, gradient and memory those of this package's own step on the batch."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from our_step import config_of, our_step, our_update
from scenario import ACTING
from test_integration_trl import HIGH, LOW, PROBLEMS, SETTINGS, TEMPERATURE, config, statistics
from transformers import TrainerCallback
from trl import GRPOTrainer

from steer_core.common.errors import SteerError
from steer_core.common.files import read_json
from steer_core.formulas.loss import ClipRange, clipped_surrogate
from steer_core.formulas.token_stats import TokenStats, concatenate
from steer_core.integrations.support import refusal_in_trl
from steer_core.integrations.trl import InterventionGRPOTrainer
from steer_core.integrations.trl_checks import LOSS_TYPES
from steer_core.integrations.trl_parts import reduced
from steer_core.interventions import intervention
from steer_core.interventions.base import UNLOGGED, Tokens
from steer_core.interventions.steer import Steer
from steer_core.policy.model import load_policy
from steer_core.policy.sequences import Sequences
from steer_core.training.batch import MicroBatch

DUAL = 1.7
CLIP = ClipRange(LOW, HIGH, DUAL)
# Two generation batches of 16 responses, each of which feeds two optimiser steps of two micro-batches.
TRAINING = {
    "loss_type": "dr_grpo",  # its denominator is no step's own, in TRL as here
    "max_steps": 4,
    "optim": "sgd",
    "learning_rate": 0.2,
    "max_grad_norm": 0.0,
    "delta": DUAL,
}
TWICE = list(PROBLEMS)[:2]
"""Two problems, which both generation batches ask: a method may know them in the second."""
METHODS = {name: intervention({"name": name, **settings}) for name, settings in ACTING.items()}
SUPPORTED = {name: method for name, method in METHODS.items() if refusal_in_trl(method) is None}


def reward(completions, **_):
    """Long responses are right, short ones wrong."""
    return [0.01 * (len(text) - 12) for text in completions]


def make(folder, kind=InterventionGRPOTrainer, settings=None, **named):
    """A trainer of the embedded model on two problems."""
    policy, data = load_policy("embedded"), Dataset.from_dict({"prompt": TWICE})
    return kind(
        policy.model,
        reward,
        config(folder, **(TRAINING | (settings or {}))),
        data,
        processing_class=policy.tokenizer,
        **named,
    )


class Steps(TrainerCallback):
    """Every optimiser step's weights before it, and its gradient."""

    def __init__(self):
        self.weights, self.gradients = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})


def watched(trainer):
    """Train; what was sampled, what each step was given, and what came of it."""
    steps, losses, rollouts = Steps(), [], []
    trainer.add_callback(steps)
    loss_of, generate, trl_generates = (
        trainer._compute_loss,
        trainer._generate_and_score_completions,
        GRPOTrainer._generate_and_score_completions,
    )

    def loss(model, inputs):
        value = loss_of(model, inputs)
        losses.append(SimpleNamespace(inputs=inputs, value=float(value.detach())))
        return value

    def whole(inputs):
        with pytest.MonkeyPatch.context() as patch:
            plain = []
            patch.setattr(
                GRPOTrainer,
                "_generate_and_score_completions",
                lambda self, given: plain.append(dict(trl_generates(self, given))) or dict(plain[0]),
            )
            batch = generate(inputs)
        rewards = [row for row in zip(*trainer._logs["rewards"].values(), strict=True)]
        prompts = [row["prompt"] for row in inputs]
        rollouts.append(SimpleNamespace(plain=plain[0], batch=dict(batch), prompts=prompts, rewards=rewards[-16:]))
        return batch

    trainer._compute_loss, trainer._generate_and_score_completions = loss, whole
    trainer.train()
    return steps, losses, rollouts


def part_of(inputs, old=None):
    """A micro-batch of TRL as this package has it; `old` where TRL keeps no statistics of the policy that sampled."""
    mask = inputs["completion_mask"]
    sequences = Sequences(inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], mask)
    unread = torch.full_like(inputs["steer_old_entropy"], torch.nan)
    old = TokenStats(inputs["old_per_token_logps"], inputs["steer_old_entropy"], unread, unread)
    advantages = inputs["advantages"][:, None].expand(mask.shape)
    return MicroBatch(sequences, old, advantages, inputs["steer_draws"])


def assert_near(found, expected, what):
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        off = float((found[name] - value).abs().max())
        assert off <= 1e-6 * max(scale, 1.0), f"{what}, {name}: off by {off:.2g} of {scale:.2g}"


def scored(trainer, inputs):
    """TRL's own pass over a micro-batch, with gradient: its rounding decides what lies at a bound, as in training."""
    logprob, entropy, _ = GRPOTrainer._get_per_token_logps_and_entropies(
        trainer,
        trainer.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        inputs["completion_ids"].shape[1],
        compute_entropy=True,
    )
    return TokenStats(logprob, entropy, *[torch.full_like(entropy, torch.nan)] * 2)


def ours(trainer, steps, losses, rollouts):
    """Yields (loss, gradient, memory) of every optimiser step, by this package's own update on what TRL was given."""
    longest = SETTINGS["max_completion_length"]
    update = our_update(
        trainer.model, config_of(trainer.intervention, CLIP, "seq-mean-token-sum-norm", longest, TEMPERATURE)
    )
    inputs = {}
    update.active.score = lambda part: scored(trainer, inputs[id(part)])
    for n, rollout in enumerate(rollouts, 1):
        given = losses[4 * (n - 1) : 4 * n]
        parts = [part_of(each.inputs) for each in given]
        inputs = {id(part): each.inputs for part, each in zip(parts, given, strict=True)}
        whole = part_of({**rollout.batch, "advantages": rollout.plain["advantages"]})
        advantages, rewards = rollout.plain["advantages"].view(2, 8), torch.tensor(rollout.rewards).sum(-1).view(2, 8)
        credited = update.active.credit(advantages, rewards, whole.old, whole.mask_BT, rollout.prompts[::8], n)
        torch.testing.assert_close(rollout.batch["advantages"], credited.flatten(), rtol=1e-6, atol=1e-6)
        update.active.begin_rollout([parts[:2], parts[2:]], n)
        for i in (0, 1):
            trainer.model.load_state_dict(steps.weights[2 * (n - 1) + i])
            yield *our_step(update, parts[2 * i : 2 * i + 2]), dict(update.active.memory)


def remembered(memory):
    """A memory with its problems by number: TRL has no ids of them."""
    named = {name: value for name, value in memory.items() if not name.startswith(UNLOGGED)}
    of_problems = sorted(value for name, value in memory.items() if name.startswith(UNLOGGED))
    return named | {f"problem {i}": value for i, value in enumerate(of_problems)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The gradients of TRL's own trainer."""
    trainer, steps = make(tmp_path_factory.mktemp("plain"), GRPOTrainer), Steps()
    trainer.add_callback(steps)
    trainer.train()
    return steps.gradients


@pytest.mark.parametrize("name", SUPPORTED)
def test_loss_gradient_and_memory_of_every_step_are_those_of_this_package(name, plain, tmp_path):
    method = SUPPORTED[name]
    trainer = make(tmp_path, intervention=method)
    steps, losses, rollouts = watched(trainer)
    assert (len(steps.gradients), len(rollouts)) == (4, 2)
    for i, (loss, gradient, memory) in enumerate(ours(trainer, steps, losses, rollouts)):
        assert sum(each.value for each in losses[2 * i : 2 * i + 2]) == pytest.approx(loss, abs=1e-6)
        assert_near(steps.gradients[i], gradient, f"step {i}")
        last = memory
    assert remembered(trainer.active.memory) == pytest.approx(remembered(last), rel=1e-5)
    changed = any((a[k] - b[k]).abs().max() > 1e-5 for a, b in zip(steps.gradients, plain, strict=True) for k in a)
    assert changed == (name != "none")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_supported_or_refused_by_name_before_training(name, tmp_path):
    if name in SUPPORTED:
        trainer = make(tmp_path, intervention=METHODS[name])
        assert trainer.active.method is METHODS[name]
    else:
        with pytest.raises(SteerError, match=rf"intervention\.name: {name} .*; .*train with .*own trainer"):
            make(tmp_path, intervention=METHODS[name])


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_an_extra_term_is_reduced_as_trl_reduces_its_own_loss(kind, tmp_path):
    trainer, source = make(tmp_path, settings={"loss_type": kind}), torch.Generator().manual_seed(1)
    values, logprob = torch.randn(2, 4, 6, generator=source)
    mask = (torch.arange(6) < torch.tensor([6, 2, 1, 4])[:, None]).long()
    inputs = {
        **{name: mask for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")},
        "advantages": -values,  # at ratio 1 the surrogate is -A
        "old_per_token_logps": logprob,
        "num_items_in_batch": torch.tensor(37.0),
    }
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprob, torch.zeros_like(logprob), None)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    theirs = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    assert float(reduced(trainer, values, mask.bool(), inputs)) == pytest.approx(float(theirs), rel=1e-6)


def test_steer_with_lora_a_kl_term_and_accumulation_weights_the_surrogate_alone(tmp_path, monkeypatch):
    peft, beta, seen, original = pytest.importorskip("peft"), 0.2, [], GRPOTrainer._compute_loss

    def loss(self, model, inputs):
        new = statistics(self.model, inputs)
        value = original(self, model, inputs)
        raw = self._buffered_inputs[self._step % self.args.steps_per_generation]["advantages"]
        seen.append(SimpleNamespace(inputs=inputs, new=new, raw=raw, value=float(value.detach())))
        return value

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", loss)
    adapter = peft.LoraConfig(r=4, lora_alpha=2, target_modules="all-linear", init_lora_weights=False)
    settings = {"loss_type": "bnpo", "beta": beta, "use_bias_correction_kl": False, "max_steps": 2}
    steer = Steer(lambda_min=0.3)
    trainer = make(tmp_path, settings=settings, intervention=steer, peft_config=adapter)
    trainer.train()
    for step in (seen[:2], seen[2:]):
        keeps = [part.inputs["completion_mask"].bool() for part in step]
        pairs = list(zip(step, keeps, strict=True))
        advantages = torch.cat([part.raw[:, None].expand(keep.shape)[keep] for part, keep in pairs])
        flat = {
            name: torch.cat([part.inputs[name][keep] for part, keep in pairs])
            for name in ("old_per_token_logps", "ref_per_token_logps", "advantages")
        }
        old = TokenStats(flat["old_per_token_logps"], *[torch.full_like(advantages, torch.nan)] * 3)
        new = concatenate(part.new for part in step)
        weights = steer.loss_terms(Tokens(new, old, advantages, CLIP, torch.zeros_like(advantages), {})).weights
        torch.testing.assert_close(flat["advantages"], advantages * weights, rtol=0, atol=1e-4)
        assert weights.min() == pytest.approx(0.3)
        losses = clipped_surrogate(new.logprob, old.logprob, advantages, CLIP) * weights
        shift = flat["ref_per_token_logps"] - new.logprob
        kl = shift.exp() - shift - 1
        sizes = [int(keep.sum()) for keep in keeps]
        for part, whole in zip(step, (losses + beta * kl).split(sizes), strict=True):
            assert part.value == pytest.approx(float(whole.mean() / 2), abs=1e-5)
        assert 1e-3 < float(kl.mean()) < 1
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)


def test_what_a_method_remembers_is_in_trls_checkpoints(tmp_path):
    gate, saved = METHODS["boundary-gate"], {"save_strategy": "steps", "save_steps": 2}
    make(tmp_path / "one", settings={"max_steps": 2, **saved}, intervention=gate).train()
    checkpoint = tmp_path / "one" / "checkpoint-2"
    kept = read_json(checkpoint / "intervention.json", "checkpoint", "")
    assert kept["rollouts"] == 1
    assert any(name.startswith(UNLOGGED) for name in kept["memory"])
    again, began = make(tmp_path / "two", settings={"max_steps": 4, **saved}, intervention=gate), []
    credit = again.active.credit
    again.active.credit = lambda *words: began.append((words[-1], dict(again.active.memory))) or credit(*words)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert began == [(2, kept["memory"])]
    other = make(tmp_path / "three", settings={"max_steps": 4}, intervention=METHODS["entropic"])
    other.train(resume_from_checkpoint=str(checkpoint))
    assert other._rollouts == 1


def test_a_schedule_goes_by_generation_batches(tmp_path):
    method = intervention({"name": "entropic", "target": "1 at 1, 3 at 2"})
    trainer, seen = make(tmp_path, intervention=method), []
    begin = trainer.active.begin_rollout
    trainer.active.begin_rollout = lambda batches, n: begin(batches, n) or seen.append(trainer.active.memory["target"])
    trainer.train()
    assert seen == [1, 3]
    row = next(row for row in trainer.state.log_history if "intervention/target" in row)
    assert row["intervention/target"] == 1


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("kl-cov", {"loss_type": "cispo"}, r"loss_type: 'cispo'"),
        ("clip-higher", {"delta": 1.2}, r"delta: 1.2 is below 1 \+ the upper clip bound of clip-higher \(1.6\)"),
        (
            "fork-tokens",
            {"steps_per_generation": 1, "per_device_train_batch_size": 16},
            r"intervention.scope: step needs",
        ),
        ("erc", {"top_entropy_quantile": 0.5}, r"top_entropy_quantile: 0.5 .* erc .*; use 1.0"),
    ],
)
def test_settings_that_leave_a_method_without_meaning_are_refused(method, settings, message, tmp_path):
    with pytest.raises(SteerError, match=message):
        make(tmp_path, settings=settings, intervention=METHODS[method])


def test_something_that_is_no_method_is_refused(tmp_path):
    with pytest.raises(SteerError, match=r"intervention: 'steer' is no method; give one such as Steer\(\)"):
        make(tmp_path, intervention="steer")
