"""What changes rewards or adds to the loss beside the surrogate: KL to a reference, punishment of long responses."""

from __future__ import annotations

from jaxtyping import Float, Real
from torch import Tensor

from steer_core.common.errors import nearest
from steer_core.formulas.loss import LOG_RATIO_BOUND, log_ratio

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(
    logprob: Float[Tensor, "*shape"], reference_logprob: Float[Tensor, "*shape"], estimator: str = "k3"
) -> Float[Tensor, "*shape"]:
    """KL(policy || reference) in nats, estimated at tokens that the policy sampled; differentiable in `logprob`.

    With d = ln p_reference - ln p:  k1 = -d,  k2 = d^2 / 2,  k3 = exp(d) - 1 - d  (Schulman, "Approximating KL
    divergence", 2020; k3 is GRPO's, Shao et al. 2024, arXiv 2402.03300, eq. 4). k1 and k3 are unbiased, k2 and k3 never
    negative. Where d is above 20, k3 is that of d = 20, without a gradient. Raises ValueError for another estimator.
    """
    d = log_ratio(reference_logprob, logprob)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        bounded = d.clamp(max=LOG_RATIO_BOUND)
        return bounded.expm1() - bounded
    raise ValueError(f"estimator: {estimator!r} is unknown; {nearest(estimator, KL_ESTIMATORS)}")


def overlong_punishment(lengths: Real[Tensor, "*shape"], longest: int, buffer: int) -> Float[Tensor, "*shape"]:
    """DAPO's soft punishment (Yu et al. 2025, arXiv 2503.14476, eq. 13), between -1 and 0.

    lengths: tokens L of each response. longest, buffer: M and C, tokens. 0 up to M - C, then ((M - C) - L) / C, and -1
    from M on. Raises ValueError where C is not within 1 and M.
    """
    if not 1 <= buffer <= longest:
        raise ValueError(f"buffer: {buffer} is not within 1 and the longest response ({longest})")
    return ((longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)
