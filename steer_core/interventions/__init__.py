"""Every intervention by its name: a method of the field is a file here and a line in METHODS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from steer_core.common.errors import SteerError, nearest, one_line
from steer_core.common.settings import build
from steer_core.interventions.base import Intervention, Outside

METHODS = {
    "none": "base:Intervention",
    "steer": "steer:Steer",
    "clip-higher": "clip_higher:ClipHigher",
    "entropy-loss": "entropy_loss:EntropyLoss",
    "adaptive-entropy-loss": "adaptive_entropy_loss:AdaptiveEntropyLoss",
    "fork-tokens": "fork_tokens:ForkTokens",
    "w-reinforce": "w_reinforce:WReinforce",
    "entropy-advantage": "entropy_advantage:EntropyAdvantage",
    "clip-cov": "covariance:ClipCov",
    "kl-cov": "covariance:KLCov",
    "quadrants": "quadrants:Quadrants",
    "influence": "influence:Influence",
    "stare": "stare:Stare",
    "entropic": "entropic:EntroPIC",
    "entrocraft": "entrocraft:Entrocraft",
    "erc": "erc:ERC",
    "ce-gppo": "ce_gppo:CEGPPO",
    "steer-control": "steer_control:SteerControl",
    "repo-r": "repo:RepoR",
    "differential-smoothing": "differential_smoothing:DifferentialSmoothing",
    "boundary-gate": "boundary_gate:BoundaryGate",
}
"""Name to `module:Class` in this package. Names of other packages are given as `module:Class` in full."""


class _Interventions(Mapping[str, "type[Intervention]"]):
    """Every method of this package by its name, as a class; each is imported where it is asked for."""

    def __getitem__(self, name: str) -> type[Intervention]:
        if name not in METHODS:
            raise KeyError(name)
        return method(name)

    def __iter__(self) -> Iterator[str]:
        return iter(METHODS)

    def __len__(self) -> int:
        return len(METHODS)


INTERVENTIONS = _Interventions()


def method(name: str) -> type[Intervention]:
    """The class of a method. Raises SteerError naming the nearest one where there is none."""
    place = f"{__name__}.{METHODS[name]}" if name in METHODS else name
    module, separator, kind = place.partition(":")
    if not separator:
        raise SteerError(f"intervention.name: {name!r} is no method; {nearest(name, METHODS)}, or write module:Class")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: an empty or relative module
        raise SteerError(
            f"intervention.name: {name} is not found ({one_line(error)}); check module and class, and have Python find "
            "the module: PYTHONPATH=FOLDER steer train ..."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Intervention)):
        raise SteerError(f"intervention.name: {name} is no Intervention; derive it from steer_core's")
    return found


def catalogue() -> list[tuple[str, str, tuple[str, ...]]]:
    """(name, what it does in a sentence, the parts of the step it touches) of every method here."""
    return [
        (name, (kind.__doc__ or "").strip().split("\n")[0], kind().touches)
        for name, kind in ((name, method(name)) for name in METHODS if name != "none")
    ]


def intervention(settings: Any, outside: bool = True) -> Intervention:
    """The intervention that a mapping of settings names; one that is an intervention already is kept.

    outside: import a method of another package; else it stays `Outside`, by its name and settings.
    """
    if isinstance(settings, Intervention):
        return settings
    if not isinstance(settings, dict):
        raise SteerError(f"intervention: {settings!r} is no section; write `name: METHOD` below it")
    name = settings.get("name", "none")
    if not isinstance(name, str):
        raise SteerError(f"intervention.name: {name!r} is no name; {nearest(name, METHODS)}")
    if name == "none" and len(settings) > ("name" in settings):
        key = next(key for key in settings if key != "name")
        raise SteerError(f"intervention.{key}: no method is named that takes it; add intervention.name=METHOD")
    if ":" in name and not outside:
        return Outside(name=name, written={key: value for key, value in settings.items() if key != "name"})
    return build(method(name), {**settings, "name": name}, "intervention")
