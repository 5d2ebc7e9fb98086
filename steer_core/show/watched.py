"""What a rollout's watched step did to entropy, measured and predicted, where the run logged it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_core.runs import logs

_MEASURED, _CHANGE = "probe/change/measured", "probe/change/"


@dataclass(frozen=True)
class Estimate:
    """Of the watched step. change: mean over its tokens, nats a token; pearson, sign: NaN where undefined."""

    name: str
    change: float
    pearson: float
    sign: float


@dataclass(frozen=True)
class Watched:
    """The change of entropy that was measured, nats a token, and every estimate of it."""

    measured: float
    estimates: list[Estimate]


def watched_step(run: Path, step: int) -> Watched | None:
    """What the probe logged at a rollout; None where it logged nothing. Raises SteerError where the log is damaged."""
    row: dict[str, Any] = next((row for row in logs.read(run / "metrics.jsonl") if row["step"] == step), {})
    if _MEASURED not in row:
        return None
    from steer_core.ladder.attribution import RUNG_TITLES  # and torch with it: only where a step was watched

    ordered = sorted(RUNG_TITLES, key=lambda name: name != "first_order")  # what the report names first
    names = [name for name in ordered if f"{_CHANGE}{name}" in row]
    return Watched(row[_MEASURED], [_estimate(row, name, RUNG_TITLES[name]) for name in names])


def _estimate(row: dict[str, Any], name: str, title: str) -> Estimate:
    scores = [row.get(f"probe/{score}/{name}", math.nan) for score in ("pearson", "sign")]
    return Estimate(title, row[f"{_CHANGE}{name}"], *scores)
