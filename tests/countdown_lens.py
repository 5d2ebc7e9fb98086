"""A lens on responses of the Countdown model in float64, the push of a mini-batch through it, and directions."""

import itertools

import torch

from steer_core.config.sections import RolloutConfig
from steer_core.formulas.entropy_change import surrogate_slope
from steer_core.formulas.loss import ClipRange
from steer_core.formulas.token_stats import TokenStats
from steer_core.ladder.passes import Lens, lens_stats
from steer_core.policy.model import load_policy
from steer_core.problems import Countdown
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.rollout.rollout import Rollout


def eight_responses() -> Rollout:
    """Two to each of four problems, sampled from the embedded model."""
    policy = load_policy("embedded")
    prompts = [problem.prompt for problem in Countdown().problems("test", 4)]
    return HuggingFaceSampler(policy).generate(prompts, 2, RolloutConfig(max_new_tokens=24), seed=1)


def lens_on(rollout: Rollout) -> Lens:
    """The embedded model in float64, at another temperature, three sequences at a time."""
    return Lens(load_policy("embedded").model.double(), rollout, temperature=0.9, micro_batch=3)


def pushed_by(lens: Lens) -> torch.Tensor:
    """Factors of a clipped, off-policy mini-batch's tokens in its ascent direction, (N,)."""
    generator = torch.Generator().manual_seed(2)
    mask = lens.sequences.response_mask_BT
    new = lens_stats(lens)
    noise = 0.3 * torch.randn(len(new.logprob), generator=generator, dtype=torch.float64)
    old = TokenStats(new.logprob - noise, new.entropy, new.sum_p2, new.sum_p2_logp)
    advantages = torch.randn(len(mask), 1, generator=generator, dtype=torch.float64).expand(mask.shape)[mask]
    weights = surrogate_slope(new, old, advantages, ClipRange())
    assert 0.05 < float((weights == 0).double().mean()) < 0.5
    return weights / len(weights)


def copies(values):
    return {name: value.detach().clone() for name, value in values.items()}


def assert_equal_directions(a, b):
    assert list(a) == list(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def ratios_of(values):
    return [a / b for a, b in itertools.pairwise(values)]
