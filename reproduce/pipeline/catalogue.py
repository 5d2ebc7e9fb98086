"""Which tables and figures the paper has, what each needs, and what it claims: catalogue.yaml, read and checked."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from pipeline.arms import known, pool
from steer_core import STRICT, SteerError
from steer_core.common.errors import nearest
from steer_core.common.settings import build, read_yaml

CATALOGUE = Path(__file__).parent.parent / "catalogue.yaml"
SCALES = ("laptop", "smoke", "paper", "paper-1gpu")
RULES = ("published", "validation", "last")
"""Ways to choose a checkpoint: by the first problem set (AIME24), as the paper does; by held-out problems of the
training set; the last one."""
ONE_GPU = "qwen2.5-math-1.5b"
"""The model whose runs fit one card."""


class Stopped(Exception):
    """The runs were asked to stop; the same command goes on."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Claim:
    """A sentence as a number: the sum of weight x measure over arms is above 0 if it holds.

    source: where the paper says so; `ours` where the sentence is our reading of what it argues for.
    """

    text: str
    measure: str
    weights: dict[str, float] = Field(min_length=1)
    source: str = "ours"


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Published:
    """The paper's own runs: a model of steer_core/configs/paper, its folder, the problem sets, other models."""

    model: str
    folder: str
    benchmarks: list[str] = Field(min_length=1)
    samples: int | None = Field(default=None, ge=1)
    also: dict[str, str] = Field(default_factory=dict)
    scored: dict[str, str] = Field(default_factory=dict)

    def models(self) -> dict[str, str]:
        """Folder by model, the first of them first."""
        return {self.model: self.folder} | self.also


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Item:
    """A table or figure; catalogue.yaml says what the fields mean."""

    title: str
    shows: str
    kind: Literal["scores", "curves", "script", "data"]
    names: list[str] = Field(default_factory=list)
    arms: dict[str, str | None] = Field(default_factory=dict)
    claims: list[Claim] = Field(default_factory=list)
    final: dict[str, Any] | None = None
    published: str | None = None
    paper: Published | None = None
    baseline: str | None = None
    script: str | None = None
    kept_arguments: list[str] = Field(default_factory=list)
    fresh_arguments: list[str] = Field(default_factory=list)
    page: str | None = None
    not_here: str | None = None
    note: str | None = None
    unknown: str | None = None

    def scales(self) -> list[str]:
        """The scales it can be made at."""
        if self.kind in ("script", "data"):
            return ["laptop"]
        found = ["smoke", "paper"] if self.paper else []
        one = ["paper-1gpu"] if self.paper and self.paper.model == ONE_GPU else []
        return [*([] if self.not_here else ["laptop"]), *found, *one]


@cache
def catalogue() -> dict[str, Item]:
    """Every item by name. Raises SteerError where an arm or a claim names nothing."""
    plan, found = pool(), {}
    for name, data in read_yaml(CATALOGUE).items():
        item = found[name] = build(Item, data, name)
        for arm in item.arms:
            known(arm, plan)
        if item.baseline not in (None, *item.arms):
            raise SteerError(f"{name}.baseline: {item.baseline} is no arm; choose from {', '.join(item.arms)}")
        for claim in item.claims:
            for arm in claim.weights:
                if arm not in item.arms:
                    raise SteerError(f"{name}.claims: {arm} is no arm of {name}; {nearest(arm, list(item.arms))}")
    return found


def find(name: str) -> str:
    """The item of a name, or of a figure that it covers. Raises SteerError for a name that there is not."""
    items = catalogue()
    covered = {one: item for item, about in items.items() for one in about.names}
    if name not in items and name not in covered:
        raise SteerError(f"NAME: {name!r} is no table or figure here; {nearest(name, [*items, *covered])}")
    return covered.get(name, name)
