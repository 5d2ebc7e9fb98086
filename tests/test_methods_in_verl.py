"""Every method in verl: its own engine, and the loss, gradient and memory of this package's own step on the batch."""

import copy

import pytest
import torch
from pydantic.dataclasses import dataclass

pytest.importorskip("verl")

import torch.distributed as dist
from our_step import config_of, our_step, our_update
from scenario import ACTING
from test_methods_in_trl import assert_near
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl_engine import LENGTH, PROMPT, SECTION, SWITCHES, Engine, actor_config, batch, on_cpu, verl_config

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.integrations import verl as integration
from steer_core.integrations.support import refusal_in_verl
from steer_core.integrations.verl_parts import InVerl
from steer_core.interventions import intervention
from steer_core.interventions.base import Intervention
from steer_core.policy.sequences import Sequences
from steer_core.training.batch import MicroBatch

ACTOR = "actor_rollout_ref.actor"
CLIP = ClipRange(0.1, 0.15, 1.7)
GIVEN = ACTING | {"entropic": {"target": 1.0, "threshold": 0.05}}  # an untrained model is sure of nothing
METHODS = {name: intervention({"name": name, **settings}) for name, settings in GIVEN.items()}
SUPPORTED = [name for name, method in METHODS.items() if refusal_in_verl(method) is None]
BOUNDS = [
    f"{ACTOR}.clip_ratio_low={CLIP.low}",
    f"{ACTOR}.clip_ratio_high={CLIP.high}",
    f"{ACTOR}.clip_ratio_c={CLIP.dual}",
]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch, tmp_path):
    on_cpu(monkeypatch, 0, 1, str(tmp_path / "store"))
    yield
    dist.destroy_process_group()


def mode(name):
    return f"{ACTOR}.policy_loss.loss_mode=steer:{name}"


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Own(Intervention):
    """Half of what lies beside the first threshold."""

    name: str = "test_methods_in_verl:Own"
    factor: float = 0.5

    def weights(self, tokens):
        return torch.where(tokens.advantages > 0, self.factor, 1.0)


def parts_of(data, drawn):
    """A mini-batch of verl as this package has it, in the micro-batches whose draws were seen."""
    parts, rows = [], 0
    for draws in drawn:
        own = slice(rows, rows + len(draws))
        rows += len(draws)
        mask = data["response_mask"][own].bool()
        sequences = Sequences(data["prompts"][own], data["attention_mask"][own, :PROMPT], data["responses"][own], mask)
        old = data["old_log_probs"][own]
        unknown = torch.full_like(old, torch.nan)
        draws = torch.nn.functional.pad(draws, (0, LENGTH))[:, :LENGTH]
        parts.append(MicroBatch(sequences, TokenStats(old, *[unknown] * 3), data["advantages"][own], draws))
    assert rows == len(data)
    return parts


@pytest.mark.parametrize("name", SUPPORTED)
def test_loss_gradient_and_memory_of_every_step_are_those_of_this_package(name, monkeypatch):
    method, drawn, terms = METHODS[name], [], InVerl.terms
    monkeypatch.setattr(
        InVerl, "terms", lambda self, stats, parts: drawn.extend(p.draws_BT for p in parts) or terms(self, stats, parts)
    )
    config = actor_config(*SWITCHES, *BOUNDS, mode(name), **GIVEN[name])
    engine, plain = Engine(torch.float32), Engine(torch.float32)
    module = copy.deepcopy(engine.module)
    update = our_update(module, config_of(method, CLIP, "token-mean", LENGTH, 1.0))
    update.active.begin_rollout([], 1)
    changed = False
    for seed in (1, 2):
        data = batch(seed=seed, rows=6, micro=2)
        module.load_state_dict(engine.module.state_dict())
        plain.module.load_state_dict(engine.module.state_dict())
        drawn.clear()
        output = engine.train(data, config)
        loss, gradient = our_step(update, parts_of(data, drawn))
        assert sum(output["loss"]) == pytest.approx(loss, abs=1e-6)
        given = {key: parameter.grad for key, parameter in engine.module.named_parameters()}
        assert_near(given, gradient, f"step {seed}")
        plain.train(data, actor_config(*SWITCHES[2:], *BOUNDS))
        changed |= any((p.grad - given[key]).abs().max() > 1e-4 for key, p in plain.module.named_parameters())
    assert engine.steer_method.memory == pytest.approx(update.active.memory, rel=1e-5)
    metrics = reduce_metrics(output["metrics"])
    remembered = {key.removeprefix("actor/intervention/") for key in metrics if key.startswith("actor/intervention/")}
    assert remembered == set(update.active.memory)
    assert changed == (name != "none")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_supported_or_refused_by_name_when_verl_reads_its_settings(name):
    if name in SUPPORTED:
        assert integration.steer_settings(actor_config(mode(name)).policy_loss).name == name
        assert get_policy_loss_fn(f"steer:{name}") is integration.steer_policy_loss
    else:
        with pytest.raises(SteerError, match=rf"policy_loss\.loss_mode: steer:{name} .*; train with"):
            integration.SteerPolicyLossConfig(loss_mode=f"steer:{name}")


def test_verls_command_line_takes_a_method_with_its_settings():
    config = verl_config(
        *SWITCHES,
        mode("kl-cov"),
        f"{SECTION}._target_=steer_core.integrations.verl.SteerPolicyLossConfig",
        f"+{SECTION}.steer.share=0.01",
    )
    policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss
    assert integration.steer_settings(policy_loss) == intervention({"name": "kl-cov", "share": 0.01})


def test_a_method_of_another_package_is_registered_when_verl_reads_its_settings():
    policy_loss = actor_config(mode(Own.name), factor=0.2).policy_loss
    assert integration.steer_settings(policy_loss) == Own(factor=0.2)
    assert get_policy_loss_fn(f"steer:{Own.name}") is integration.steer_policy_loss
    config, engine = actor_config(*SWITCHES, mode(Own.name), factor=0.2), Engine()
    assert reduce_metrics(engine.train(batch(), config)["metrics"])["actor/lambda/q0"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kl-cov", {"share": 2}, r"policy_loss\.steer\.share: 2 is not allowed"),
        ("kl-cov", {"shar": 0.1}, r"policy_loss\.steer\.shar: unknown key; did you mean 'share'\?"),
        ("kl-cof", {}, r"policy_loss\.loss_mode: 'kl-cof' is no method; did you mean 'kl-cov'\?"),
        (
            "entropic",
            {"target": "0.3 to 0.1 over 9"},
            r"loss_mode: steer:entropic follows a schedule .*; write a number",
        ),
        ("steer", {"form": "exact"}, r"policy_loss\.steer\.form: exact needs"),
        ("steer-control", {"form": "released"}, r"policy_loss\.steer\.form: released needs"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_name(name, settings, message):
    with pytest.raises(SteerError, match=message):
        integration.SteerPolicyLossConfig(loss_mode=f"steer:{name}", steer=settings)
