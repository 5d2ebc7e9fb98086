"""Factors on the loss of one quadrant: what they touch, and how the runs that use them are judged."""

import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch
from small import small_config, small_trainer, without_time

from steer_core.common.errors import SteerError
from steer_core.compare.comparison import Comparison
from steer_core.compare.plan import Arm, Plan, load_plan
from steer_core.formulas.entropy_change import QUADRANTS, paper_entropy_change, quadrants
from steer_core.formulas.loss import ClipRange, clipped_surrogate
from steer_core.formulas.token_stats import TokenStats

REPRODUCE = Path(__file__).parent.parent / "reproduce"
SCRIPT = runpy.run_path(str(REPRODUCE / "quadrants.py"))


def settings(**factors):
    """The overrides that multiply quadrants by factors."""
    return ["intervention.name=quadrants", *(f"intervention.{name}={factor}" for name, factor in factors.items())]


def first_losses(monkeypatch, folder, *overrides):
    """(losses, quadrants, clipped surrogate of the first micro-batch's tokens, gradient norms, trainer)."""
    trainer, losses = small_trainer(folder, *overrides), []
    rollout = trainer.sampler.generate([p.prompt for p in trainer.problems_of(1)], 4, trainer.config.rollout, 3)
    old = trainer.score_rollout(rollout)
    advantages = torch.linspace(-1, 1, len(rollout.texts))[torch.tensor([0, 15, 5, 10] * 4)]
    batches = list(trainer.batches(rollout, old, advantages))
    part = batches[0][0]
    new = trainer.update.score(part).detach()
    reduce_loss = trainer.update.step.__globals__["reduce_loss"]
    monkeypatch.setattr(
        "steer_core.training.update.reduce_loss",
        lambda loss, *rest: losses.append(loss.detach()) or reduce_loss(loss, *rest),
    )
    _, norms, _ = trainer.optimizer_steps(batches, 1)
    monkeypatch.undo()
    surrogate = clipped_surrogate(new.logprob, part.old.logprob, part.advantages_BT, trainer.update.active.clip)
    mask = part.mask_BT
    inside = {name: where[mask] for name, where in quadrants(new, part.advantages_BT).items()}
    return losses[0][mask], inside, surrogate[mask], norms, trainer


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("name", QUADRANTS)
def test_a_factor_multiplies_the_loss_of_its_own_quadrant_and_of_no_other(tmp_path, monkeypatch, name, factor):
    losses, inside, surrogate, _, _ = first_losses(monkeypatch, tmp_path, *settings(**{name: factor}))
    assert inside[name].any()
    assert torch.equal(losses[inside[name]], factor * surrogate[inside[name]])
    assert torch.equal(losses[~inside[name]], surrogate[~inside[name]])


def test_factor_0_on_all_four_quadrants_gives_no_gradient(tmp_path, monkeypatch):
    off = settings(**dict.fromkeys(QUADRANTS, 0))
    _, _, _, norms, trainer = first_losses(monkeypatch, tmp_path / "off", *off)
    untouched = small_trainer(tmp_path / "untouched").model.state_dict()
    assert norms == [0, 0]
    assert all(torch.equal(value, untouched[name]) for name, value in trainer.model.state_dict().items())


def test_factor_1_on_all_four_is_grpo_bit_for_bit(tmp_path, monkeypatch):
    ones = settings(**dict.fromkeys(QUADRANTS, 1.0))
    losses, _, surrogate, _, _ = first_losses(monkeypatch, tmp_path / "first", *ones)
    assert torch.equal(losses, surrogate)
    grpo, same = small_trainer(tmp_path / "grpo"), small_trainer(tmp_path / "same", *ones)
    grpo.fit(), same.fit()
    assert without_time(grpo.run.read()) == without_time(same.run.read())
    for name, value in grpo.model.state_dict().items():
        assert torch.equal(value, same.model.state_dict()[name])


@pytest.mark.parametrize("name", QUADRANTS)
def test_a_negative_factor_is_refused_by_name(name):
    with pytest.raises(SteerError, match=rf"intervention\.{name}: -0\.5 is not allowed; .*greater than or equal to 0"):
        small_config(*settings(**{name: -0.5}))


def test_an_unknown_quadrant_is_refused_with_the_nearest_name():
    with pytest.raises(SteerError, match=r"intervention\.positive_likly: unknown key; did you mean 'positive_likely'"):
        small_config(*settings(positive_likly=2))


def test_the_predicted_signs_are_those_of_the_papers_form():
    p, zero = torch.tensor([0.8, 0.1, 0.8, 0.1], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    stats, advantages = TokenStats(p.log(), zero + 0.7, zero, zero), torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert [name for i, (name, mask) in enumerate(quadrants(stats, advantages).items()) if mask[i]] == list(QUADRANTS)
    change = paper_entropy_change(stats, stats, advantages, ClipRange())
    assert dict(zip(QUADRANTS, change.sign().int().tolist(), strict=True)) == SCRIPT["TOKENS_MOVE"]
    for name, sign in SCRIPT["TOKENS_MOVE"].items():
        assert SCRIPT["predicted_sign"](name, 2.0) == sign
        assert SCRIPT["predicted_sign"](name, 0.5) == -sign


def test_the_shipped_plan_weakens_and_strengthens_every_quadrant_once():
    plan = load_plan(SCRIPT["PLAN"])
    arms = [SCRIPT["intervention"](plan, arm) for arm in plan.arms]
    assert sorted(arms[1:]) == sorted((name, factor) for name in QUADRANTS for factor in (0.5, 2.0))
    assert arms[0] == (None, 1.0)
    assert plan.baseline == "grpo"


# By seed, what an arm adds to GRPO's entropy at each of 4 rollouts.
GAPS = {
    "as-said": ({"positive_likely": 0.5}, [[0.0, 0.01, 0.02, 0.03 + 0.001 * seed] for seed in range(3)]),
    "against": ({"positive_likely": 2}, [[0.0, 0.01, 0.02, 0.03 + 0.001 * seed] for seed in range(3)]),
    "noise": ({"negative_unlikely": 2}, [[0.0, 0.01 * (seed - 1), 0.0, 0.02 * (seed - 1)] for seed in range(3)]),
    "late": ({"negative_likely": 2}, [[0.0, -0.02 * seed, 0.01 * seed, 0.03 + 0.001 * seed] for seed in range(3)]),
}


def made(seeds=(0, 1, 2)) -> Comparison:
    """Hand-made curves: GRPO falls from 0.30 by 0.02 a rollout, 0.05 apart between seeds."""
    arms = {"grpo": Arm(label="GRPO")}
    arms |= {name: Arm(label=name, overrides=settings(**factors)) for name, (factors, _) in GAPS.items()}
    rows = [
        {"arm": arm, "seed": seed, "step": step + 1, "reward/mean": 0.1 * step}
        | {"entropy/policy": 0.3 - 0.02 * step + 0.05 * seed + (GAPS[arm][1][seed][step] if arm in GAPS else 0)}
        for arm in arms
        for seed in seeds
        for step in range(4)
    ]
    plan = Plan(arms=arms, baseline="grpo", seeds=list(seeds), common={"train": {"rollouts": 4}})
    return Comparison(plan, pd.DataFrame(rows), pd.DataFrame(columns=["arm", "seed", "step"]), None, {}, True)


def test_hand_made_curves_get_the_right_verdicts():
    arms = SCRIPT["results"](made())["arms"]
    assert {name: arm["verdict"] for name, arm in arms.items() if "verdict" in arm} == {
        "as-said": {"average": "as the theory says", "final": "as the theory says"},
        "against": {"average": "against it", "final": "against it"},
        "noise": {"average": "undecided", "final": "undecided"},
        "late": {"average": "undecided", "final": "as the theory says"},
    }
    assert {name: arm["predicted"] for name, arm in arms.items() if "predicted" in arm} == {
        "as-said": 1,
        "against": -1,
        "noise": -1,
        "late": 1,
    }


def test_differences_are_paired_by_seed_with_students_t_over_seeds():
    arms = SCRIPT["results"](made())["arms"]
    final = arms["as-said"]["difference"]["final"]  # 0.030, 0.031, 0.032: mean 0.031, t(2) 4.3027 x 0.001 / sqrt 3
    assert final == pytest.approx({"mean": 0.031, "low": 0.031 - 0.002484, "high": 0.031 + 0.002484}, abs=2e-6)
    assert arms["as-said"]["difference"]["average"]["mean"] == pytest.approx((0.06 + 0.001) / 4, abs=2e-6)
    assert arms["grpo"]["entropy"][3]["mean"] == pytest.approx(0.3 - 0.06 + 0.05)
    assert arms["as-said"]["difference"]["reward_last_5"]["mean"] == 0


def test_one_seed_has_no_interval_and_decides_nothing():
    arms = SCRIPT["results"](made(seeds=(0,)))["arms"]
    assert arms["as-said"]["difference"]["final"] == {"mean": 0.03, "low": None, "high": None}
    assert arms["as-said"]["verdict"] == {"average": "undecided", "final": "undecided"}


def test_an_arm_that_changes_two_quadrants_is_refused():
    arms = {"grpo": Arm(label="GRPO"), "both": Arm(label="x", overrides=settings(**dict.fromkeys(QUADRANTS[:2], 2)))}
    plan = Plan(arms=arms, baseline="grpo", seeds=[0])
    with pytest.raises(SteerError, match=r"arms\.both: changes positive_likely, positive_unlikely; change one"):
        SCRIPT["intervention"](plan, "both")


def test_the_committed_results_are_those_of_the_shipped_plan():
    found = json.loads((REPRODUCE / "results" / "quadrants" / "results.json").read_text())
    plan = load_plan(SCRIPT["PLAN"])
    assert list(found["arms"]) == list(plan.arms)
    assert (found["seeds"], found["rollouts"]) == (plan.seeds, 32)
    for name, arm in found["arms"].items():
        assert (arm["quadrant"], arm["factor"]) == SCRIPT["intervention"](plan, name)
        assert [len(seed) for seed in arm["entropy_by_seed"]] == [32] * len(plan.seeds)
    figure = SCRIPT["figure"](found)
    assert len(figure.axes) == 2 * len(QUADRANTS)
