"""A tabular policy: a free logit for every token at every state, where the exact form has nothing to be wrong about.

Each state is visited once and takes the surrogate's gradient step on its own logits. No state sees
another's update, so this is the setting that the forms of one state are derived in.
"""

from __future__ import annotations

import math

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steer_core.common.errors import SteerError
from steer_core.formulas.entropy_change import ENTROPY_CHANGE, surrogate_slope
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats, concatenate, token_stats

_CHUNK_ELEMENTS = 1 << 24
_SPREAD = 2.0
_LOG_RATIO = 0.1


def rival_logits(
    chance_S: Float[Tensor, "states"], share: float | Float[Tensor, ""], vocabulary: int
) -> Float[Tensor, "states vocab"]:
    """Logits, ln p, of states where token 0 has a given probability and one rival a share of the rest.

    The other tokens have what is left, all alike. chance_S: within (0, 1). share: within [0, 1]. Raises
    SteerError for fewer than 3 tokens.
    """
    if vocabulary < 3:
        raise SteerError(f"vocabulary: {vocabulary} is below 3; give at least 3: the token, its rival and one more")
    rest_S1 = (1 - chance_S)[:, None]
    others_SV = (rest_S1 * (1 - share) / (vocabulary - 2)).expand(-1, vocabulary - 2)
    return torch.cat([chance_S[:, None], rest_S1 * share, others_SV], -1).log()


@torch.no_grad()
def measured_change(
    logits_SV: Float[Tensor, "states vocab"],
    labels_S: Int[Tensor, "states"],
    slope_S: Float[Tensor, "states"],
    step: float,
) -> Float[Tensor, "states"]:
    """The change of entropy, nats, when each state's logits move by step * slope * (e_a - p).

    slope_S: `surrogate_slope` of the sampled tokens. step: eta / L. In float64 the difference of the
    two entropies is good to about 1e-15 / step of itself.
    """
    before = token_stats(logits_SV, labels_S)
    moved = logits_SV - step * slope_S[:, None] * logits_SV.softmax(-1)
    moved.scatter_add_(-1, labels_S[:, None], step * slope_S[:, None])
    return token_stats(moved, labels_S).entropy - before.entropy


@torch.no_grad()
def tabular_tokens(
    states: int, vocabulary: int, eta: float, seed: int = 0, clip: ClipRange | None = None
) -> pd.DataFrame:
    """A table of visited states: every form's prediction and the measured change of one step (L = 1), nats.

    Logits are normal with spread 2, tokens sampled from them, advantages standard normal, and the policy
    that sampled differs by a log-ratio of spread 0.1, so that some tokens are clipped. float64.
    Raises SteerError for sizes below 2 and a step size that is not above 0.
    """
    for name, value, least in (("states", states, 2), ("vocabulary", vocabulary, 2)):
        if value < least:
            raise SteerError(f"{name}: {value} is below {least}; give at least {least}")
    if not 0 < eta < math.inf:
        raise SteerError(f"eta: {eta} is not above 0 and finite; give a positive step size")
    generator, clip = torch.Generator().manual_seed(seed), clip or ClipRange()
    size, parts, measured, advantages, old = max(1, _CHUNK_ELEMENTS // vocabulary), [], [], [], []
    for start in range(0, states, size):
        count = min(size, states - start)
        logits = _SPREAD * torch.randn(count, vocabulary, generator=generator, dtype=torch.float64)
        labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        new = token_stats(logits, labels)
        noise = _LOG_RATIO * torch.randn(count, generator=generator, dtype=torch.float64)
        before = TokenStats(new.logprob - noise, new.entropy, new.sum_p2, new.sum_p2_logp)
        advantage = torch.randn(count, generator=generator, dtype=torch.float64)
        measured.append(measured_change(logits, labels, surrogate_slope(new, before, advantage, clip), eta))
        parts.append(new)
        old.append(before)
        advantages.append(advantage)
    new, before, advantage = concatenate(parts), concatenate(old), torch.cat(advantages)
    columns = {name: eta * form(new, before, advantage, clip) for name, form in ENTROPY_CHANGE.items()}
    columns |= {"logprob": new.logprob, "entropy": new.entropy, "advantage": advantage}
    table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    return table.assign(group=range(states), measured=torch.cat(measured).numpy())
