"""Clip-Higher: let more of the unlikely tokens of good responses through the clip."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from pydantic.dataclasses import dataclass

from steer_core.common.settings import STRICT
from steer_core.formulas.loss import ClipRange
from steer_core.interventions.base import Intervention


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ClipHigher(Intervention):
    """Another upper clip bound (DAPO, Yu et al., arXiv 2503.14476, eq. 10).

    DAPO raised 0.2 to 0.28, which is this package's default for every method; this goes beyond it.
    """

    name: str = "clip-higher"
    high: float = Field(default=0.5, ge=0)
    """In place of algorithm.clip_high."""

    def clip_range(self, clip: ClipRange) -> ClipRange:
        """The configured range with this upper bound."""
        return replace(clip, high=self.high)
