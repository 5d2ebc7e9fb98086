"""Differential smoothing: credit right responses with more the less probable they were."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, where

from steer_core.common.settings import STRICT
from steer_core.interventions.base import Intervention, Responses


@dataclass(config=STRICT, kw_only=True, frozen=True)
class DifferentialSmoothing(Intervention):
    """A - gamma ln pi(y) of right responses, A + gamma' ln pi(y) of wrong ones (DS-GRPO, arXiv 2511.19942, eq. 6).

    ln pi(y) is that of the whole response under the policy that sampled. The paper's theory takes the base model's and
    changes the reward (eq. 4); its algorithm, this one, changes the advantage, after the division by the group's
    deviation. The paper's sizes of gamma and gamma' could not be verified: the defaults are ours, and a longer response
    needs smaller ones, for ln pi(y) grows with its length. By its argument right responses alone need the term.
    """

    name: str = "differential-smoothing"
    right: float = Field(default=0.01, ge=0)
    """gamma, per nat: on right responses, those with a reward above 0."""
    wrong: float = Field(default=0.0, ge=0)
    """gamma', per nat: on wrong responses."""

    def credit(self, responses: Responses) -> Tensor:
        """The advantages with their term."""
        surprise_PG = -responses.logprobs_PG
        term_PG = where(responses.rewards_PG > 0, self.right * surprise_PG, -self.wrong * surprise_PG)
        return responses.advantages_PG + term_PG
