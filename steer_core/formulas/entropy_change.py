"""How much one token's update changes the entropy at its own state: estimates behind one signature.

Every form takes `(new, old, advantages, clip)`: the statistics of the policy being updated and of
the policy that sampled, the advantages (all of one shape), and the clip range. It returns dH at unit
step, dH / (eta / L), in nats: positive where the update raises entropy. Multiply by the learning
rate over the loss's denominator for the change of one SGD step. No form carries gradient. Pass
response tokens only: the covariance form takes means over all it is given.

With u_a = ln p_a + H and the surrogate moving the logits along w (e_a - p), w = I_clip r A its slope
(`surrogate_slope`), the first-order change is dH = -w [p_a u_a - C], C = sum_j p_j^2 u_j, because
dH/dz_j = -p_j u_j. What a step does through shared parameters, no form of one state can see: `ladder/`
measures that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steer_core.common.errors import SteerError, nearest
from steer_core.formulas.loss import LOG_RATIO_BOUND, ClipRange, clip_indicator, importance_ratio, log_ratio
from steer_core.formulas.token_stats import TokenStats

_PROBABILITY_FLOOR = 1e-8

EntropyChange = Callable[[TokenStats, TokenStats, Float[Tensor, "*shape"], ClipRange], Float[Tensor, "*shape"]]
QUADRANTS = ("positive_likely", "positive_unlikely", "negative_likely", "negative_unlikely")


@torch.no_grad()
def paper_entropy_change(
    new: TokenStats, old: TokenStats, advantages: Float[Tensor, "*shape"], clip: ClipRange
) -> Float[Tensor, "*shape"]:
    """-Omega, Omega = I_clip r A p_a (1 - p_a)(ln p_a + H): STEER, arXiv 2510.10150, Theorem 1.

    Only the sampled token's own logit moves; the sum over the other tokens is dropped.
    """
    p = new.logprob.exp()
    return -surrogate_slope(new, old, advantages, clip) * p * (1 - p) * _surprise(new)


@torch.no_grad()
def exact_entropy_change(
    new: TokenStats, old: TokenStats, advantages: Float[Tensor, "*shape"], clip: ClipRange
) -> Float[Tensor, "*shape"]:
    """-w [p_a u_a - C]: every logit of the state moves; exact to first order for a tabular policy.

    The logits are those after the temperature; for a policy whose raw logits move, divide by its square.

    Its mean over a ~ p is zero at constant advantage and ratio 1. C is sum p^2 ln p + H sum p^2.
    """
    p = new.logprob.exp()
    others = new.sum_p2_logp + new.entropy * new.sum_p2
    return -surrogate_slope(new, old, advantages, clip) * (p * _surprise(new) - others)


@torch.no_grad()
def released_entropy_change(
    new: TokenStats, old: TokenStats, advantages: Float[Tensor, "*shape"], clip: ClipRange
) -> Float[Tensor, "*shape"]:
    """-(A / p_old(a)) p_a (1 - p_a)(ln p_a + H_old): what the authors' released code computes.

    One factor p_a away from the paper's form, without I_clip, with the entropy of the policy that
    sampled; probabilities clamped to [1e-8, 1 - 1e-8], non-finite values 0. `clip` is not used.
    """
    p = new.logprob.exp().clamp(_PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
    p_old = old.logprob.exp().clamp(_PROBABILITY_FLOOR, 1.0)
    change = -advantages / p_old * p * (1 - p) * (p.log() + old.entropy)
    return torch.where(change.isfinite(), change, 0.0)


@torch.no_grad()
def covariance_entropy_change(
    new: TokenStats,
    old: TokenStats,
    advantages: Float[Tensor, "*shape"],
    clip: ClipRange,
    means: Sequence[float] | None = None,
) -> Float[Tensor, "*shape"]:
    """-(ln p_a - mean ln p)(A - mean A), the means over all tokens given: Cui et al., arXiv 2505.22617, eq. 10.

    For tokens sampled at one state its mean is minus the covariance of ln p and A: the change of entropy
    by a natural gradient step, per eta and not per eta / L. Over tokens of different states it is
    what Clip-Cov and KL-Cov rank by. `old` and `clip` are not used. means: (of ln p, of A) over more tokens than
    those given, such as those of other ranks. A token of p = 0 adds nothing to a covariance: it changes nothing and
    is in no mean.
    """
    possible = new.logprob != -torch.inf
    if not possible.all():
        change = torch.zeros_like(new.logprob)
        change[possible] = covariance_entropy_change(new[possible], old[possible], advantages[possible], clip, means)
        return change
    mean_logprob, mean_advantage = (new.logprob.mean(), advantages.mean()) if means is None else means
    return -(new.logprob - mean_logprob) * (advantages - mean_advantage)


ENTROPY_CHANGE: dict[str, EntropyChange] = {
    "paper": paper_entropy_change,
    "released": released_entropy_change,
    "exact": exact_entropy_change,
    "covariance": covariance_entropy_change,
}


def entropy_change_form(name: str) -> EntropyChange:
    """The form of that name. Raises SteerError naming the nearest one where there is none."""
    if name not in ENTROPY_CHANGE:
        raise SteerError(f"form: {name!r} is no estimate of the entropy change; {nearest(name, ENTROPY_CHANGE)}")
    return ENTROPY_CHANGE[name]


def quadrants(new: TokenStats, advantages: Float[Tensor, "*shape"]) -> dict[str, Bool[Tensor, "*shape"]]:
    """Boolean masks by sign of the advantage and of ln p_a + H (STEER, section 4).

    A token is likely where ln p_a > -H. Tokens with A = 0 are in none. Under the paper's form,
    positive_likely and negative_unlikely lower entropy and the other two raise it.
    """
    likely = new.logprob > -new.entropy
    signs = {"positive": advantages > 0, "negative": advantages < 0}
    masks = (mask & side for mask in signs.values() for side in (likely, ~likely))
    return dict(zip(QUADRANTS, masks, strict=True))


def quadrant_index(new: TokenStats, advantages: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The quadrant of every token as an index into QUADRANTS, -1 where the advantage is 0."""
    index = torch.full_like(advantages, -1, dtype=torch.long)
    for i, inside in enumerate(quadrants(new, advantages).values()):
        index[inside] = i
    return index


@torch.no_grad()
def surrogate_slope(
    new: TokenStats, old: TokenStats, advantages: Float[Tensor, "*shape"], clip: ClipRange
) -> Float[Tensor, "*shape"]:
    """w = I_clip r A: minus the derivative of each token's clipped surrogate by its log-prob."""
    ratio = importance_ratio(new.logprob, old.logprob)
    bounded = log_ratio(new.logprob, old.logprob).abs() <= LOG_RATIO_BOUND  # beyond it the surrogate has no gradient
    return clip_indicator(ratio, advantages, clip) * bounded * ratio * advantages


def _surprise(new: TokenStats) -> Float[Tensor, "*shape"]:
    """ln p_a + H, kept finite where p_a is 0, so that p ln p is 0 there."""
    return (new.logprob + new.entropy).clamp_min(torch.finfo(new.logprob.dtype).min)
