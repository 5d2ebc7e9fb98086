"""All that is seen of a dump, before any rule."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from steer_core.diagnose import measures, methods
from steer_core.diagnose.change import Measured
from steer_core.diagnose.states import States
from steer_core.diagnose.which_entropy import Verdict
from steer_core.runs.dumps import Dump


@dataclass(frozen=True)
class Seen:
    """All that is seen of a dump; see the classes of each part. drift: see `measures.drift_of`."""

    dump: Dump
    states: States
    entropy: Verdict
    logged: tuple[str, ...]
    course: measures.Course
    quadrants: dict[str, measures.Quadrant]
    clip: measures.Clip
    positions: pd.DataFrame
    movers: measures.Movers | None
    truncation: measures.Truncation
    groups: measures.Groups
    gap: measures.Gap | None
    drift: float
    measured: Measured
    effects: list[methods.Effect]
