"""Token statistics from hidden states and the output matrix: the logits exist for one tile at a time.

One loop on the host walks the tiles of the vocabulary and, within each, the blocks of rows. A product
makes the logits of a block in one buffer that stays in cache, and `fold` takes them into running sums
per row: with d = (z - m)/T under the running maximum m,

    S = sum e^d,   U = sum e^d d,   Q = sum e^{2d},   R = sum e^{2d} d.

When the maximum moves, with delta = (m_old - m_new)/T and a = e^delta, the old sums become a S,
a (U + delta S), a^2 Q and a^2 (R + delta Q). At the end H = ln S - U/S, sum p^2 = Q/S^2 and
sum p^2 ln p = (R - Q ln S)/S^2. The backward pass makes each tile again, turns it into dL/dz
(`tile_gradient`) and takes it into the gradients of the hidden states and the matrix.

On CUDA, `fold` and `tile_gradient` are those of `linear_stats_triton`, and products of bfloat16 or float16
are summed in float32; elsewhere a tile of such a matrix is widened first. float64 always runs here.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from steer_core.formulas.token_stats import IGNORED_LABEL, TokenStats, check_labels

BLOCKS = {"cpu": (1024, 512), "cuda": (2048, 4096)}
"""Rows and columns of logits that are made at a time, by kind of device."""
USE_TRITON: bool | None = None
"""Whether float32 runs in the kernels of `linear_stats_triton`; None: on CUDA, where Triton is installed."""
NO_CHANCE = -1e4
"""Its exponential is 0 in every float dtype: a stand-in for -inf, so that 0 * ln 0 is 0."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def linear_token_stats(
    hidden_ND: Float[Tensor, "rows hidden"],
    weight_VD: Float[Tensor, "vocab hidden"],
    labels_N: Int[Tensor, "rows"],
    temperature: float = 1.0,
    *,
    bias_V: Float[Tensor, "vocab"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    sums: bool = True,
    keep_logits: bool = False,
) -> TokenStats:
    """Statistics of softmax(z / temperature) at every row, with `labels_N` as the sampled tokens.

    z = scale (h W^T + bias), then, with a softcap, softcap tanh(z / softcap): the order of the models of
    Hugging Face. Gemma caps the logits, Cohere multiplies them by its logit_scale, and Granite
    divides them by its logits_scaling: give scale=1 / logits_scaling.
    hidden_ND, weight_VD, bias_V: of one float dtype; products, sums and results are in float32 (float64 stays
        float64). A bias of -inf marks tokens outside the vocabulary in use.
    labels_N: int64; rows of IGNORED_LABEL get logprob 0 and no gradient through it.
    sums: False leaves out `sum_p2` and `sum_p2_logp`, which are then NaN.
    keep_logits: hold all logits, in float32, from the forward to the backward pass, which then makes none.
    `logprob` and `entropy` are differentiable once, in hidden_ND, weight_VD and bias_V, with
    d ln p_a/dz = (e_a - p)/temperature and dH/dz = -p (ln p + H)/temperature. Beyond the gradients, memory grows
    with N and D, not with N V.
    Raises ValueError on mismatched shapes, dtypes or devices, labels outside the vocabulary, and a temperature, softcap
    or scale that is not above 0.
    A row without a finite logit gives NaN; a label on a logit of -inf has logprob -inf.
    """
    _check(hidden_ND, weight_VD, labels_N, bias_V)
    for name, value in {"temperature": temperature, "softcap": softcap, "scale": scale}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: {value} is not above 0 and finite")
    head = Head(temperature, softcap, scale, sums, keep_logits and torch.is_grad_enabled())
    return TokenStats(*_LinearStats.apply(hidden_ND, weight_VD, bias_V, labels_N, head))


def _check(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, bias_V: Tensor | None) -> None:
    """Raise ValueError where the tensors do not fit each other."""
    if hidden_ND.dim() != 2:
        raise ValueError(f"hidden: shape {tuple(hidden_ND.shape)} is not (rows, hidden size)")
    if weight_VD.dim() != 2 or weight_VD.shape[1] != hidden_ND.shape[1] or not len(weight_VD):
        raise ValueError(f"weight: shape {tuple(weight_VD.shape)} is not (vocabulary, {hidden_ND.shape[1]})")
    if labels_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"labels: shape {tuple(labels_N.shape)} does not match hidden {tuple(hidden_ND.shape)}[:-1]")
    if bias_V is not None and bias_V.shape != weight_VD.shape[:1]:
        raise ValueError(f"bias: shape {tuple(bias_V.shape)} does not match weight {tuple(weight_VD.shape)}[:1]")
    if hidden_ND.dtype not in DTYPES:
        raise ValueError(f"hidden: dtype {hidden_ND.dtype} is none of {', '.join(map(str, DTYPES))}")
    for name, tensor in {"weight": weight_VD, "bias": bias_V}.items():
        if tensor is not None and tensor.dtype != hidden_ND.dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype} is not {hidden_ND.dtype}, that of hidden")
    for name, tensor in {"weight": weight_VD, "labels": labels_N, "bias": bias_V}.items():
        if tensor is not None and tensor.device != hidden_ND.device:
            raise ValueError(f"{name}: on {tensor.device}, hidden is on {hidden_ND.device}")
    check_labels(labels_N, len(weight_VD))


@dataclass(frozen=True)
class Head:
    """What becomes of the products h W^T, and what is wanted of them."""

    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    sums: bool = True
    keep_logits: bool = False

    @property
    def factor(self) -> float:
        """What a difference of two numbers in a block is multiplied by to be one of logits over the temperature."""
        return (self.softcap or self.scale) / self.temperature


@dataclass(frozen=True)
class Running:
    """Of some rows: the running maximum m, the logit of the label, and the running sums S, U, Q, R in float64."""

    top_B: Tensor
    at_label_B: Tensor
    sums_4B: Tensor

    def __getitem__(self, rows: slice) -> Running:
        return Running(self.top_B[rows], self.at_label_B[rows], self.sums_4B[:, rows])


@dataclass(frozen=True)
class RowGrads:
    """Of some rows: the gradients of ln p_a and of H (None where it is 0), and the m, ln S and H that they need."""

    logprob_B: Tensor
    entropy_B: Tensor | None
    top_B: Tensor
    log_s_B: Tensor
    value_B: Tensor

    def __getitem__(self, rows: slice) -> RowGrads:
        entropy_B = None if self.entropy_B is None else self.entropy_B[rows]
        return RowGrads(self.logprob_B[rows], entropy_B, self.top_B[rows], self.log_s_B[rows], self.value_B[rows])


def fold(
    z_BT: Float[Tensor, "rows tile"],
    column_B: Int[Tensor, "rows"],
    run: Running,
    head: Head,
    made_BT: Float[Tensor, "rows tile"],
    spare_BT: Float[Tensor, "rows tile"],
) -> None:
    """Take a block of logits into the running statistics of its rows.

    column_B: where the label lies in the tile; outside 0..T - 1 where it does not. Overwrites made_BT, which may be
    z_BT, and spare_BT.
    """
    place_B, inside_B = _places(column_B, z_BT.shape[1])
    run.at_label_B.copy_(torch.where(inside_B, z_BT.gather(-1, place_B[:, None])[:, 0], run.at_label_B))
    top_B = torch.maximum(run.top_B, z_BT.amax(-1))
    delta_B = (run.top_B.double() - top_B).mul_(head.factor).clamp_min_(NO_CHANCE)
    run.top_B.copy_(top_B)
    a_B = delta_B.exp()
    run.sums_4B[1::2].addcmul_(run.sums_4B[::2], delta_B)
    run.sums_4B.mul_(torch.stack([a_B, a_B, a_B * a_B, a_B * a_B]))

    d_BT = _centred(z_BT, top_B, head, spare_BT)
    e_BT = torch.exp(d_BT, out=made_BT)
    found = [e_BT.sum(-1), torch.linalg.vecdot(e_BT, d_BT)]
    if head.sums:
        e_BT.square_()
        found += [e_BT.sum(-1), torch.linalg.vecdot(e_BT, d_BT)]
    run.sums_4B[: len(found)] += torch.stack(found)


def tile_gradient(
    z_BT: Float[Tensor, "rows tile"],
    column_B: Int[Tensor, "rows"],
    grads: RowGrads,
    head: Head,
    made_BT: Float[Tensor, "rows tile"],
    spare_BT: Float[Tensor, "rows tile"],
) -> Float[Tensor, "rows tile"]:
    """The gradient of the products h W^T of a block, in spare_BT: [g (e_a - p) - g_H p (ln p + H)] dz / d(h W^T).

    Arguments as in `fold`.
    """
    slope_BT = z_BT.square().neg_().add_(1) if head.softcap else None
    d_BT = _centred(z_BT, grads.top_B, head, spare_BT)
    e_BT = torch.exp(d_BT, out=made_BT)
    per_product = head.scale / head.temperature
    p_over_e_B = (-grads.log_s_B).exp() * per_product
    if grads.entropy_B is None:
        grad_BT = torch.mul(e_BT, (-grads.logprob_B * p_over_e_B)[:, None], out=spare_BT)
    else:
        rest_B = grads.logprob_B + grads.entropy_B * (grads.value_B - grads.log_s_B)
        d_BT.mul_(-grads.entropy_B[:, None]).sub_(rest_B[:, None])
        grad_BT = d_BT.mul_(e_BT).mul_(p_over_e_B[:, None])
    place_B, inside_B = _places(column_B, z_BT.shape[1])
    at_label_B = torch.where(inside_B, grads.logprob_B * per_product, 0.0)
    grad_BT.scatter_add_(-1, place_B[:, None], at_label_B[:, None])
    return grad_BT if slope_BT is None else grad_BT.mul_(slope_BT)


def _centred(z_BT: Tensor, top_B: Tensor, head: Head, out_BT: Tensor) -> Tensor:
    """d = (z - m)/T, bounded from below; the maximum goes first, so that a shift of all logits costs no digits."""
    d_BT = torch.sub(z_BT, top_B[:, None], out=out_BT)
    if head.factor != 1:
        d_BT.mul_(head.factor)
    return d_BT.clamp_min_(NO_CHANCE)


def _places(column_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The columns brought into the tile, and whether they were there."""
    place_B = column_B.clamp(0, size - 1)
    return place_B, place_B == column_B


class _Tiles:
    """The walk over the logits of one call: its buffers, and the products that fill them."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, head: Head):
        device = hidden_ND.device
        self.dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        triton = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        triton = self.dtype is torch.float32 and (triton if USE_TRITON is None else USE_TRITON)
        self.backend: Any = importlib.import_module(f"{__name__}_triton") if triton else sys.modules[__name__]
        self.factors_dtype = hidden_ND.dtype if triton and device.type == "cuda" else self.dtype
        self.hidden_ND, self.weight_VD, self.bias_V = hidden_ND.to(self.factors_dtype), weight_VD, bias_V
        self.labels_N, self.head = labels_N, head
        rows, columns = BLOCKS.get(device.type, BLOCKS["cpu"])
        self.rows, self.columns = max(1, min(rows, len(hidden_ND))), min(columns, len(weight_VD))
        self.made = torch.empty(self.rows * self.columns, dtype=self.dtype, device=device)
        self.spare = torch.empty(self.rows * self.columns, dtype=self.factors_dtype, device=device)

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """The slices of the vocabulary, each with its part of the matrix as the products take it."""
        size = len(self.weight_VD)
        for start in range(0, size, self.columns):
            tile = slice(start, min(start + self.columns, size))
            yield tile, self.weight_VD[tile].to(self.factors_dtype)

    def blocks(
        self, tile: slice, weight_TD: Tensor, kept: Tensor | None, make: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Of every block of rows: its rows, logits, columns of the labels, and two buffers of its shape.

        The logits are those before the temperature, over the softcap where there is one. They lie in `kept`, if given,
        and else in the first buffer. make: whether they are yet to be made.
        """
        count, width = len(self.hidden_ND), tile.stop - tile.start
        for start in range(0, count, self.rows):
            rows = slice(start, min(start + self.rows, count))
            shape = rows.stop - rows.start, width
            made_BT, spare_BT = (b[: math.prod(shape)].view(shape) for b in (self.made, self.spare))
            z_BT = made_BT
            if kept is not None:
                begin = count * tile.start + rows.start * width
                z_BT = kept[begin : begin + math.prod(shape)].view(shape)
            if make:
                product(self.hidden_ND[rows], weight_TD.t(), z_BT)
                if self.bias_V is not None:
                    z_BT += self.bias_V[tile]
                if self.head.softcap:
                    z_BT.mul_(self.head.scale / self.head.softcap).tanh_()
            yield rows, z_BT, self.labels_N[rows] - tile.start, made_BT, spare_BT


def product(a_NK: Float[Tensor, "n k"], b_KM: Float[Tensor, "k m"], out_NM: Float[Tensor, "n m"]) -> None:
    """a b into `out_NM`, summed in its dtype; a and b are of that dtype or, on CUDA, of a narrower one."""
    if a_NK.dtype == out_NM.dtype:
        torch.mm(a_NK, b_KM, out=out_NM)
    else:
        torch.mm(a_NK, b_KM, out_NM.dtype, out=out_NM)


def add_product(a_NK: Float[Tensor, "n k"], b_KM: Float[Tensor, "k m"], out_NM: Float[Tensor, "n m"]) -> None:
    """As `product`, onto what `out_NM` holds."""
    if a_NK.dtype == out_NM.dtype:
        torch.addmm(out_NM, a_NK, b_KM, out=out_NM)
    else:
        torch.addmm(out_NM, a_NK, b_KM, out_NM.dtype, out=out_NM)


class _LinearStats(torch.autograd.Function):
    """The loop over tiles and blocks, each way."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, head: Head
    ) -> tuple[Tensor, ...]:
        walk, kept = _Tiles(hidden_ND, weight_VD, bias_V, labels_N, head), None
        if head.keep_logits and any(ctx.needs_input_grad):
            kept = hidden_ND.new_empty(len(hidden_ND) * len(weight_VD), dtype=walk.dtype)
        lowest = torch.full_like(labels_N, torch.finfo(walk.dtype).min, dtype=walk.dtype)
        sums_4N = torch.zeros(4, len(labels_N), dtype=torch.float64, device=labels_N.device)
        run = Running(lowest, torch.zeros_like(lowest), sums_4N)
        for tile, weight_TD in walk.tiles():
            for rows, z, column, made, spare in walk.blocks(tile, weight_TD, kept, make=True):
                walk.backend.fold(z, column, run[rows], head, made, spare)

        s, u, q, r = run.sums_4B
        log_s = s.log()
        logprob = (run.at_label_B.double() - run.top_B) * head.factor - log_s
        logprob = torch.where(labels_N == IGNORED_LABEL, 0.0, logprob)
        entropy = (log_s - u / s).clamp_(0.0, math.log(len(weight_VD)))
        p2 = [q / s.square(), (r - q * log_s) / s.square()] if head.sums else [torch.full_like(s, math.nan)] * 2
        out = torch.stack([logprob, entropy, *p2]).to(walk.dtype)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, kept, run.top_B, log_s.to(walk.dtype), out[1])
        ctx.head = head
        logprob, entropy, sum_p2, sum_p2_logp = out.unbind(0)
        ctx.mark_non_differentiable(sum_p2, sum_p2_logp)
        return logprob, entropy, sum_p2, sum_p2_logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprob: Tensor, grad_entropy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, labels_N, kept, top, log_s, entropy = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        walk = _Tiles(hidden_ND, weight_VD, bias_V, labels_N, ctx.head)
        grad_logprob = torch.where(labels_N == IGNORED_LABEL, 0.0, grad_logprob)
        grads = RowGrads(grad_logprob, grad_entropy if grad_entropy.any() else None, top, log_s, entropy)
        d_hidden = torch.zeros_like(hidden_ND, dtype=walk.dtype) if for_hidden else None
        d_weight = torch.zeros_like(weight_VD) if for_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=walk.dtype) if for_bias else None
        wide = None  # a tile of d_weight where that is too narrow to add to
        if for_weight and weight_VD.dtype != walk.dtype:
            wide = torch.empty_like(weight_VD[: walk.columns], dtype=walk.dtype)
        for tile, weight_TD in walk.tiles():
            d_tile = None if d_weight is None else d_weight[tile] if wide is None else wide[: len(weight_TD)].zero_()
            for rows, z, column, made, spare in walk.blocks(tile, weight_TD, kept, make=kept is None):
                dz = walk.backend.tile_gradient(z, column, grads[rows], ctx.head, made, spare)
                if d_hidden is not None:
                    add_product(dz, weight_TD, d_hidden[rows])
                if d_tile is not None:
                    add_product(dz.t(), walk.hidden_ND[rows], d_tile)
                if d_bias is not None:
                    d_bias[tile] += dz.sum(0, dtype=walk.dtype)
            if d_weight is not None and d_tile is not None and wide is not None:
                d_weight[tile] = d_tile
        d_hidden = None if d_hidden is None else d_hidden.to(hidden_ND.dtype)
        return d_hidden, d_weight, None if d_bias is None else d_bias.to(bias_V.dtype), None, None
