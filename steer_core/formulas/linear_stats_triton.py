"""The kernels of `linear_stats` in Triton: a block of logits is read once each way, in float32.

Imported only where it runs: on CUDA, or anywhere under Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from steer_core.formulas.linear_stats import NO_CHANCE, Head, RowGrads, Running

AT_ONCE = 4096
"""Logits that one program holds at a time, a power of 2: those of one row, or of several that are short."""


def fold(
    z_BT: Float[Tensor, "rows tile"], column_B: Int[Tensor, "rows"], run: Running, head: Head, *buffers: Tensor
) -> None:
    """As `linear_stats.fold`, without its buffers."""
    count, width = z_BT.shape
    rows, columns = _held(width)
    _fold[(triton.cdiv(count, rows),)](
        z_BT,
        column_B.contiguous(),
        run.top_B,
        run.at_label_B,
        run.sums_4B,
        run.sums_4B.stride(0),
        count,
        width,
        head.factor,
        lowest=NO_CHANCE,
        with_squares=head.sums,
        rows=rows,
        columns=columns,
        num_warps=8,
    )


def tile_gradient(
    z_BT: Float[Tensor, "rows tile"],
    column_B: Int[Tensor, "rows"],
    grads: RowGrads,
    head: Head,
    made_BT: Float[Tensor, "rows tile"],
    spare_BT: Float[Tensor, "rows tile"],
) -> Float[Tensor, "rows tile"]:
    """As `linear_stats.tile_gradient`, in the dtype of spare_BT."""
    count, width = z_BT.shape
    rows, columns = _held(width)
    _tile_gradient[(triton.cdiv(count, rows), triton.cdiv(width, columns))](
        z_BT,
        spare_BT,
        column_B.contiguous(),
        grads.logprob_B.contiguous(),
        (grads.logprob_B if grads.entropy_B is None else grads.entropy_B).contiguous(),
        grads.top_B,
        grads.log_s_B,
        grads.value_B,
        count,
        width,
        head.factor,
        head.scale / head.temperature,
        lowest=NO_CHANCE,
        with_entropy=grads.entropy_B is not None,
        with_softcap=head.softcap is not None,
        rows=rows,
        columns=columns,
        num_warps=8,
    )
    return spare_BT


def _held(width: int) -> tuple[int, int]:
    """Rows and columns of a program, for a tile of some width."""
    columns = min(AT_ONCE, triton.next_power_of_2(width))
    return AT_ONCE // columns, columns


@triton.jit
@no_type_check
def _fold(
    z,
    column,
    top,
    at_label,
    sums,
    sums_stride,
    count,
    width,
    factor,
    lowest: tl.constexpr,
    with_squares: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    real = row < count
    begin = row.to(tl.int64) * width
    m = tl.load(top + row, mask=real, other=0.0)
    s = tl.load(sums + row, mask=real, other=1.0)
    u = tl.load(sums + sums_stride + row, mask=real, other=0.0)
    q = tl.load(sums + 2 * sums_stride + row, mask=real, other=1.0)
    r = tl.load(sums + 3 * sums_stride + row, mask=real, other=0.0)
    for start in range(0, width, columns):
        here = start + tl.arange(0, columns)
        inside = real[:, None] & (here < width)[None, :]
        x = tl.load(z + begin[:, None] + here[None, :], mask=inside, other=-float("inf"))
        old = m
        m = tl.maximum(m, tl.max(x, 1))
        delta = (old.to(tl.float64) - m.to(tl.float64)) * factor
        delta = tl.where(delta < lowest, lowest, delta)
        a = tl.exp(delta)
        d = (x - m[:, None]) * factor
        d = tl.where(d < lowest, lowest, d)  # keeps NaN, as a maximum does not
        e = tl.exp(d)
        u = a * (u + delta * s) + tl.sum(e * d, 1).to(tl.float64)
        s = a * s + tl.sum(e, 1).to(tl.float64)
        if with_squares:
            e = e * e
            r = a * a * (r + delta * q) + tl.sum(e * d, 1).to(tl.float64)
            q = a * a * q + tl.sum(e, 1).to(tl.float64)
    tl.store(top + row, m, mask=real)
    tl.store(sums + row, s, mask=real)
    tl.store(sums + sums_stride + row, u, mask=real)
    if with_squares:
        tl.store(sums + 2 * sums_stride + row, q, mask=real)
        tl.store(sums + 3 * sums_stride + row, r, mask=real)
    label = tl.load(column + row, mask=real, other=-1)
    there = (label >= 0) & (label < width)
    tl.store(at_label + row, tl.load(z + begin + label, mask=there), mask=there)


@triton.jit
@no_type_check
def _tile_gradient(
    z,
    out,
    column,
    grad_logprob,
    grad_entropy,
    top,
    log_s,
    entropy,
    count,
    width,
    factor,
    per_product,
    lowest: tl.constexpr,
    with_entropy: tl.constexpr,
    with_softcap: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    here = tl.program_id(1) * columns + tl.arange(0, columns)
    real = row < count
    inside = real[:, None] & (here < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + here[None, :]
    x = tl.load(z + place, mask=inside, other=0.0)
    d = (x - tl.load(top + row, mask=real, other=0.0)[:, None]) * factor
    d = tl.where(d < lowest, lowest, d)
    logp = d - tl.load(log_s + row, mask=real, other=0.0)[:, None]
    g = tl.load(grad_logprob + row, mask=real, other=0.0)[:, None]
    slope = g
    if with_entropy:
        grad_h = tl.load(grad_entropy + row, mask=real, other=0.0)[:, None]
        slope = g + grad_h * (logp + tl.load(entropy + row, mask=real, other=0.0)[:, None])
    label = tl.load(column + row, mask=real, other=-1)
    grad = tl.where(here[None, :] == label[:, None], g, 0.0) - tl.exp(logp) * slope
    if with_softcap:
        grad = grad * (1 - x * x)
    tl.store(out + place, grad * per_product, mask=inside)
