"""Triton kernels of the gradients of weights: an inner product for each entry of A.

A program takes EDGES entries whatever rows they are of, so that degrees do not matter.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from .triton_launch import accumulator, column_tile

EDGES = 32
"""Entries of a program."""


@triton.jit
def sddmm_kernel(
    rows, indices, y, x, out, entries, columns, SUM: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Y[i,:] . X[j,:] for EDGES entries (i, j)."""
    entry = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    here = entry < entries
    i = tl.load(rows + entry, mask=here, other=0).to(tl.int64)
    j = tl.load(indices + entry, mask=here, other=0).to(tl.int64)
    total = tl.zeros([EDGES, COLUMNS], SUM)
    first = 0
    while first < columns:
        column = first + tl.arange(0, COLUMNS)
        mask = here[:, None] & (column < columns)[None, :]
        left = tl.load(y + i[:, None] * columns + column[None, :], mask=mask, other=0.0).to(SUM)
        right = tl.load(x + j[:, None] * columns + column[None, :], mask=mask, other=0.0).to(SUM)
        total += left * right
        first += COLUMNS
    tl.store(out + entry, tl.sum(total, 1), mask=here)


@triton.jit
def edge_dots_kernel(
    rows, indices, grad, features, index, count, out, entries, columns, k,
    COUNTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """sum_t G[i, index[j,t]] V[j,t] for EDGES entries (i, j)."""
    entry = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    here = entry < entries
    i = tl.load(rows + entry, mask=here, other=0).to(tl.int64)
    j = tl.load(indices + entry, mask=here, other=0).to(tl.int64)
    slot = tl.arange(0, KEPT)
    mask = here[:, None] & (slot < k)[None, :]
    if COUNTED:
        mask = mask & (slot[None, :] < tl.load(count + j, mask=here, other=0)[:, None])
    place = j[:, None] * k + slot[None, :]
    column = tl.load(index + place, mask=mask, other=0).to(tl.int64)
    value = tl.load(features + place, mask=mask, other=0.0).to(SUM)
    gradient = tl.load(grad + i[:, None] * columns + column, mask=mask, other=0.0).to(SUM)
    tl.store(out + entry, tl.sum(value * gradient, 1), mask=here)


def sddmm(
    rows: Int[Tensor, " nnz"],
    indices: Int[Tensor, " nnz"],
    y: Float[Tensor, "n d"],
    x: Float[Tensor, "m d"],
    out: Float[Tensor, " nnz"],
) -> None:
    """Write Y[i,:] . X[j,:] for each entry (i, j) into ``out``."""
    entries, columns = len(indices), x.shape[1]
    if not entries:
        return
    sddmm_kernel[(triton.cdiv(entries, EDGES),)](
        rows,
        indices,
        y,
        x,
        out,
        entries,
        columns,
        SUM=accumulator(x),
        EDGES=EDGES,
        COLUMNS=column_tile(columns),
    )


def edge_dots(
    rows: Int[Tensor, " nnz"],
    indices: Int[Tensor, " nnz"],
    grad: Float[Tensor, "n d"],
    features: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    out: Float[Tensor, " nnz"],
) -> None:
    """Write sum_t G[i, index[j,t]] V[j,t] for each entry (i, j) into ``out``."""
    entries, k = len(indices), index.shape[1]
    if not entries:
        return
    edge_dots_kernel[(triton.cdiv(entries, EDGES),)](
        rows, indices, grad, features, index, count, out, entries, grad.shape[1], k,
        COUNTED=count is not None, SUM=accumulator(grad), EDGES=EDGES, KEPT=triton.next_power_of_2(k),
    )  # fmt: skip
