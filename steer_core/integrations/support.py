"""Which method works in which trainer, and why another does not; neither TRL nor verl is needed to know it."""

from __future__ import annotations

from typing import Any

from steer_core.common.errors import SteerError
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Intervention

_DIFFERENTIATES = (
    "differentiates an optimiser step through the model, forward and backward, and {trainer} hands a method the tokens "
    "of a step alone; train with steer_core's own trainer, or take steer"
)


class Missing(TokenStats):
    """Statistics of some tokens of which some were not told: reading one raises SteerError, with its reason."""

    def __init__(self, stats: TokenStats, reasons: dict[str, str]) -> None:
        super().__init__(**vars(stats))
        object.__setattr__(self, "_reasons", reasons)

    def __getattribute__(self, name: str) -> Any:
        """A statistic. Raises SteerError for one that was not told."""
        reasons = object.__getattribute__(self, "__dict__").get("_reasons", {})
        if name in reasons:
            raise SteerError(reasons[name])
        return object.__getattribute__(self, name)


def refusal_in_trl(method: Intervention) -> str | None:
    """Why TRL cannot give what a method needs, and what to do; None where it can."""
    return _DIFFERENTIATES.format(trainer="TRL") if method.differentiates else None
