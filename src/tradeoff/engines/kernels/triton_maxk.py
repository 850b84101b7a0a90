"""Triton kernel that selects the k largest values of each row.

Floats become integers of the same order (the lower bits of negative ones are flipped), and the k-th largest
is built bit by bit from the top: a bit stays if at least k keys are no smaller with it. That is exact, takes
as many steps as a key has bits, and needs no sorting; ties go to the lowest column. MaxK: Peng et al., ASPLOS
2024; clipped to positive values it is the D-ReLU of Luo et al., DR-CircuitGNN, 2025.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_TILE_BYTES = 8192  # of a program's rows, as keys: what its registers hold


@triton.jit
def maxk_kernel(
    x, values, index, count, rows, columns, k,
    KEY: tl.constexpr, BITS: tl.constexpr, CLIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    KEPT: tl.constexpr,
):  # fmt: skip
    """ROWS rows at once; KEY is the integer type of BITS bits, KEPT the padded k."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(x + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    if BITS == 64:
        bits = value.to(tl.float64).to(KEY, bitcast=True)
    else:
        bits = value.to(tl.float32).to(KEY, bitcast=True)
    smallest = tl.full([ROWS], 1, KEY) << (BITS - 1)
    largest = ~smallest
    key = bits ^ ((bits >> (BITS - 1)) & largest[:, None])
    key = tl.where(value == 0.0, 0, key)  # -0.0 is no smaller than 0.0
    key = tl.where(value != value, largest[:, None], key)  # NaN is above all numbers
    # The k-th largest key: the largest bound that at least k keys reach.
    reached = tl.sum((inside & (key >= 0)).to(tl.int32), 1) >= k
    bound = tl.where(reached, 0, smallest)
    bit = BITS - 2
    while bit >= 0:
        higher = bound + (tl.full([ROWS], 1, KEY) << bit)
        reached = tl.sum((inside & (key >= higher[:, None])).to(tl.int32), 1) >= k
        bound = tl.where(reached, higher, bound)
        bit -= 1
    above = inside & (key > bound[:, None])
    tied = inside & (key == bound[:, None])
    free = k - tl.sum(above.to(tl.int32), 1)
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), 1) <= free[:, None]))
    if CLIP:
        chosen = chosen & (key > 0)
    place = tl.cumsum(chosen.to(tl.int32), 1) - 1
    target = row[:, None] * k + place
    tl.store(values + target, value, mask=chosen)
    tl.store(
        index + target,
        tl.broadcast_to(column[None, :], [ROWS, COLUMNS]).to(index.dtype.element_ty),
        mask=chosen,
    )
    if CLIP:
        kept = tl.sum(chosen.to(tl.int32), 1)
        last = tl.max(tl.where(chosen, column[None, :], 0), 1)
        slot = tl.arange(0, KEPT)
        beyond = (row < rows)[:, None] & (slot[None, :] >= kept[:, None]) & (slot < k)[None, :]
        target = row[:, None] * k + slot[None, :]
        tl.store(values + target, tl.zeros([ROWS, KEPT], values.dtype.element_ty), mask=beyond)
        tl.store(
            index + target,
            tl.broadcast_to(last[:, None], [ROWS, KEPT]).to(index.dtype.element_ty),
            mask=beyond,
        )
        tl.store(count + row, kept, mask=row < rows)


def maxk_select(
    x: Float[Tensor, "n d"],
    k: int,
    clip: bool,
    values: Float[Tensor, "n k"],
    index: Int[Tensor, "n k"],
    count: Int[Tensor, " rows"],
) -> None:
    """Write the k largest of each row, columns ascending; with ``clip`` positive ones, and counts."""
    rows, columns = x.shape
    if not values.numel():
        count.zero_()
        return
    width = triton.next_power_of_2(columns)
    double = x.dtype == torch.float64
    together = max(1, min(16, _TILE_BYTES // (width * (8 if double else 4))))
    maxk_kernel[(triton.cdiv(rows, together),)](
        x, values, index, count, rows, columns, k,
        KEY=tl.int64 if double else tl.int32, BITS=64 if double else 32, CLIP=clip, ROWS=together,
        COLUMNS=width, KEPT=triton.next_power_of_2(k),
    )  # fmt: skip
