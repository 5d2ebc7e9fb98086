"""Hand-made tokens, as an intervention sees them: float64, one number a token."""

from collections.abc import Sequence

import torch

from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions.base import Memory, Tokens


def stats_of(logprob: Sequence[float], entropy: Sequence[float] | None = None) -> TokenStats:
    """Statistics with these log-probs and entropies (0.5 unless given); the rest is 0."""
    logprob = torch.tensor(logprob, dtype=torch.float64)
    entropy = torch.full_like(logprob, 0.5) if entropy is None else torch.tensor(entropy, dtype=torch.float64)
    return TokenStats(logprob, entropy, torch.zeros_like(logprob), torch.zeros_like(logprob))


def tokens_of(
    logprob: Sequence[float],
    advantages: Sequence[float],
    entropy: Sequence[float] | None = None,
    old: TokenStats | None = None,
    draws: Sequence[float] | None = None,
    clip: ClipRange | None = None,
    memory: Memory | None = None,
) -> Tokens:
    """Tokens on policy (old is new) with draws that rise, unless given."""
    new = stats_of(logprob, entropy)
    rising = [i / (len(logprob) + 1) for i in range(len(logprob))]
    return Tokens(
        new=new,
        old=new if old is None else old,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        clip=clip or ClipRange(),
        draws=torch.tensor(rising if draws is None else draws, dtype=torch.float64),
        memory=memory or {},
    )
