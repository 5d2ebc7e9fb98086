"""A method of your own: `intervention.name=my_method:Calm`. A method is a class with the parts of a step it changes."""

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from steer_core import Intervention, Tokens
from steer_core.common.settings import STRICT


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Calm(Intervention):
    """Likely tokens of good responses weigh less, the more so the less entropy is left where they were chosen."""

    # Fields are settings: intervention.threshold=0.8 on the command line, or a line below `intervention` in run.yaml.
    # They are checked for type and range; the text below a field is its help.
    name: str = "my_method:Calm"
    threshold: float = Field(0.9, gt=0, lt=1)
    """Probability from which a token is held back."""
    weight: float = Field(0.5, ge=0)
    """What a token without any entropy weighs then."""

    def weights(self, tokens: Tokens) -> Tensor:
        """The factor (N,) on each token's loss, for the N response tokens that the rule is shown.

        tokens.new, tokens.old: ln p (`logprob`) and H (`entropy`, nats) under the policy that is updated and the one
        that sampled. tokens.advantages: A of every token.
        """
        likely = tokens.new.logprob.exp() > self.threshold
        held_back = likely & (tokens.advantages > 0)
        weight = self.weight + (1 - self.weight) * tokens.new.entropy.clamp(0, 1)
        return torch.where(held_back, weight, 1.0)

    # Other parts that a method may change: credit, clip_range, advantages, mask, extra_loss; what it must see at once
    # is its `scope`. See steer_core/interventions/README.md.
