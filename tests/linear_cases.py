"""Cases for statistics from hidden states, and what they are by definition."""

from dataclasses import fields

import pytest
import torch

from steer_core.formulas.token_stats import IGNORED_LABEL, TokenStats

ROWS, COLUMNS = 8, 16
"""The blocks of logits in these tests: a few of them on a small case, the last ones ragged."""
HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "bias": {"bias": True, "temperature": 1.7},
    "softcap": {"softcap": 3.0, "temperature": 0.8},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 5.0, "scale": 1.7, "temperature": 0.7},
}
heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def case(rows=11, size=37, width=5, seed=0, dtype=torch.float32, ignored=(), **head):
    """Arguments of `linear_token_stats` on random tensors; `bias` asks for a random one."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(size, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(size, (rows,), generator=generator)
    labels[list(ignored)] = IGNORED_LABEL
    if head.pop("bias", False):
        head["bias_V"] = bias
    return [hidden.to(dtype), weight.to(dtype), labels], head


def logits_of(hidden, weight, bias_V=None, softcap=None, scale=1.0):
    """The logits before the temperature, in float64."""
    z = hidden.double() @ weight.double().t()
    z = scale * (z if bias_V is None else z + bias_V.double())
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def reference(hidden, weight, labels, temperature=1.0, **head):
    """The definitions, in float64, on all logits at once."""
    logp = torch.log_softmax(logits_of(hidden, weight, **head) / temperature, -1)
    p, finite = logp.exp(), logp.clamp_min(-1e300)
    logprob = logp.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
    logprob = torch.where(labels == IGNORED_LABEL, 0.0, logprob)
    return TokenStats(logprob, -(p * finite).sum(-1), (p * p).sum(-1), (p * p * finite).sum(-1))


def assert_stats_close(stats, expected, **tolerance):
    for field in fields(TokenStats):
        actual, wanted = getattr(stats, field.name), getattr(expected, field.name)
        torch.testing.assert_close(
            actual, wanted.to(actual.dtype), msg=lambda m, n=field.name: f"{n}: {m}", **tolerance
        )


def gradients(function, tensors, head, weights=(1.0, 0.7), wanted=("hidden", "weight", "bias_V")):
    """Gradients of sum_n w_n (weights[0] logprob_n + weights[1] entropy_n), by name; of those that are wanted."""
    hidden, weight, labels = tensors
    leaves = {"hidden": hidden, "weight": weight, "bias_V": head.get("bias_V")}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    leaves = {name: leaf.detach().clone().requires_grad_(name in wanted) for name, leaf in leaves.items()}
    rest = {name: value for name, value in head.items() if name != "bias_V"}
    rest |= {"bias_V": leaves["bias_V"]} if "bias_V" in leaves else {}
    stats = function(leaves["hidden"], leaves["weight"], labels, **rest)
    rows = torch.linspace(0.5, 2, len(labels), dtype=stats.logprob.dtype)
    loss = weights[0] * stats.logprob @ rows
    (loss + weights[1] * stats.entropy @ rows if weights[1] else loss).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def assert_gradients_close(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name, grad in actual.items():
        assert (grad is None) == (expected[name] is None), name
        if grad is not None:
            wanted = expected[name].to(grad.dtype)
            torch.testing.assert_close(grad, wanted, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
