"""An entropy bonus whose sign is wrong, as happens: it lowers entropy."""

from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.entropy_loss import EntropyLoss


@dataclass(config=STRICT, kw_only=True, frozen=True)
class WrongSign(EntropyLoss):
    """+H on every token."""

    name: str = "wrong_sign:WrongSign"

    def extra_loss(self, stats: TokenStats, old: TokenStats) -> Tensor:
        return stats.entropy
