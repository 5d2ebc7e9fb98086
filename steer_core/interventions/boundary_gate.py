"""Boundary gating: leave problems alone that the policy can solve already."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core.common.settings import STRICT
from steer_core.interventions.base import UNLOGGED, Intervention, Memory, Responses


@dataclass(config=STRICT, kw_only=True, frozen=True)
class BoundaryGate(Intervention):
    """Responses to a problem that is solved already have no advantage (Yuan et al., arXiv 2606.15455).

    rule `unsolved` is the paper's restriction to problems with no observed success: one that was solved in an earlier
    rollout is trained no more. Successes in the rollout in hand do not shut its gate, for under advantages relative to
    the group a group without any teaches nothing. rule `saturated` is the paper's Bayesian gate: it is shut where the
    group in hand says that training adds almost nothing to pass@k (`slope`, eq. 8, against eq. 9). Not here: the
    paper's weights on open problems, by that slope, and its loss of its own on groups without a success.
    """

    name: str = "boundary-gate"
    rule: Literal["unsolved", "saturated"] = "unsolved"
    """What shuts the gate: a success in an earlier rollout, or many in this one."""
    k: int = Field(default=16, ge=1)
    """With rule=saturated, the k of the pass@k."""
    threshold: float = Field(default=0.01, ge=0)
    """With rule=saturated, the gate is shut below this times one more than the group; 0 never shuts it."""

    def credit(self, responses: Responses) -> Tensor:
        """The advantages where the gate is open, else 0."""
        gate_P = responses.advantages_PG.new_tensor(self.gates(responses)).bool()
        return responses.advantages_PG.masked_fill(~gate_P[:, None], 0.0)

    def remember(self, memory: Memory, responses: Responses) -> Memory:
        """The right responses to every problem that has any, so far; the share of open gates; the problems solved."""
        counts: Counter[str] = Counter()
        for problem, right in zip(responses.problems, _right(responses), strict=True):
            counts[UNLOGGED + problem] += right
        known = {name: value for name, value in memory.items() if name.startswith(UNLOGGED)}
        known |= {name: known.get(name, 0.0) + right for name, right in counts.items() if right}
        gates = self.gates(responses)
        return {"open": sum(gates) / len(gates), "solved": float(len(known)), **known}

    def gates(self, responses: Responses) -> list[bool]:
        """Whether the gate of each prompt's problem is open."""
        if self.rule == "unsolved":
            return [UNLOGGED + problem not in responses.memory for problem in responses.problems]
        group = responses.rewards_PG.shape[1]
        return [slope(right, group, self.k) >= self.threshold * (group + 1) for right in _right(responses)]


def slope(right: int, group: int, k: int) -> float:
    """The expected slope of pass@k, E[k (1 - p)^(k - 1)], where so many of a group are right (arXiv 2606.15455, eq. 8).

    p, the probability of a right response, is Beta(right + 1, group - right + 1): uniform before the group is seen.
    """
    product = float(k)
    for j in range(1, k):
        product *= (group - right + j) / (group + 1 + j)
    return product


def _right(responses: Responses) -> list[int]:
    """The right responses of each prompt, those with a reward above 0."""
    return (responses.rewards_PG > 0).sum(-1).tolist()
