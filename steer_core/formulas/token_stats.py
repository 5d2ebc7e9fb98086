"""Per-token statistics of a policy from its logits: one pass, float32, no second copy of the logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED_LABEL = -100
CHUNK_ELEMENTS = 1 << 22
"""Most elements of logits that are reduced at a time in float32."""
Places = Tensor | slice | list[int] | tuple[slice | list[int], slice]
"""What picks some of the states."""


@dataclass(frozen=True)
class TokenStats:
    """Statistics of p = softmax(logits / temperature) at every state, in nats.

    logprob: ln p_a of the token that was sampled, the only one that carries gradient by default.
    entropy: Shannon entropy H = -sum_j p_j ln p_j, within [0, ln V].
    sum_p2: sum_j p_j^2, the probability that two samples agree.
    sum_p2_logp: sum_j p_j^2 ln p_j.
    """

    logprob: Float[Tensor, "*shape"]
    entropy: Float[Tensor, "*shape"]
    sum_p2: Float[Tensor, "*shape"]
    sum_p2_logp: Float[Tensor, "*shape"]

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenStats:
        """The statistics with `function` applied to each tensor."""
        return TokenStats(*(function(getattr(self, field.name)) for field in fields(self)))

    def __getitem__(self, places: Places) -> TokenStats:
        """The statistics at some places: each tensor indexed by a mask, by rows, or by rows and columns."""
        return self.map(lambda values: values[places])

    def detach(self) -> TokenStats:
        """The statistics cut from the graph."""
        return self.map(Tensor.detach)


def concatenate(parts: Iterable[TokenStats]) -> TokenStats:
    """The statistics of several batches behind one another, along the first axis."""
    return TokenStats(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


def token_stats(
    logits: Float[Tensor, "*shape vocab"],
    labels: Int[Tensor, "*shape"],
    temperature: float = 1.0,
    chunk_rows: int | None = None,
) -> TokenStats:
    """Statistics of softmax(logits / temperature) at every row, with `labels` as the sampled tokens.

    logits: any float dtype; reduced in float32 (float64 stays float64). -inf marks tokens outside the
        vocabulary in use. labels: int64; IGNORED_LABEL rows get logprob 0 and no gradient through it.
        chunk_rows: rows reduced at once; by default about 4M elements.
    `logprob` and `entropy` are differentiable, in the logits' dtype, with d ln p_a/dz = (e_a - p)/temperature
    and dH/dz = -p (ln p + H)/temperature.
    Raises ValueError on mismatched shapes, labels outside the vocabulary, temperature <= 0.
    A row without a finite logit gives NaN; a label on a logit of -inf has logprob -inf.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels: shape {tuple(labels.shape)} does not match logits {tuple(logits.shape)}[:-1]")
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} is not above 0")
    size = logits.shape[-1]
    check_labels(labels, size)
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows: {chunk_rows} is below 1")
    rows = chunk_rows or max(1, CHUNK_ELEMENTS // max(size, 1))
    flat = _TokenStats.apply(logits.reshape(-1, size), labels.reshape(-1), temperature, rows)
    return TokenStats(*(value.reshape(labels.shape) for value in flat))


def check_labels(labels: Int[Tensor, "*shape"], size: int) -> None:
    """Raise ValueError for a label outside the vocabulary that is not IGNORED_LABEL."""
    if labels.numel():
        lowest, highest = labels.aminmax()
        if highest >= size or (lowest < 0 and ((labels < 0) & (labels != IGNORED_LABEL)).any()):
            raise ValueError(f"labels: a label lies outside 0..{size - 1} and is not {IGNORED_LABEL}")


def entropy(logits: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape"]:
    """Entropy of softmax(logits), in nats, at every row: `token_stats` without a token.

    Differentiable, with dH/dz = -p (ln p + H).
    """
    labels = torch.full(logits.shape[:-1], IGNORED_LABEL, device=logits.device)
    return token_stats(logits, labels).entropy


class _TokenStats(torch.autograd.Function):
    """One chunked pass each way; the backward recomputes p from the logits and ln of the normaliser."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Float[Tensor, "rows vocab"], labels_N: Int[Tensor, "rows"], temperature: float, rows: int
    ) -> tuple[Float[Tensor, "rows"], ...]:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        out = torch.empty(4, len(logits_NV), dtype=dtype, device=logits_NV.device)
        top_N, log_s_N = torch.empty(2, len(logits_NV), dtype=dtype, device=logits_NV.device)  # their sum would round
        for start in range(0, len(logits_NV), rows):
            chunk = slice(start, start + rows)
            z = logits_NV[chunk].to(dtype, copy=True)
            top = z.amax(-1, keepdim=True)
            z.sub_(top).div_(temperature)  # in this order a shift of all logits costs no digits
            e = z.exp()
            log_s = e.sum(-1, keepdim=True).log_()
            top_N[chunk], log_s_N[chunk] = top.squeeze(-1), log_s.squeeze(-1)
            label = labels_N[chunk].clamp_min(0)[:, None]
            logprob = (z.gather(-1, label) - log_s).squeeze(-1)
            out[0, chunk] = torch.where(labels_N[chunk] == IGNORED_LABEL, 0.0, logprob)
            logp = z.sub_(log_s).clamp_min_(torch.finfo(dtype).min)  # so that 0 * -inf is 0
            p = e.div_(log_s.exp())
            out[1, chunk] = -_row_dot(p, logp)
            p2 = p.square_()
            out[2, chunk] = p2.sum(-1)
            out[3, chunk] = _row_dot(p2, logp)
        out[1].clamp_(0.0, math.log(max(logits_NV.shape[-1], 1)))
        ctx.save_for_backward(logits_NV, labels_N, top_N, log_s_N, out[1])
        ctx.temperature, ctx.rows = temperature, rows
        logprob, entropy, sum_p2, sum_p2_logp = out.unbind(0)
        ctx.mark_non_differentiable(sum_p2, sum_p2_logp)
        return logprob, entropy, sum_p2, sum_p2_logp

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprob_N: Float[Tensor, "rows"], grad_entropy_N: Float[Tensor, "rows"], *_: Any
    ) -> tuple[Float[Tensor, "rows vocab"], None, None, None]:
        logits_NV, labels_N, top_N, log_s_N, entropy_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        with_entropy = bool(grad_entropy_N.any())
        for start in range(0, len(logits_NV), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            logp = (logits_NV[chunk].to(top_N.dtype) - top_N[chunk, None]) / ctx.temperature - log_s_N[chunk, None]
            p = logp.exp()
            ignored = labels_N[chunk] == IGNORED_LABEL
            g = torch.where(ignored, 0.0, grad_logprob_N[chunk])[:, None]
            grad = -g * p
            grad.scatter_add_(-1, labels_N[chunk].clamp_min(0)[:, None], g)
            if with_entropy:
                finite = logp.clamp_min(torch.finfo(logp.dtype).min)
                grad -= grad_entropy_N[chunk, None] * p * (finite + entropy_N[chunk, None])
            grad_NV[chunk] = grad / ctx.temperature
        return grad_NV, None, None, None


def _row_dot(a: Float[Tensor, "rows vocab"], b: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows"]:
    return torch.linalg.vecdot(a, b)  # an einsum of the two loses digits on wide rows
