"""A world small enough to be solved exactly: a softmax table, its policy gradient, and the bonus on its entropy.

An episode starts in one of N states and takes T actions. Every state has V actions, each with its successor, and some
of them are right. The reward is 1 where all T actions were right, else 0, told at the end: a verifier's reward. The
policy sees step and state, not whether it has gone wrong already. So everything is known exactly: what a start is
solved with, its pass@k, the gradient. An update may use that gradient, or sample groups of responses as GRPO does.

Both ascend, at the same scale, `reward's part + bonus * mean entropy` per token: as in `entropy_loss`, the entropy of
the states that are visited, which are held fixed. Where the gradient is exact the reward's part is mean pass@1 / T.

Axes: R runs, T steps, N states (as many starts), V actions, G responses to a start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_core import ADVANTAGES, SteerError

Table = Tensor
"""(runs, steps, states, actions): logits, or the policy that they make."""


@dataclass(frozen=True)
class World:
    """Which actions are right, and where each leads: (runs, steps, states, actions)."""

    right: Tensor
    successor: Tensor

    def repeated(self, times: int) -> World:
        """The same runs so many times over, one whole set after another."""
        return World(self.right.repeat(times, 1, 1, 1), self.successor.repeat(times, 1, 1, 1))


def draw_world(
    shape: tuple[int, int, int], right: int, spread: float, generators: list[torch.Generator]
) -> tuple[World, Table]:
    """A world and the logits of its base policy for every generator, float64.

    shape: (steps, states, actions). right: right actions of a state, at random places. spread: standard deviation of
    the base's logits, drawn without a look at what is right. Raises SteerError where a state has fewer actions.
    """
    _, states, actions = shape
    if not 0 <= right <= actions:
        raise SteerError(f"right: {right} is not within 0 and the {actions} actions of a state; give a number of them")
    rows, successors, logits = [], [], []
    for generator in generators:
        rows.append(torch.rand(shape, generator=generator).argsort(-1).argsort(-1) < right)
        successors.append(torch.randint(states, shape, generator=generator))
        logits.append(spread * torch.randn(shape, generator=generator, dtype=torch.float64))
    return World(torch.stack(rows), torch.stack(successors)), torch.stack(logits)


def entropies(policy: Table) -> Tensor:
    """Entropy of every state's actions, nats."""
    return torch.special.entr(policy).sum(-1)


def values(policy: Table, world: World) -> tuple[Tensor, Table]:
    """(V, Q): the chance that all is right from a state on, and from an action on, by backward induction."""
    chance_RN = policy.new_ones(policy.shape[0], policy.shape[2])
    found_V, found_Q = [], []
    for t in reversed(range(policy.shape[1])):
        ahead_RNV = chance_RN.gather(1, world.successor[:, t].flatten(1)).view_as(policy[:, t])
        action_RNV = world.right[:, t] * ahead_RNV
        chance_RN = (policy[:, t] * action_RNV).sum(-1)
        found_V.insert(0, chance_RN)
        found_Q.insert(0, action_RNV)
    return torch.stack(found_V, 1), torch.stack(found_Q, 1)


def visits(policy: Table, world: World, only_right: bool = False) -> Tensor:
    """The chance that a step is taken in a state, by forward induction; `only_right`: and all was right before it."""
    now_RN = policy.new_full((policy.shape[0], policy.shape[2]), 1 / policy.shape[2])
    found = [now_RN]
    for t in range(policy.shape[1] - 1):
        flow_RNV = now_RN[..., None] * policy[:, t]
        flow_RNV = flow_RNV * world.right[:, t] if only_right else flow_RNV
        now_RN = torch.zeros_like(now_RN).scatter_add_(1, world.successor[:, t].flatten(1), flow_RNV.flatten(1))
        found.append(now_RN)
    return torch.stack(found, 1)


def exact_gradient(policy: Table, world: World) -> Table:
    """Of mean pass@1 over the starts, by the logits: d (chance to be here, all right) * p * (Q - V)."""
    value_RTN, action_RTNV = values(policy, world)
    return visits(policy, world, only_right=True)[..., None] * policy * (action_RTNV - value_RTN[..., None])


def bonus_gradient(policy: Table, visits_RTN: Tensor) -> Table:
    """Of the entropy of visited states, summed over steps, by the logits, the visits held fixed: -d p (ln p + H)."""
    pull = policy * entropies(policy)[..., None] - torch.special.entr(policy)  # p (ln p + H), 0 at p = 0
    return -visits_RTN[..., None] * pull


@dataclass(frozen=True)
class Sampled:
    """What a rollout was: (runs, steps, starts, group), and rewards (runs, starts, group)."""

    states: Tensor
    actions: Tensor
    rewards: Tensor


def sample(policy: Table, world: World, draws_RTNG: Tensor) -> Sampled:
    """G responses to every start; draws: uniform numbers in [0, 1) that pick the actions."""
    runs, steps, states, actions = policy.shape
    group = draws_RTNG.shape[-1]
    now = torch.arange(states).repeat_interleave(group).expand(runs, -1)
    ok, seen, taken = torch.ones_like(now, dtype=torch.bool), [], []
    for t in range(steps):
        row = now[..., None].expand(-1, -1, actions)
        edges = policy[:, t].cumsum(-1).gather(1, row)
        action = (edges[..., :-1] <= draws_RTNG[:, t].flatten(1)[..., None]).sum(-1)
        seen.append(now)
        taken.append(action)
        place = (now * actions + action).long()
        ok = ok & world.right[:, t].flatten(1).gather(1, place)
        now = world.successor[:, t].flatten(1).gather(1, place)
    shape = (runs, steps, states, group)
    rewards = ok.view(runs, states, group).to(policy.dtype)
    return Sampled(torch.stack(seen, 1).view(shape), torch.stack(taken, 1).view(shape), rewards)


def sampled_gradient(policy: Table, sampled: Sampled, advantage: str = "grpo") -> Table:
    """Advantage times d ln p of the actions, summed over steps, mean over responses: one on-policy step."""
    runs, steps, states, group = sampled.actions.shape
    rewards_PG = sampled.rewards.flatten(0, 1)
    lengths_PG = torch.full_like(rewards_PG, steps)
    own = ADVANTAGES[advantage](rewards_PG, lengths_PG).view(runs, 1, -1).expand(-1, steps, -1)
    places = (sampled.states * policy.shape[-1] + sampled.actions).flatten(2)
    pushed = torch.zeros_like(policy).flatten(2).scatter_add_(2, places, own).view_as(policy)
    return (pushed - policy * pushed.sum(-1, keepdim=True)) / (states * group)


def sampled_visits(policy: Table, sampled: Sampled) -> Tensor:
    """The share of responses that took a step in a state."""
    states = sampled.states.flatten(2)
    shares = policy.new_full(states.shape, 1 / states.shape[-1])
    return torch.zeros_like(policy[..., 0]).scatter_add_(2, states, shares)


def update(
    logits: Table,
    world: World,
    bonus_R: Tensor,
    rate_R: Tensor,
    draws_RTNG: Tensor | None = None,
) -> Table:
    """The logits after one gradient step, per token: sampled with the draws, or exact without them."""
    policy = logits.softmax(-1)
    if draws_RTNG is None:
        gradient, seen = exact_gradient(policy, world), visits(policy, world)
    else:
        sampled = sample(policy, world, draws_RTNG)
        gradient, seen = sampled_gradient(policy, sampled), sampled_visits(policy, sampled)
    whole = gradient + bonus_R[:, None, None, None] * bonus_gradient(policy, seen)
    return logits + rate_R[:, None, None, None] * whole / logits.shape[1]


def measures(logits: Table, world: World, k: int) -> dict[str, Tensor]:
    """Exact pass@1 and pass@k, means over the starts, and the entropy a token, nats."""
    policy = logits.softmax(-1)
    solved_RN = values(policy, world)[0][:, 0]
    entropy_R = (visits(policy, world) * entropies(policy)).sum(-1).mean(-1)
    return {"pass@1": solved_RN.mean(-1), f"pass@{k}": (1 - (1 - solved_RN) ** k).mean(-1), "entropy": entropy_R}


def soft_optimum(right: int, actions: int, bonus: float) -> float:
    """Pass@1 of the best policy of one step under a bonus: k e^(1/bonus) / (k e^(1/bonus) + V - k); 1 without one.

    The policy that has the most reward + bonus * entropy has p proportional to e^(reward / bonus): what a bonus costs
    for good, the more the rarer right actions are.
    """
    if right == 0 or bonus == 0:
        return float(right > 0)
    return 1 / (1 + (actions - right) / right * math.exp(-1 / bonus))
