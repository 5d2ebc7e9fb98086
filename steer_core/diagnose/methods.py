"""What each method would make of the pushes in a dump: whom it would damp, and what would be left of their effect.

A token's push is g = -dL/d ln p_a, the slope of its loss by its own log-prob; plain GRPO's is I_clip r A. Under a
method it is that of `weights x clipped surrogate(advantages) + extra x extra term`, taken by differentiating that very
line. So one number says what any method does to a token: the factor g / g of GRPO. The estimated entropy change is
-g p (1 - p)(ln p + H) (STEER, arXiv 2510.10150, Theorem 1), under any method.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from steer_core.common.errors import SteerError, one_line
from steer_core.common.settings import build
from steer_core.diagnose.states import States
from steer_core.formulas.entropy_change import QUADRANTS, quadrant_index
from steer_core.formulas.loss import clipped_surrogate
from steer_core.formulas.token_stats import TokenStats
from steer_core.interventions import METHODS, method
from steer_core.interventions.base import Intervention, Memory, Responses
from steer_core.runs.dumps import Dump

LEFT_OUT = {
    "steer-control": "",
    "influence": "it needs the model: its weights come from derivatives through shared parameters",
}
"""What no dump can say anything of, with the reason; without one it is no method of the field."""
NEAR = 0.01
"""A push counts as unchanged where its factor is within this of 1."""


@dataclass(frozen=True)
class Effect:
    """What a method would do to the pushes of a dump; shares are of the tokens that GRPO pushes.

    settings: those that are not the method's defaults, in words. damped, raised: shares of tokens whose factor is below
    or above 1; smallest, largest, mean: factors. woken: share of all tokens that it pushes and GRPO does not. change:
    the sum of estimated entropy changes, nats at unit step; size: the sum of their sizes over GRPO's. top_damped: of
    the 1% of tokens with the largest estimated change, the share that is damped. by_quadrant: mean factor. why_not:
    why nothing is told; all else is NaN then.
    """

    name: str
    settings: str = ""
    damped: float = np.nan
    raised: float = np.nan
    smallest: float = np.nan
    largest: float = np.nan
    mean: float = np.nan
    woken: float = np.nan
    change: float = np.nan
    size: float = np.nan
    top_damped: float = np.nan
    by_quadrant: dict[str, float] | None = None
    why_not: str = ""


def effects(dump: Dump, states: States) -> list[Effect]:
    """Every method of this package on the tokens of a dump, step by step, in the order of METHODS."""
    told = [Effect(name, why_not=why) for name, why in LEFT_OUT.items() if why]
    if not states.knows_entropy:
        why = "it reads the entropy of states, which the dump does not hold"
        return [Effect(name, why_not=why) for name in METHODS if name not in LEFT_OUT] + told
    plain = _pushes(Intervention(), dump, states)
    return [effect(_fitted(name, dump, states), dump, states, plain) for name in METHODS if name not in LEFT_OUT] + told


def effect(chosen: Intervention, dump: Dump, states: States, plain: Tensor) -> Effect:
    """What one method would do; plain: GRPO's pushes."""
    settings = ", ".join(
        f"{field.name}={getattr(chosen, field.name):.3g}"
        for field in fields(chosen)
        if field.name == "target" and getattr(chosen, field.name) is not None
    )
    try:
        pushes = _pushes(chosen, dump, states)
    except _NotTold as reason:
        return Effect(chosen.name, settings, why_not=str(reason))
    except SteerError as error:
        return Effect(chosen.name, settings, why_not=one_line(error))
    pushed = plain != 0
    if not pushed.any():
        return Effect(chosen.name, settings, why_not="no token has a push: all advantages are 0")
    factor = pushes[pushed] / plain[pushed]
    estimate = _estimate(states)
    before, after = plain * estimate, pushes * estimate
    index = quadrant_index(states.new, states.advantages)[pushed]
    top = _top(before.abs()[pushed])
    return Effect(
        chosen.name,
        settings,
        _share(factor < 1 - NEAR),
        _share(factor > 1 + NEAR),
        float(factor.min()),
        float(factor.max()),
        float(factor.mean()),
        _share((pushes != 0) & ~pushed),
        float(after.sum()),
        _over(after.abs().sum(), before.abs().sum()),
        _share(factor[top] < 1 - NEAR),
        {name: float(factor[index == i].mean()) for i, name in enumerate(QUADRANTS) if (index == i).any()},
    )


class _NotTold(Exception):
    """Why a dump does not tell what a method would do."""


def _fitted(name: str, dump: Dump, states: States) -> Intervention:
    """A method with its defaults; one that holds an entropy holds that of the dump's first step."""
    chosen = method(name)()
    if any(field.name == "target" for field in fields(chosen)):
        first = states.old.entropy[states.step == dump.steps[0]]
        return build(method(name), {"name": name, "target": float(first.mean())}, "intervention")
    return chosen


def _pushes(chosen: Intervention, dump: Dump, states: States) -> Tensor:
    """g of every token under a method, each step by itself, a closed loop's memory carried from one to the next."""
    pushes = torch.zeros(len(states), dtype=torch.float64)
    memory: Memory = {}
    for number, step in enumerate(dump.steps, 1):
        places = (states.step == step).nonzero()[:, 0]
        part = states.at(places)
        memory = memory | chosen.settings_at(number)
        if chosen.sees_responses:
            advantages, memory = _credited(chosen, dump.of_step(step), part, memory)
            part = replace(part, advantages=advantages)
        pushes[places], memory = _step(chosen, part, memory)
    return pushes


def _step(chosen: Intervention, part: States, memory: Memory) -> tuple[Tensor, Memory]:
    """(g of the tokens of a step, the memory after it)."""
    clip = chosen.clip_range(part.clip)
    if chosen.sees_rollouts:
        memory = memory | chosen.begin_rollout(memory, part.tokens(clip, memory, on_policy=True))
    terms = chosen.loss_terms(part.tokens(clip, memory))
    with torch.enable_grad():
        logprob = part.new.logprob.clone().requires_grad_()
        entropy = part.new.entropy.clone().requires_grad_()
        loss = terms.weights * clipped_surrogate(logprob, part.old.logprob, terms.advantages, clip)
        if terms.extra is not None:
            stats = TokenStats(logprob, entropy, part.new.sum_p2, part.new.sum_p2_logp)
            loss = loss + terms.extra * chosen.extra_loss(stats, part.old)
        slope, by_entropy = torch.autograd.grad(loss.sum(), (logprob, entropy), allow_unused=True)
    if by_entropy is not None and by_entropy.any():
        raise _NotTold("it acts through the entropy of every state, and pushes all of a state's tokens at once")
    return -slope, chosen.next_memory(memory, float(part.new.entropy.mean()))


def _credited(chosen: Intervention, dump: Dump, part: States, memory: Memory) -> tuple[Tensor, Memory]:
    """(the advantage of every token as the method credits its response, the memory after them)."""
    frame = dump.responses
    key = next((name for name in ("group", "prompt") if name in frame), None)
    if key is None or "reward" not in frame:
        raise _NotTold("it looks at the rewards of whole groups: give `group` and `reward`")
    row = torch.from_numpy(dump.tokens["row"])
    highest = torch.full((len(frame),), -torch.inf, dtype=torch.float64).scatter_reduce(0, row, part.advantages, "amax")
    lowest = torch.full((len(frame),), torch.inf, dtype=torch.float64).scatter_reduce(0, row, part.advantages, "amin")
    sizes = frame.groupby(key, sort=False).size()
    if sizes.nunique() != 1 or not torch.equal(highest, lowest):
        raise _NotTold("it credits whole groups, and these differ in size or have an advantage of each token's own")
    place = {name: i for i, name in enumerate(sizes.index)}
    order = torch.from_numpy(np.argsort(frame[key].map(place).to_numpy(), kind="stable"))
    shape = (len(sizes), int(sizes.iloc[0]))
    sums = torch.zeros(len(frame), dtype=torch.float64).scatter_add(0, row, part.old.logprob)
    rewards = torch.from_numpy(np.array(frame.reward, dtype=float))
    rewards_PG, advantages_PG, sums_PG = (values[order].view(shape) for values in (rewards, highest, sums))
    responses = Responses(rewards_PG, advantages_PG, sums_PG, [str(name) for name in sizes.index], memory)
    credited = torch.empty(len(frame), dtype=torch.float64)
    credited[order] = chosen.credit(responses).flatten()
    return credited[row], chosen.remember(memory, responses)


def _estimate(states: States) -> Tensor:
    """What a push of 1 is estimated to do to the entropy of its state: -p (1 - p)(ln p + H)."""
    p = states.new.logprob.exp()
    return -p * (1 - p) * (states.new.logprob + states.new.entropy)


def _top(size: Tensor) -> Tensor:
    return size.topk(max(1, round(0.01 * len(size)))).indices


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _over(value: Tensor, by: Tensor) -> float:
    return float(value / by) if by != 0 else np.nan
