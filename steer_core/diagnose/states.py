"""A dump as the formulas take it: statistics of every token, and which of them are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steer_core.formulas.entropy_change import paper_entropy_change
from steer_core.formulas.loss import ClipRange, importance_ratio
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Memory, Tokens
from steer_core.runs.dumps import Dump

SEED = 0
"""Of the draws that some methods choose tokens by."""


@dataclass(frozen=True)
class States:
    """The tokens of a dump (N,) in float64; `factor` makes Shannon entropies in nats of its column `entropy`.

    row, step: of each token. entropy is NaN where the dump has none that a factor could make right. clip: the range
    that the dump tells, else this package's default without a dual clip.
    """

    new: TokenStats
    old: TokenStats
    advantages: Tensor
    row: Tensor
    step: Tensor
    clip: ClipRange

    @classmethod
    def of(cls, dump: Dump, factor: float | np.ndarray | None) -> States:
        """The states of a dump. factor: on its entropies, one or one a token; None: they are no entropies of states."""
        logprob = _tensor(dump, "logprob")
        unknown = torch.full_like(logprob, torch.nan)
        scale = None if factor is None else torch.as_tensor(factor, dtype=torch.float64)
        found = {
            name: _tensor(dump, name) * scale if scale is not None and name in dump.tokens else unknown
            for name in ("entropy", "old_entropy")
        }
        old_logprob = _tensor(dump, "old_logprob") if "old_logprob" in dump.tokens else logprob
        old_entropy = found["old_entropy"] if "old_entropy" in dump.tokens else found["entropy"]
        row = torch.from_numpy(dump.tokens["row"])
        step = torch.from_numpy(np.array(dump.responses.step, dtype=np.int64))[row]
        return cls(
            TokenStats(logprob, found["entropy"], unknown, unknown),
            TokenStats(old_logprob, old_entropy, unknown, unknown),
            _tensor(dump, "advantage"),
            row,
            step,
            clip_of(dump.settings),
        )

    def __len__(self) -> int:
        return len(self.row)

    @property
    def knows_entropy(self) -> bool:
        """Whether every token has its state's Shannon entropy."""
        return bool(self.new.entropy.isfinite().all())

    @property
    def ratio(self) -> Tensor:
        """p / p_old of every token."""
        return importance_ratio(self.new.logprob, self.old.logprob)

    @property
    def change(self) -> Tensor:
        """The paper's estimate of each token's entropy change at unit step (Theorem 1), nats."""
        return paper_entropy_change(self.new, self.old, self.advantages, self.clip)

    def at(self, places: Tensor) -> States:
        """The states at some places."""
        return States(
            self.new[places],
            self.old[places],
            self.advantages[places],
            self.row[places],
            self.step[places],
            self.clip,
        )

    def tokens(self, clip: ClipRange, memory: Memory, on_policy: bool = False) -> Tokens:
        """These tokens as a method sees them; on_policy: as the policy that sampled saw them."""
        source = torch.Generator().manual_seed(SEED)
        draws = torch.rand(len(self), generator=source, dtype=torch.float64)
        return Tokens(self.old if on_policy else self.new, self.old, self.advantages, clip, draws, memory)


def clip_of(settings: dict[str, float]) -> ClipRange:
    """The clip range that a dump tells; the default of a side that it does not."""
    usual = ClipRange()
    return ClipRange(
        settings.get("clip_low", usual.low), settings.get("clip_high", usual.high), settings.get("dual_clip")
    )


def _tensor(dump: Dump, name: str) -> Tensor:
    return torch.from_numpy(np.asarray(dump.tokens[name], dtype=np.float64))
