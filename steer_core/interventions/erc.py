"""ERC: a token counts only while the entropy of its own state has changed little."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Tokens

_SMALL = 1e-8
"""Nats that the authors' code adds to both entropies: the ratio of a state that stays without any is 1."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ERC(Intervention):
    """Entropy ratio clipping: a token counts while low < H / H_old < high at its state (Su et al., arXiv 2512.05591).

    The measured change of what STEER estimates. Tokens that do not count stay in the denominator. In the first
    mini-batch of a rollout every ratio is 1, but for rounding, which shows at states of next to no entropy. The bounds
    are the defaults of the authors' code; their scripts set 0.95 and 1.05.
    """

    name: str = "erc"
    low: float = Field(default=0.8, ge=0, lt=1)
    """A token that counts has a ratio above this."""
    high: float = Field(default=1.2, gt=1)
    """A token that counts has a ratio below this."""

    def mask(self, tokens: Tokens) -> Tensor:
        """The tokens between the bounds."""
        ratio = (tokens.new.entropy + _SMALL) / (tokens.old.entropy + _SMALL)
        return (ratio > self.low) & (ratio < self.high)
