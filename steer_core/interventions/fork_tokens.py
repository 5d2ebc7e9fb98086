"""Fork tokens: learn only where the policy hesitates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Tokens


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ForkTokens(Intervention):
    """Only the share of tokens with the highest entropy counts (80/20 rule, Wang et al., arXiv 2506.01939, eq. 5).

    The other tokens stay in the loss's denominator, as in TRL.
    """

    name: str = "fork-tokens"
    share: float = Field(default=0.2, gt=0, le=1)
    """Share of the tokens of an optimiser step that count."""

    @property
    def scope(self) -> Literal["step"]:
        """A quantile of the step's entropies decides."""
        return "step"

    def mask(self, tokens: Tokens) -> Tensor:
        """Tokens at or above the (1 - share) quantile of entropy."""
        entropy = tokens.new.entropy
        return entropy >= entropy.quantile(1 - self.share) if len(entropy) else super().mask(tokens)
