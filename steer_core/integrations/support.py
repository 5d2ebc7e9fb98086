"""Which method works in which trainer, and why another does not; neither TRL nor verl is needed to know it."""

from __future__ import annotations

from typing import Any

import torch

from steer_core.common.errors import SteerError
from steer_core.common.schedules import Schedule
from steer_core.common.tables import markdown_table
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions import METHODS, method
from steer_core.interventions.base import Intervention, Tokens

_DIFFERENTIATES = (
    "differentiates an optimiser step through the model, and {trainer} hands a method the tokens of a step alone; "
    "train with steer_core's own trainer, or take steer"
)
_RESPONSES = (
    "changes what a response is credited with, from the rewards of its group, and a policy loss of verl is given "
    "neither; train with TRL or steer_core's own trainer"
)
_ROLLOUTS = (
    "looks at a whole rollout as the policy that sampled saw it, and verl hands a policy loss no more than a "
    "mini-batch; train with TRL or steer_core's own trainer"
)
_SQUARE_SUMS = "reads sum p^2 ln p, which verl's actor does not compute; take another form or method"
_OLD_ENTROPY = (
    "reads the entropies of the policy that sampled, which verl's actor is not given; train with TRL or steer_core's "
    "own trainer"
)
_SCHEDULE = "follows a schedule over rollouts, which verl's actor does not count; write a number"


class NotToldError(SteerError):
    """A method reads a statistic that a trainer does not give."""


class Missing(TokenStats):
    """Statistics of some tokens of which some were not told: reading one raises NotToldError, with its reason."""

    def __init__(self, stats: TokenStats, reasons: dict[str, str]) -> None:
        super().__init__(**vars(stats))
        object.__setattr__(self, "_reasons", reasons)

    def __getattribute__(self, name: str) -> Any:
        """A statistic. Raises NotToldError for one that was not told."""
        reasons = object.__getattribute__(self, "__dict__").get("_reasons", {})
        if name in reasons:
            raise NotToldError(reasons[name])
        return object.__getattribute__(self, name)


def as_verl_tells(old: TokenStats, name: str) -> Missing:
    """Statistics of the policy that sampled, of which verl's actor knows the log-probs alone. name: the method's."""
    told = f"{name} {_OLD_ENTROPY}"
    return Missing(old, dict.fromkeys(("entropy", "sum_p2", "sum_p2_logp"), told))


def refusal_in_trl(method: Intervention) -> str | None:
    """Why TRL cannot give what a method needs, and what to do; None where it can."""
    return _DIFFERENTIATES.format(trainer="TRL") if method.differentiates else None


def refusal_in_verl(method: Intervention) -> str | None:
    """Why verl cannot give what a method needs, and what to do; None where it can."""
    if method.differentiates:
        return _DIFFERENTIATES.format(trainer="verl")
    if method.sees_responses:
        return _RESPONSES
    if method.sees_rollouts:
        return _ROLLOUTS
    if method.reads_square_sums:
        return _SQUARE_SUMS
    if reads_old_entropy(method):
        return _OLD_ENTROPY
    if any(isinstance(value, Schedule) for value in vars(method).values()):
        return _SCHEDULE
    return None


def reads_old_entropy(method: Intervention) -> bool:
    """Whether the rules read the entropies of the policy that sampled: they are tried on tokens that have none."""
    source = torch.Generator().manual_seed(0)
    logprob, entropy, shift, advantages, draws = torch.rand(5, 64, generator=source)
    unknown = torch.full_like(entropy, torch.nan)
    new = TokenStats(-logprob, entropy, unknown, unknown)
    old = as_verl_tells(TokenStats(shift - logprob - 0.5, unknown, unknown, unknown), method.name)
    clip = method.clip_range(ClipRange())
    try:
        method.loss_terms(Tokens(new, old, advantages - 0.5, clip, draws, method.settings_at(1)))
        method.extra_loss(new, old)
    except NotToldError:
        return True
    return False


def trainer_table() -> str:
    """Method x trainer in Markdown, at each method's own settings: yes, or why not."""
    asked = (refusal_in_trl, refusal_in_verl)
    rows = [[f"`{name}`", "yes", *(_cell(refusal(method(name)())) for refusal in asked)] for name in METHODS]
    return markdown_table(["method", "steer_core", "TRL", "verl"], rows)


def _cell(reason: str | None) -> str:
    return "yes" if reason is None else f"no: {reason.split(';')[0]}"


if __name__ == "__main__":
    print(trainer_table())
