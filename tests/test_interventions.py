"""Every method behind the one interface: its parts, its settings, its neutral point, its errors, its state."""

import itertools
import math
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from hand import stats_of, tokens_of
from methods import NEUTRAL, OF_A_ROLLOUT, OF_A_STEP, TOUCHES
from outside_method import Halved
from scenario import ACTING, equip, micro_batches, outcome, sampled, trainer_of
from small import grade_by, small_config, small_trainer, trainer_in, without_time

from steer_core.common.errors import SteerError
from steer_core.common.settings import build, to_dict
from steer_core.config.config import Config
from steer_core.interventions import METHODS, catalogue, intervention, method
from steer_core.interventions.base import PARTS, UNLOGGED, Intervention
from steer_core.runs.folder import RunFolder
from steer_core.training.update import Update


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return trainer_of(tmp_path_factory.mktemp("one") / "run")


@pytest.fixture(scope="module")
def data(trainer):
    return sampled(trainer)


@pytest.fixture(scope="module")
def grpo(trainer, data):
    return outcome(equip(trainer, "none"), micro_batches(trainer, data, 4))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_touches_the_parts_it_overrides_and_sees_what_it_must(name):
    made = intervention({"name": name})
    assert type(made) is method(name)
    assert made.name == name
    assert made.touches == TOUCHES[name]
    assert set(made.touches) <= set(PARTS)
    assert made.scope == ("step" if name in OF_A_STEP else "rollout" if name in OF_A_ROLLOUT else "token")
    assert method(name).__doc__.strip().endswith(".")


def test_the_catalogue_lists_every_method_but_none():
    assert {name: touched for name, _, touched in catalogue()} == {k: v for k, v in TOUCHES.items() if k != "none"}
    assert all(told.endswith(".") for _, told, _ in catalogue())


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_a_method_go_to_yaml_and_back(name):
    config = small_config(f"intervention.name={name}", *(f"intervention.{k}={v}" for k, v in ACTING[name].items()))
    assert config.intervention == method(name)(**ACTING[name])
    assert build(Config, to_dict(config)) == config
    assert to_dict(config)["intervention"].items() >= {"name": name, **ACTING[name]}.items()


@pytest.mark.parametrize(("name", "settings"), [(name, s) for name, many in NEUTRAL.items() for s in many])
def test_neutral_settings_are_plain_grpo_bit_for_bit(trainer, data, grpo, name, settings):
    equip(trainer, name, **settings)
    trainer.update.active.memory = {}
    found = outcome(trainer, micro_batches(trainer, data, 4))
    for key in set(grpo) - {"state"}:
        assert alike(found, grpo, key), key


def alike(found: dict, expected: dict, key: str) -> bool:
    """Whether two steps agree bit for bit; in ratios at tokens with an advantage: not every method looks at others."""
    seen = expected["advantages"] != 0 if key == "ratio" else ...
    return torch.equal(found[key][seen], expected[key][seen])


@pytest.mark.parametrize("settings", [{"share": 0}, {"coefficient": 0}])
def test_kl_cov_without_its_penalty_is_grpo_without_a_clip_bit_for_bit(tmp_path, trainer, data, grpo, settings):
    wide = ("algorithm.clip_low=1", "algorithm.clip_high=1e30", "algorithm.dual_clip=null")
    expected = outcome(equip(trainer_of(tmp_path / "wide", *wide), "none"), micro_batches(trainer, data, 4))
    found = outcome(equip(trainer, "kl-cov", **settings), micro_batches(trainer, data, 4))
    assert not torch.equal(found["parameters"], grpo["parameters"])
    assert all(alike(found, expected, key) for key in found)


def test_a_steps_loss_is_the_weighted_surrogate_and_the_extra_term(trainer, data):
    """One part at a time is pinned elsewhere; here all of them meet, on hand-made numbers."""

    @dataclass(frozen=True, kw_only=True)
    class Everything(Intervention):
        def advantages(self, tokens):
            return 2 * tokens.advantages

        def weights(self, tokens):
            return tokens.advantages.abs()  # those that the surrogate takes

        def mask(self, tokens):
            return tokens.advantages > 0

        def extra_loss(self, stats, old):
            return 3 * stats.entropy - old.logprob

        def extra_factors(self, tokens):
            return tokens.draws

    (part,) = micro_batches(trainer, data, 8)
    equip(trainer, "none").update.active.method = Everything()
    new, mask, a = trainer.update.score(part).detach(), part.mask_BT, part.advantages_BT
    losses = trainer.update.active.token_losses(new, part, trainer.update.active.loss_terms([new], [part], 1)[0])
    ratio = (new.logprob - part.old.logprob).exp()
    expected = torch.where(a > 0, 2 * a * -2 * a * ratio.clamp(max=1.28), 0.0)
    expected = expected + part.draws_BT * (3 * new.entropy - part.old.logprob)
    torch.testing.assert_close(losses[mask], expected[mask])


REFUSED = [
    ("steer", {"lambda_min": 0}, "lambda_min: 0 is not allowed"),
    ("steer", {"lambda_min": -0.1}, "lambda_min: -0.1 is not allowed"),
    ("steer", {"lambda_min": 1.01}, r"lambda_min: 1.01 is above lambda_max \(1.0\); choose one within \(0, 1\]"),
    ("steer", {"lambda_min": 0.9, "lambda_max": 0.8}, r"lambda_min: 0.9 is above lambda_max \(0.8\)"),
    ("steer", {"lambda_max": 0}, "lambda_max: 0 is not allowed"),
    ("steer", {"quantile": 0}, "quantile: 0 is not allowed"),
    ("steer", {"smallest_normaliser": -0.1}, "smallest_normaliser: -0.1 is not allowed"),
    ("steer", {"form": "papre"}, "form: 'papre' is not allowed; .*'paper', 'released', 'exact' or 'covariance'"),
    ("steer", {"form": "covariance", "scope": "rollout"}, "scope: rollout is not for form covariance"),
    ("steer-control", {"scope": "rollout"}, "scope: rollout is not for steer-control"),
    ("steer-control", {"lambda_min": 1.01}, "lambda_min: 1.01 is above"),
    ("steer-control", {"control": "mixed"}, "control: 'mixed' is not allowed"),
    ("clip-higher", {"high": -0.1}, "high: -0.1 is not allowed"),
    ("entropy-loss", {"coefficient": -1}, "coefficient: -1 is not allowed"),
    ("adaptive-entropy-loss", {"target": -1}, "target: -1 is not allowed"),
    ("adaptive-entropy-loss", {"step": 0}, "step: 0 is not allowed"),
    ("adaptive-entropy-loss", {"maximum": -1}, "maximum: -1 is not allowed"),
    ("fork-tokens", {"share": 0}, "share: 0 is not allowed"),
    ("fork-tokens", {"share": 1.01}, "share: 1.01 is not allowed"),
    ("w-reinforce", {"positive": -0.1}, "positive: -0.1 is not allowed"),
    ("entropy-advantage", {"alpha": -0.4}, "alpha: -0.4 is not allowed"),
    ("entropy-advantage", {"kappa": 1}, "kappa: 1 is not allowed"),
    ("clip-cov", {"share": -0.1}, "share: -0.1 is not allowed"),
    ("clip-cov", {"share": 1.01}, "share: 1.01 is not allowed"),
    ("clip-cov", {"low": 5}, r"low: 5.0 is not below high \(5.0\)"),
    ("kl-cov", {"share": -0.1}, "share: -0.1 is not allowed"),
    ("kl-cov", {"coefficient": -1}, "coefficient: -1 is not allowed"),
    ("quadrants", {"negative_likely": -1}, "negative_likely: -1 is not allowed"),
    ("influence", {"strength": -0.1}, "strength: -0.1 is not allowed"),
    ("influence", {"bound": 0}, "bound: 0 is not allowed"),
    ("influence", {"bound": 1.01}, "bound: 1.01 is not allowed"),
    ("stare", {"target": -1}, "target: -1 is not allowed"),
    ("stare", {"share": 0}, "share: 0 is not allowed"),
    ("stare", {"positive": -1}, "positive: -1 is not allowed"),
    ("stare", {"negative": -1}, "negative: -1 is not allowed"),
    ("entropic", {"target": -1}, "target: -1 is not allowed"),
    ("entropic", {"kp": -1}, "kp: -1 is not allowed"),
    ("entropic", {"ki": -1}, "ki: -1 is not allowed"),
    ("entropic", {"threshold": 1}, "threshold: 1 is not allowed"),
    ("entrocraft", {"target": -1}, "target: -1 is not allowed"),
    ("entrocraft", {"margin": -0.1}, "margin: -0.1 is not allowed"),
    ("erc", {"low": -0.1}, "low: -0.1 is not allowed"),
    ("erc", {"low": 1}, "low: 1 is not allowed"),
    ("erc", {"high": 1}, "high: 1 is not allowed"),
    ("ce-gppo", {"low": -0.1}, "low: -0.1 is not allowed"),
    ("ce-gppo", {"high": -0.1}, "high: -0.1 is not allowed"),
    ("influence", {"target": -1}, "target: -1 is not allowed"),
    ("entropy-loss", {"coeficient": 1}, r"coeficient: unknown key; did you mean 'coefficient'\?"),
    ("none", {"lambda_min": 0.5}, "lambda_min: no method is named that takes it; add intervention.name=METHOD"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_settings_out_of_range_are_refused_with_the_field(name, settings, message):
    with pytest.raises(SteerError, match=rf"^intervention\.{message}"):
        small_config(f"intervention.name={name}", *(f"intervention.{key}={value}" for key, value in settings.items()))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("name=stear", r"name: 'stear' is no method; did you mean 'steer'\?, or write module:Class"),
        ("name=zzz", "name: 'zzz' is no method; known: none, steer, .*, or write module:Class"),
        ("name=3", "name: 3 is no name"),
        ("name=null", "name: None is no name"),
        (
            "name=no_such_module:Method",
            r"name: no_such_module:Method is not found \(No module named 'no_such_module'\)",
        ),
        ("name=outside_method:Missing", r"name: outside_method:Missing is not found \(.*Missing"),
        ("name=outside_method:NoMethod", "name: outside_method:NoMethod is no Intervention; derive it"),
        ("name=outside_method:NO_CLASS", "name: outside_method:NO_CLASS is no Intervention"),
        ("name='outside_method:'", "name: outside_method: is not found"),
        ("name=':Halved'", "name: :Halved is not found"),
        ("name=.outside_method:Halved", "name: .outside_method:Halved is not found"),
    ],
)
def test_a_name_that_is_no_method_is_refused_with_the_nearest(section, message):
    with pytest.raises(SteerError, match=rf"^intervention\.{message}"):
        small_config(f"intervention.{section}")


@pytest.mark.parametrize("value", ["3", "[steer]", "steer", "null"])
def test_a_section_that_is_a_value_is_refused(value):
    with pytest.raises(SteerError, match=r"^intervention: .* is no section; write `name: METHOD` below it"):
        small_config(f"intervention={value}")


def test_an_intervention_of_another_package_trains_and_goes_on(tmp_path):
    overrides = ("intervention.name=outside_method:Halved", "intervention.factor=0.25", "rollout.prompts=2")
    trainer = small_trainer(tmp_path / "a", *overrides, "train.rollouts=2", "evaluation.every=0")
    verdicts = itertools.cycle([True, False, False])
    grade_by(trainer, lambda response: next(verdicts))
    assert trainer.fit()
    rows = trainer.run.read()
    assert [row["intervention/rollouts"] for row in rows] == [1, 2]
    assert rows[0]["lambda/q0"] == 0.25
    assert rows[0]["lambda/q100"] == 1
    config = RunFolder.open(tmp_path / "a").config.with_method()
    assert config.intervention == Halved(factor=0.25)
    assert config.intervention.touches == ("weights",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("factor=-1", "factor: -1 is not allowed"), ("facto=1", r"facto: unknown key; did you mean 'factor'\?")],
)
def test_settings_of_another_packages_intervention_are_checked(setting, message):
    with pytest.raises(SteerError, match=rf"^intervention\.{message}"):
        small_config("intervention.name=outside_method:Halved", f"intervention.{setting}")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("advantages", math.inf, "advantages that are not finite"),
        ("weights", math.nan, "weights that are not finite"),
        ("weights", -1e-9, "negative weights"),
        ("extra_factors", math.nan, "extra factors that are not finite"),
    ],
)
def test_a_rule_that_gives_nan_infinity_or_a_negative_weight_is_refused_by_name(part, value, message):
    rule = {part: lambda self, tokens: torch.tensor([1.0, value]), "extra_loss": lambda self, stats, old: stats.entropy}
    rule.setdefault("extra_factors", lambda self, tokens: tokens.draws)
    with pytest.raises(SteerError, match=rf"^intervention\.name: mine makes {message}"):
        type("Rule", (Intervention,), rule)(name="mine").loss_terms(tokens_of([-1, -2], [1, 1]))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "influence"])
def test_no_token_at_all_gives_an_empty_treatment(name):
    tokens = tokens_of([], [], memory={"coefficient": 0.1, "entropy": 0.0, "gate": 1.0, "sign": 1.0})
    treatment = intervention({"name": name}).loss_terms(tokens)
    assert len(treatment.advantages) == len(treatment.weights) == 0
    assert treatment.extra is None or len(treatment.extra) == 0


@pytest.mark.parametrize("name", METHODS)
def test_equal_rewards_give_a_finite_step_and_no_push(trainer, data, name):
    silent = replace(data, advantages=torch.zeros_like(data.advantages))
    found = outcome(equip(trainer, name, **ACTING[name]), micro_batches(trainer, silent, 4))
    assert all(value.isfinite().all() for value in found.values())
    assert (found["norm"] > 0) == (
        name in {"entropy-loss", "adaptive-entropy-loss", "kl-cov", "differential-smoothing"}
    )


@pytest.mark.parametrize("size", [8, 4])
@pytest.mark.parametrize("name", METHODS)
def test_entropies_that_are_nan_are_refused_before_the_loss(trainer, data, name, size, monkeypatch):
    parts = micro_batches(trainer, data, size)

    update = equip(trainer, name, **ACTING[name]).update

    def spoilt(part):
        stats = Update.score(update, part)
        entropy = stats.entropy.detach().clone()
        entropy[1, 0] = math.nan
        return replace(stats, entropy=entropy)

    monkeypatch.setattr(update, "score", spoilt)
    with pytest.raises(SteerError, match=r"rollout 7: the log-probs or entropies are not finite"):
        trainer.optimizer_steps([parts], 7)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_steer_refuses_an_estimate_that_is_not_finite():
    tokens = tokens_of([-1, -2], [1, 1], entropy=[0.5, math.nan])
    with pytest.raises(SteerError, match=r"intervention\.form: paper estimates entropy changes that are not finite"):
        intervention({"name": "steer"}).loss_terms(tokens)
    tokens = tokens_of([-1, -2], [1, 1], old=stats_of([math.nan, -1]))
    with pytest.raises(SteerError, match=r"intervention\.form: exact estimates"):
        intervention({"name": "steer", "form": "exact"}).loss_terms(tokens)


def test_draws_follow_the_seed_and_the_rollout_and_nothing_else(tmp_path, trainer, data):
    def draws(of, size, step=1):
        trainer.config = replace(of.config, optimizer=replace(of.config.optimizer, micro_batch_sequences=size))
        (parts,) = trainer.batches(data.rollout, data.old, data.advantages, step)
        return torch.cat([part.draws_BT[part.mask_BT] for part in parts])

    other, kept = small_trainer(tmp_path / "b", "rollout.prompts=2", "train.seed=1"), trainer.config
    first = draws(trainer, 8)
    assert torch.equal(draws(trainer, 8), first)
    assert torch.equal(draws(trainer, 3), first)
    assert not torch.equal(draws(trainer, 8, step=2), first)
    assert not torch.equal(draws(other, 8), first)
    assert ((first >= 0) & (first < 1)).all()
    assert len(set(first.tolist())) == len(first)
    trainer.config = kept


def test_clip_cov_drops_other_tokens_under_another_seed(tmp_path, trainer, data):
    kept, dropped = trainer.config, []
    for seed in (0, 0, 1):
        trainer.config = replace(trainer.config, train=replace(trainer.config.train, seed=seed))
        equip(trainer, "clip-cov", share=0.05, low=0.001)
        dropped.append(outcome(trainer, micro_batches(trainer, data, 8))["weights"] == 0)
    trainer.config = kept
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    assert dropped[0].sum() == dropped[2].sum() == int(0.05 * len(dropped[0]))


def test_a_loop_is_told_the_mean_entropy_of_the_steps_tokens_before_the_step(trainer, data):
    parts = micro_batches(trainer, data, 4)
    scored = [trainer.update.score(part).entropy[part.mask_BT].detach() for part in parts]
    equip(trainer, "adaptive-entropy-loss", **ACTING["adaptive-entropy-loss"])
    outcome(trainer, parts)
    assert trainer.update.active.memory == {
        "entropy": pytest.approx(float(torch.cat(scored).mean()), rel=1e-12),
        "coefficient": pytest.approx(0.2 + 0.1),
        "target": 9.0,
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adaptive-entropy-loss", {"target": 9, "step": 0.01, "maximum": 1}),
        ("entropic", {"target": 1.5, "ki": 0.5, "threshold": 0.5}),
        ("entropic", {"target": "0.5 to 0.1 over 4", "ki": 0.5, "threshold": 0.5}),
        ("entrocraft", {"target": "9 to 1 over 4"}),
        ("influence", {"target": "0.5 to 0.1 over 4"}),
        ("repo-r", {"zeta": -0.001}),
        ("boundary-gate", {}),
    ],
)
def test_a_run_that_is_killed_and_resumed_keeps_the_state_of_its_loop(tmp_path, name, settings):
    overrides = [f"intervention.name={name}", *(f"intervention.{key}={value}" for key, value in settings.items())]
    common = ("rollout.prompts=2", "optimizer.mini_batch_prompts=1", "evaluation.every=0", "train.probe_sequences=0")
    whole = small_trainer(tmp_path / "whole", *overrides, *common, "task.train_problems=3")  # some come again

    def kill(step, metrics):
        if step == 3:  # checkpoints are taken after rollouts 2 and 4
            shutil.copytree(whole.run.path, tmp_path / "killed")

    assert whole.fit(kill)
    resumed = trainer_in(RunFolder.open(tmp_path / "killed"))
    resumed.resume()
    assert resumed.finished == 2
    kept = {key.removeprefix("intervention/"): value for key, value in whole.run.read()[1].items() if "vention" in key}
    remembered = resumed.update.active.memory
    assert {key: value for key, value in remembered.items() if not key.startswith(UNLOGGED)} == kept
    assert any(key.startswith(UNLOGGED) for key in remembered) == (name == "boundary-gate")
    assert kept
    assert all(kept.values())
    assert resumed.fit()
    assert without_time(resumed.run.read()) == without_time(whole.run.read())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
