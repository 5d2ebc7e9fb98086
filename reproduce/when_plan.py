"""The plan of the experiment on when entropy matters: its settings, its stages, and how each chooses for the next."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass
from tournament import RATE, Method, settings_of
from when_rows import plateau_pass1

from steer_core import STRICT, SteerError
from steer_core.common.settings import merged
from steer_core.compare.plan import Arm, Plan

PLAN = Path(__file__).with_name("when.yaml")
STAGES = ("envelope", "screening", "tuning", "test", "again")
REFERENCE = "grpo"
Stage = list[dict[str, Any]]
"""The rows of a stage's runs, as `when_rows` keeps them."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Setting:
    """A set-up in which entropy could matter.

    base: arguments of base_model.py where the setting has a base model of its own. discovery: the pass@1 whose first
    crossing counts as the discovery of a rare move.
    """

    title: str
    settings: dict[str, Any]
    screening_rollouts: int = Field(ge=1)
    test_seeds: list[int] = Field(min_length=1)
    again_seeds: list[int] = Field(min_length=1)
    base: list[str] | None = None
    discovery: float | None = None


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Experiment:
    """The plan as a whole; see when.yaml."""

    common: dict[str, Any]
    final: dict[str, Any]
    rates: list[float] = Field(min_length=1)
    tuning_seeds: list[int] = Field(min_length=1)
    screened_rates: list[float] = Field(min_length=1)
    finalists: int = Field(ge=1)
    contrasts: int = Field(ge=1)
    settings: dict[str, Setting]
    methods: dict[str, Method]

    def __post_init__(self) -> None:
        for name, setting in self.settings.items():
            seeds = [*self.tuning_seeds, *setting.test_seeds, *setting.again_seeds]
            if len(set(seeds)) < len(seeds):
                raise SteerError(f"settings.{name}: a seed is used by two of tuning, test and again; give each its own")


def stage_plan(experiment: Experiment, setting: str, stage: str, earlier: dict[str, Stage]) -> Plan:
    """The comparison of a stage, given the rows of the stages before it. Raises SteerError where one has not run."""
    found = experiment.settings[setting]
    common, title = merged(experiment.common, found.settings), f"{found.title}, {stage}"
    if stage == "envelope":
        arms = {f"{REFERENCE}-x{rate:g}": grpo(rate) for rate in experiment.rates}
        return Plan(arms=arms, baseline=next(iter(arms)), seeds=experiment.tuning_seeds, common=common, note=title)
    reference = reference_rate(experiment, setting, earlier)
    if stage == "screening":
        short = merged(common, {"train": {"rollouts": found.screening_rollouts}})
        arms = {f"{REFERENCE}-x{reference:g}": grpo(reference)} | screened(experiment, reference)
        seeds = experiment.tuning_seeds[:1]
        return Plan(arms=arms, baseline=next(iter(arms)), seeds=seeds, common=short, note=title)
    if stage == "tuning":
        arms = best_of(screened(experiment, reference), earlier["screening"], experiment.finalists, setting)
        return Plan(arms=arms, baseline=next(iter(arms)), seeds=experiment.tuning_seeds, common=common, note=title)
    arms = {REFERENCE: grpo(reference)}
    if stage == "again":
        return Plan(arms=arms, baseline=REFERENCE, seeds=found.again_seeds, common=common, note=title)
    finalists = best_of(screened(experiment, reference), earlier["screening"], experiment.finalists, setting)
    arms |= best_of(finalists, earlier["tuning"], experiment.contrasts, setting)
    return Plan(arms=arms, baseline=REFERENCE, seeds=found.test_seeds, common=common, note=title)


def grpo(rate: float) -> Arm:
    """GRPO at a learning rate."""
    return Arm(label=f"GRPO, x {rate:g}", overrides=[f"{RATE}={rate:g}"])


def screened(experiment: Experiment, reference: float) -> dict[str, Arm]:
    """Every method at every strength and learning rate that it may choose from, by arm `method.strength.rate`."""
    return {
        f"{name}.{i}.{j}": Arm(
            label=f"{method.label}, {'' if strength is None else f'{strength:g}, '}x {rate * reference:g}",
            overrides=settings_of(method, strength, rate * reference),
        )
        for name, method in experiment.methods.items()
        for i, strength in enumerate(method.strength.values if method.strength else [None])
        for j, rate in enumerate(experiment.screened_rates)
    }


def reference_rate(experiment: Experiment, setting: str, earlier: dict[str, Stage]) -> float:
    """The learning rate at which GRPO has the highest pass@1 at the end, mean over the tuning seeds."""
    scores = plateau_pass1(earlier["envelope"])
    arms = {f"{REFERENCE}-x{rate:g}": rate for rate in experiment.rates}
    _require(arms, scores, setting, "envelope")
    return arms[max(arms, key=lambda arm: scores[arm])]


def best_of(arms: dict[str, Arm], rows: Stage, count: int, setting: str) -> dict[str, Arm]:
    """The best cell of each of the best methods, by pass@1 at the end; of equals, the first."""
    scores, best = plateau_pass1(rows), {}
    _require(arms, scores, setting, "screening")
    for arm in sorted(arms, key=lambda arm: -scores[arm]):
        best.setdefault(arm.partition(".")[0], arm)
    return {arm: arms[arm] for arm in list(best.values())[:count]}


def _require(arms: dict[str, Any], scores: dict[str, float], setting: str, stage: str) -> None:
    lacking = [arm for arm in arms if math.isnan(scores.get(arm, math.nan))]
    if lacking:
        raise SteerError(f"--stages: {setting} lacks {lacking[0]} of {stage}; run that stage to its end first")


def quick(experiment: Experiment) -> Experiment:
    """A slice of every setting: two rates, two methods, runs of a few rollouts, small evaluations; decides nothing."""
    small = {"evaluation": {"every": 2, "problems": 8, "samples": 32, "pass_at": [1, 32]}}
    sizes = {"rollout": {"prompts": 16}, "train": {"rollouts": 4}}
    settings = {
        name: dataclasses.replace(
            setting,
            settings=merged(
                merged(setting.settings, sizes), {} if setting.base is None else {"model": {"path": "embedded"}}
            ),
            base=None,
            screening_rollouts=2,
            test_seeds=setting.test_seeds[:2],
            again_seeds=setting.again_seeds[:2],
        )
        for name, setting in experiment.settings.items()
    }
    return dataclasses.replace(
        experiment,
        common=merged(experiment.common, small),
        final=experiment.final | {"problems": 20, "samples": 32, "pass_at": [1, 32]},
        rates=experiment.rates[-2:],
        tuning_seeds=experiment.tuning_seeds[:1],
        finalists=2,
        contrasts=1,
        methods=dict(list(experiment.methods.items())[:2]),
        settings=settings,
    )
