"""The plan of a comparison: which methods, from which common settings, over which seeds."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from steer_core.common.errors import SteerError
from steer_core.common.settings import STRICT, apply_overrides, build, read_yaml, to_dict
from steer_core.config.config import Config

_NOT_A_NAME = re.compile(r"^\W|[^\w.-]")


@settings(config=STRICT, kw_only=True, frozen=True)
class Arm:
    """One method of a comparison."""

    label: str
    """How tables and figures call it."""
    overrides: list[str] = Field(default_factory=list)
    """`section.key=value` on top of the plan's common settings."""


@settings(config=STRICT, kw_only=True, frozen=True)
class Plan:
    """Which methods are compared, from which common settings, over which seeds."""

    arms: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], Arm] = Field(min_length=1)
    """Methods by name; the name is the folder of its runs."""
    baseline: str
    """The arm that the others are compared with."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Every arm runs with each; a seed fixes data order and sampling."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Settings all arms share, as in a run's YAML."""
    note: str = ""
    """Said at the top of the report, for example that this is a quick look."""

    def __post_init__(self) -> None:
        if self.baseline not in self.arms:
            raise SteerError(f"baseline: {self.baseline!r} is no arm; choose one of {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise SteerError(f"seeds: {self.seeds} repeats a seed; list each once")
        shared = {name: self._shared(name) for name in self.arms}
        for name, settings_of_arm in shared.items():
            if settings_of_arm != shared[self.baseline]:
                raise SteerError(
                    f"arms.{name}: differs from {self.baseline} in model, task, evaluation or train.rollouts; "
                    "give all arms the same, so that like is compared with like"
                )
        self._check_seeds()
        self._check_twins()

    def _check_seeds(self) -> None:
        """Raise SteerError for an arm that sets a seed, which the plan's own would replace."""
        common = _seed(self.common)
        for name, arm in self.arms.items():
            seed = _seed(apply_overrides(self.common, arm.overrides))
            if seed not in (common, None):
                raise SteerError(
                    f"arms.{name}: sets train.seed={seed}; take it out, for `seeds` gives every arm its own"
                )

    def _check_twins(self) -> None:
        """Raise SteerError for two arms that are one."""
        configs = {name: self.config(name, self.seeds[0]) for name in self.arms}
        for one, other in combinations(configs, 2):
            if configs[one] == configs[other]:
                raise SteerError(
                    f"arms.{other}: has the same settings as arm {one}; take it out, or change its overrides"
                )

    @property
    def controls(self) -> list[str]:
        """Arms that differ from the baseline in a lower learning rate and nothing else: they only learn more slowly."""
        plain, found = self.config(self.baseline, self.seeds[0]), []
        one_rate = {"learning_rate": 1.0, "learning_rate_factor": 1.0}
        for arm in self.arms:
            config = self.config(arm, self.seeds[0])
            alike = replace(config, optimizer=replace(config.optimizer, **one_rate)) == replace(
                plain, optimizer=replace(plain.optimizer, **one_rate)
            )
            if alike and config.optimizer.step_size < plain.optimizer.step_size:
                found.append(arm)
        return found

    def _shared(self, arm: str) -> tuple[Any, ...]:
        """What every arm must have in common for a comparison of methods."""
        config = self.config(arm, self.seeds[0])
        return config.model, config.task, config.evaluation, config.train.rollouts

    def config(self, arm: str, seed: int) -> Config:
        """The configuration of one run. Raises SteerError where a setting does not fit."""
        return build(Config, apply_overrides(self.common, [*self.arms[arm].overrides, f"train.seed={seed}"]))


def arm_name(text: str) -> str:
    """Any text, such as a folder's name, as the name of an arm."""
    return _NOT_A_NAME.sub("_", text)


def _by_name(method: str) -> dict[str, Any]:
    """The arm of an intervention at its default settings."""
    return {"label": method, "overrides": [f"intervention.name={method}"]}


def _seed(data: dict[str, Any]) -> Any:
    """The seed that settings hold; None where they hold none."""
    section = data.get("train")
    return section.get("seed") if isinstance(section, dict) else None


def _key(override: str) -> str:
    return override.partition("=")[0]


def load_plan(
    path: Path,
    overrides: list[str] | tuple[str, ...] = (),
    seeds: list[int] | None = None,
    methods: list[str] | None = None,
) -> Plan:
    """The plan of a YAML file, with `section.key=value` set for all arms and the seeds replaced if given.

    methods: interventions by name, at their default settings, in place of every arm but the baseline.

    Raises SteerError for a setting that an arm makes itself: its label would no longer be true. The
    common settings are resolved to every setting there is, so that a plan on disk stays itself
    when a default changes.
    """
    data = read_yaml(path)
    if (seed := _seed(apply_overrides({}, overrides))) is not None:
        raise SteerError(f"train.seed: {seed} is for one run; give a comparison its seeds with --seeds {seed}")
    if methods is not None:
        twice = [name for name in methods if methods.count(name) > 1]
        if twice:
            raise SteerError(f"--methods: {twice[0]} is named twice; name each once")
        arms = build(Plan, data).arms  # whole, before any of it is left out
        kept = {name: data["arms"][name] for name in arms if name == data["baseline"]}
        data["arms"] = kept | {arm_name(name): _by_name(name) for name in methods}
    arms = data.get("arms")
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        own = arm.get("overrides") if isinstance(arm, dict) else None
        made = (
            {_key(override) for override in own or () if isinstance(override, str)} if isinstance(own, list) else set()
        )
        asked = {_key(override) for override in overrides}
        taken = {key for key in made if any(key == other or key.startswith(f"{other}.") for other in asked)}
        if taken:
            raise SteerError(
                f"{min(taken)}: arm {name!r} of {path} sets it itself; copy the plan, edit the arm and its label there"
            )
    common = data.get("common") or {}
    if not isinstance(common, dict):
        raise SteerError(f"common: {common!r} is no section; write `key: value` below it")
    data["common"] = to_dict(build(Config, apply_overrides(common, overrides)))
    if seeds is not None:
        data["seeds"] = seeds
    return build(Plan, data)


def run_path(folder: Path, arm: str, seed: int) -> Path:
    """Where a comparison keeps one of its runs."""
    return folder / "runs" / arm / f"seed_{seed}"
