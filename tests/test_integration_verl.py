"""STEER inside verl: its own engine, loss and settings, on a CPU; weights are those of `Steer` on the same tokens."""

import functools
import importlib.util
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl")

import torch.distributed as dist
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.workers.config import HFModelConfig, PolicyLossConfig
from verl.workers.engine.base import BaseEngine
from verl.workers.utils.losses import ppo_loss
from verl_engine import LENGTH, PROMPT, SECTION, SWITCHES, Engine, actor_config, batch, on_cpu, verl_config

from steer_core import integrations
from steer_core.common.errors import SteerError
from steer_core.formulas.loss import ClipRange, clipped_surrogate
from steer_core.formulas.token_stats import TokenStats, concatenate, token_stats
from steer_core.integrations import verl as integration
from steer_core.interventions.base import Tokens
from steer_core.interventions.steer import Steer

STEER = SWITCHES
VANILLA = SWITCHES[2:]
ACTOR = "actor_rollout_ref.actor"


@pytest.fixture(autouse=True)
def one_rank(monkeypatch, tmp_path):
    on_cpu(monkeypatch, 0, 1, str(tmp_path / "store"))
    yield
    dist.destroy_process_group()


@pytest.fixture
def weighed(monkeypatch):
    """The arguments with which verl's vanilla loss is called, one entry a micro-batch."""
    return spied(monkeypatch)


def spied(monkeypatch):
    calls, real = [], integration.compute_policy_loss_vanilla
    monkeypatch.setattr(integration, "compute_policy_loss_vanilla", lambda *args: calls.append(args) or real(*args))
    return calls


def lambdas(calls):
    """The factors handed to verl's loss, flat over the response tokens of all micro-batches."""
    return torch.cat([args[6][args[3]] for args in calls]).float()


def tokens_of(engine, data, config, rows=slice(None)) -> Tokens:
    """The response tokens of some rows as `Steer` takes them, from the model's logits, one sequence at a time."""
    news, olds, advantages = [], [], []
    for i in range(len(data))[rows]:
        ids, count = data["input_ids"].unbind()[i], int(data["attention_mask"][i, PROMPT:].sum())
        with torch.no_grad():
            logits = engine.module(ids[None]).logits[0, -count - 1 : -1]
        kept = data["response_mask"][i, :count].bool()
        new = token_stats(logits, ids[-count:]).map(lambda x, kept=kept: x[kept])
        news.append(new)
        olds.append(TokenStats(data["old_log_probs"][i, :count][kept], *(new.entropy * torch.nan,) * 3))
        advantages.append(data["advantages"][i, :count][kept])
    clip = ClipRange(config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_c)
    new, old, advantages = concatenate(news).map(Tensor.float), concatenate(olds), torch.cat(advantages)
    return Tokens(new, old, advantages, clip, torch.zeros_like(advantages), {})


# ---- switching it on


def test_it_is_registered_under_its_name():
    assert get_policy_loss_fn("steer") is integration.steer_policy_loss


def test_external_lib_alone_registers_it(monkeypatch):
    name = integration.__name__
    monkeypatch.setattr(integrations, "verl", integration)
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(POLICY_LOSS_REGISTRY, "steer")
    monkeypatch.setattr(BaseEngine, "train_batch", BaseEngine.train_batch.__wrapped__)
    model = Path(integrations.__file__).parent.parent / "models" / "countdown"
    config = verl_config(
        f"actor_rollout_ref.model.path={model}", SWITCHES[0], "+actor_rollout_ref.model.hf_config=null"
    )
    assert isinstance(omega_conf_to_dataclass(config.actor_rollout_ref.model), HFModelConfig)
    assert get_policy_loss_fn("steer").__module__ == name
    assert BaseEngine.train_batch.__wrapped__


def test_the_documented_lines_are_settings_of_verl():
    lines = [line.strip() for line in integration.__doc__.splitlines()]
    lines = [line for line in lines if line.lstrip("+").startswith("actor_rollout_ref.")]
    assert set(SWITCHES) < set(lines)
    config = omega_conf_to_dataclass(verl_config(*lines).actor_rollout_ref.actor)
    assert config.policy_loss.loss_mode == "steer"
    assert config.calculate_entropy
    assert integration.steer_settings(config.policy_loss) == Steer(lambda_min=0.6)


def test_without_settings_the_defaults_are_those_of_steer():
    assert integration.steer_settings(actor_config(*STEER).policy_loss) == Steer()


def test_without_verl_or_with_an_older_one_the_remedy_is_named(monkeypatch):
    spec = importlib.util.find_spec(integration.__name__)
    for broken, message in (
        (None, "verl: 0.9 is not installed .*; pip install"),
        ("0.8.0", "verl: 0.8.0 is older than 0.9"),
    ):
        with monkeypatch.context() as patch:
            if broken is None:
                patch.setitem(sys.modules, "verl", None)
            else:
                patch.setattr(sys.modules["verl"], "__version__", broken)
            with pytest.raises(SteerError, match=message):
                spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---- weights

SETTINGS = [
    {},
    {"lambda_min": 0.2, "lambda_max": 1.3},
    {"map": "linear"},
    {"map": "binary", "normaliser": "quantile", "quantile": 0.6},
    {"normaliser": "quantile", "quantile": 0.5},
    {"sides": "lowering"},
    {"smallest_normaliser": 0.5},
    {"form": "covariance"},
]
CLIPS = [(), (f"{ACTOR}.clip_ratio_low=0.05", f"{ACTOR}.clip_ratio_high=0.1", f"{ACTOR}.clip_ratio_c=1.2")]


@pytest.mark.parametrize("clip", CLIPS, ids=["clip", "tight-clip"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_of_a_micro_batch_are_those_of_steer(weighed, settings, clip):
    config, engine, data = (
        actor_config(*STEER, *clip, scope="micro", **settings),
        Engine(),
        batch(seed=1, rows=12, micro=6),
    )
    parts = [tokens_of(engine, data, config, slice(i, i + 6)) for i in (0, 6)]
    engine.train(data, config)
    expected = torch.cat([Steer(scope="micro", **settings).loss_terms(part).weights for part in parts])
    torch.testing.assert_close(lambdas(weighed), expected, rtol=0, atol=1e-6)
    assert expected.unique().numel() > 1 or settings.get("smallest_normaliser")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_weights_of_a_step_see_all_of_its_micro_batches(weighed, settings):
    config, engine, data = actor_config(*STEER, **settings), Engine(), batch(seed=1, rows=6)
    tokens = tokens_of(engine, data, config)
    engine.train(data, config)
    assert len(weighed) == 3
    expected = Steer(**settings).loss_terms(tokens).weights
    torch.testing.assert_close(lambdas(weighed), expected, rtol=0, atol=1e-6)


def test_a_step_does_not_depend_on_its_split_and_scope_micro_does():
    def gradients(scope, micro):
        engine = Engine()
        engine.train(batch(seed=2, rows=4, micro=micro), actor_config(*STEER, scope=scope, lambda_min=0.1))
        return torch.cat([x.flatten() for x in engine.gradients()])

    whole = gradients("step", 4)
    for micro in (1, 2):
        torch.testing.assert_close(gradients("step", micro), whole, rtol=1e-4, atol=1e-6)
    assert (gradients("micro", 1) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("scope", "passes"), [("step", 4), ("micro", 2)])
def test_a_values_pass_is_one_more_forward_pass(scope, passes):
    engine, calls = Engine(), []
    engine.module.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    engine.train(batch(), actor_config(*STEER, scope=scope))
    assert calls == [False] * (passes - 2) + [True, True]


def rank_weights(rank, ranks, store, results, settings):
    """One data-parallel rank of a step: its share of the rows, its weights."""
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    monkeypatch = pytest.MonkeyPatch()
    on_cpu(monkeypatch, rank, ranks, store)
    calls = spied(monkeypatch)
    try:
        rows = tu.chunk_tensordict(batch(seed=3, rows=8), ranks)[rank]
        Engine().train(rows, actor_config(*STEER, **settings))
        results.put((rank, lambdas(calls).tolist()))
    except Exception as error:
        results.put((rank, repr(error)))
    dist.destroy_process_group()


@pytest.mark.parametrize("settings", [{}, {"normaliser": "quantile", "quantile": 0.7}], ids=str)
def test_a_step_sees_all_data_parallel_ranks(tmp_path, settings):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    arguments = [(rank, 2, str(tmp_path / "ranks"), results, settings) for rank in range(2)]
    dist.destroy_process_group()
    processes = [fork.Process(target=rank_weights, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    assert not any(isinstance(weights, str) for weights in found.values()), found
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/again", rank=0, world_size=1)
    expected = Steer(**settings).loss_terms(tokens_of(Engine(), batch(seed=3, rows=8), actor_config(*STEER))).weights
    torch.testing.assert_close(torch.tensor(found[0] + found[1]), expected, rtol=0, atol=1e-6)


# ---- the loss

REDUCTIONS = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


@pytest.mark.parametrize("scope", ["step", "micro"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lambda_min_1_is_vanilla_bit_for_bit(scope, reduction):
    importance = torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(7)) + 0.5
    common = (
        f"{ACTOR}.loss_agg_mode={reduction}",
        f"{ACTOR}.entropy_coeff=0.01",
        f"{ACTOR}.clip_ratio_high=0.28",
        f"{ACTOR}.clip_ratio_c=1.5",
    )
    outputs, gradients, states = [], [], []
    for config in (actor_config(*VANILLA, *common), actor_config(*STEER, *common, lambda_min=1, scope=scope)):
        engine = Engine(torch.float32)
        outputs.append(engine.train(batch(seed=4, drift=1.0, rollout_is_weights=importance), config))
        gradients.append(engine.gradients())
        states.append(engine.module.state_dict())
    assert outputs[0]["loss"] == outputs[1]["loss"]
    vanilla, steer = (reduce_metrics(output["metrics"]) for output in outputs)
    assert vanilla == {key: value for key, value in steer.items() if key in vanilla}
    assert 0 < vanilla["actor/pg_clipfrac_lower"] < 1
    assert all(map(torch.equal, *gradients))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_lambda_multiplies_each_tokens_clipped_loss_and_its_importance_weight(weighed):
    importance = torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(7)) + 0.5
    config, engine = actor_config(*STEER, f"{ACTOR}.clip_ratio_c=1.5"), Engine()
    data = batch(seed=4, drift=1.0, rollout_is_weights=importance)
    tokens, importance = tokens_of(engine, data, config), importance[data["response_mask"].bool()]
    surrogate = clipped_surrogate(tokens.new.logprob, tokens.old.logprob, tokens.advantages, tokens.clip)
    weights = Steer().loss_terms(replace(tokens, advantages=tokens.advantages * importance)).weights
    output = engine.train(data, config)
    torch.testing.assert_close(lambdas(weighed), weights * importance, rtol=0, atol=1e-6)
    assert sum(output["loss"]) == pytest.approx(float((weights * importance * surrogate).mean()), abs=1e-6)
    assert (weights - Steer().loss_terms(tokens).weights).abs().max() > 1e-3


def test_metrics_are_vanillas_and_those_of_the_weights(weighed):
    config = actor_config(*STEER, scope="micro")
    metrics = reduce_metrics(Engine().train(batch(), config)["metrics"])
    vanilla = reduce_metrics(Engine().train(batch(), actor_config(*VANILLA))["metrics"])
    means = [args[6][args[3]].mean().item() for args in weighed]
    smallest = [args[6][args[3]].min().item() for args in weighed]
    near = [((args[6][args[3]] - 1).abs() <= 0.01).float().mean().item() for args in weighed]
    assert metrics.keys() - vanilla.keys() == {
        "actor/lambda/mean",
        "actor/lambda/q0",
        "actor/lambda/share_within_1pct_of_1",
        "actor/entropy_change/normaliser",
    }
    assert metrics["actor/lambda/mean"] == pytest.approx(sum(means) / 2)
    assert metrics["actor/lambda/q0"] == pytest.approx(sum(smallest) / 2) == pytest.approx(0.7)
    assert metrics["actor/lambda/share_within_1pct_of_1"] == pytest.approx(sum(near) / 2)
    assert metrics["actor/entropy_change/normaliser"] > 0


@pytest.mark.parametrize("scope", ["step", "micro"])
def test_a_micro_batch_without_response_tokens_adds_nothing(scope):
    data = batch(seed=5, rows=4)
    data["response_mask"][:2] = 0
    data["loss_mask"] = data["response_mask"]
    engine, alone = Engine(), Engine()
    output = engine.train(data, actor_config(*STEER, scope=scope))
    alone.train(tu.chunk_tensordict(data, 2)[1], actor_config(*STEER, scope=scope))
    assert output["loss"][0] == 0
    assert all(len(value.values) == 2 for key, value in output["metrics"].items() if key.startswith("actor/"))
    for a, b in zip(engine.gradients(), alone.gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_other_losses_get_verls_own_train_batch(monkeypatch):
    seen = []
    monkeypatch.setattr(Engine, "forward_backward_batch", lambda self, data, loss, forward_only: seen.append(loss))
    for loss in (
        functools.partial(ppo_loss, config=actor_config(*VANILLA)),
        functools.partial(ppo_loss, config=None),
        ppo_loss,
    ):
        with pytest.raises(TypeError, match="NoneType"):  # verl goes on with the outputs
            Engine().train_batch(batch(), loss)
        assert seen.pop() is loss
    assert not seen


# ---- what is refused


def test_missing_entropy_names_the_setting_of_verl():
    config = actor_config(*STEER[:2])
    with pytest.raises(SteerError, match=r"actor_rollout_ref\.actor\.calculate_entropy: False .*set it to True"):
        Engine().train(batch(entropy=False), config)


def test_an_entropy_coefficient_is_enough_to_have_entropies():
    config = actor_config(*STEER[:2], f"{ACTOR}.entropy_coeff=0.01")
    assert "actor/lambda/mean" in Engine().train(batch(entropy=True), config)["metrics"]


def test_outside_of_train_batch_there_is_no_entropy_and_it_says_so():
    loss = functools.partial(ppo_loss, config=actor_config(*STEER))
    with pytest.raises(SteerError, match=r"policy_loss\.loss_mode: steer was called outside .*train_batch"):
        Engine().forward_backward_batch(batch(), loss)


@pytest.mark.parametrize("scope", ["step", "micro"])
def test_log_probs_that_are_not_finite_are_refused_and_nothing_stays_behind(scope):
    data = batch()
    data["old_log_probs"][:] = torch.nan
    with pytest.raises(SteerError, match=r"actor\.optim\.lr: the log-probs, entropies .* are not finite; lower it"):
        Engine().train(data, actor_config(*STEER, scope=scope))
    assert integration._current.get() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "exact"}, r"form: exact needs the sum of p\^2 ln p, .*; use paper"),
        ({"form": "released"}, r"form: released needs the entropies of the policy that sampled, .*; use paper"),
        ({"scope": "rollout"}, r"scope: rollout needs the entropies of the policy that sampled, .*; use step"),
        ({"form": "covariance", "scope": "rollout"}, r"scope: rollout .*use step"),
        ({"lambda_mim": 0.5}, r"lambda_mim: unknown key; did you mean 'lambda_min'\?"),
        ({"lambda_min": 0}, r"lambda_min: 0 is not allowed; .*greater than 0"),
        ({"lambda_min": 0.9, "lambda_max": 0.8}, r"lambda_min: 0\.9 is above lambda_max \(0\.8\); choose"),
        ({"map": "cubic"}, r"map: 'cubic' is not allowed; "),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused_with_field_value_and_remedy(settings, message):
    with pytest.raises(SteerError, match=rf"actor_rollout_ref\.actor\.policy_loss\.steer\.{message}"):
        integration.SteerPolicyLossConfig(loss_mode="steer", steer=settings)


def test_verl_refuses_it_when_it_reads_its_settings():
    with pytest.raises(Exception, match=r"policy_loss\.steer\.form: exact needs"):
        actor_config(*STEER, form="exact")


def test_settings_of_steer_beside_another_loss_are_refused():
    with pytest.raises(
        SteerError, match=r"policy_loss\.loss_mode: 'vanilla' takes no settings of STEER; set it to steer"
    ):
        integration.SteerPolicyLossConfig(steer={"lambda_min": 0.5})
    assert integration.SteerPolicyLossConfig().steer == {}


def test_verls_own_section_takes_no_settings_of_steer():
    with pytest.raises(Exception, match="unexpected keyword argument 'steer'"):
        omega_conf_to_dataclass(verl_config(f"+{SECTION}.steer.lambda_min=0.5").actor_rollout_ref.actor)
    assert issubclass(integration.SteerPolicyLossConfig, PolicyLossConfig)
