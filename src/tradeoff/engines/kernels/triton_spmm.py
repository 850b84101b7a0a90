"""Triton kernels of A X: row by row, and by degree-bucketed blocks (Xie et al., Accel-GCN, ICCAD 2023).

A program computes a tile of the result: one row, or the rows of one block of equal degree, times some
columns. It reads a few entries of A a step and the same columns of the rows of X that they name, in
contiguous runs, and keeps the sums in registers. Where rows of a block have equal degree the work of a step
is a rectangle, so that no program waits for its longest row, and the reduction inside a row needs no atomics.
Segments of long rows meet in a scratch array and are added in their order, which makes results independent of
timing.

Loops are ``while`` loops because bounds come from memory: the interpreter of Triton cannot count such a
``for`` with every NumPy.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.kernels.layout import BucketLayout
from tradeoff.engines.kernels.triton_launch import Tiles, accumulator, column_tile, launch_tuned


@triton.jit
def _sum_of_entries(
    at, end, indices, values, x, column, inside, columns,
    WEIGHTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Entries [at, end) of A times their rows of X, in COLUMNS columns, EDGES entries a step."""
    total = tl.zeros([EDGES, COLUMNS], SUM)
    while at < end:
        entry = at + tl.arange(0, EDGES)
        here = entry < end
        neighbor = tl.load(indices + entry, mask=here, other=0).to(tl.int64)
        features = tl.load(
            x + neighbor[:, None] * columns + column[None, :], mask=here[:, None] & inside[None, :], other=0.0
        ).to(SUM)
        if WEIGHTED:
            features *= tl.load(values + entry, mask=here, other=0.0).to(SUM)[:, None]
        total += features
        at += EDGES
    return tl.sum(total, 0)


@triton.jit
def rows_kernel(
    indptr, indices, values, x, out, columns,
    WEIGHTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of the result times COLUMNS columns, EDGES neighbors a step."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    at = tl.load(indptr + row)
    end = tl.load(indptr + row + 1)
    y = _sum_of_entries(at, end, indices, values, x, column, inside, columns, WEIGHTED, SUM, EDGES, COLUMNS)
    tl.store(out + row * columns + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def blocks_kernel(
    blocks, first_block, order, indices, values, x, out, columns,
    WEIGHTED: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """A block of at most ROWS rows of one degree times COLUMNS columns, EDGES neighbors (of all rows) a step.

    WIDTH is the class of ``columns`` by which tiles are tuned.
    """
    STEP: tl.constexpr = EDGES // ROWS
    record = blocks + (first_block + tl.program_id(0)).to(tl.int64) * 4
    degree = tl.load(record).to(tl.int64)
    first_row = tl.load(record + 1).to(tl.int64)
    first_entry = tl.load(record + 2).to(tl.int64)
    rows = (tl.load(record + 3) & 0xFFFF).to(tl.int32)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    row = tl.arange(0, ROWS)
    step = tl.arange(0, STEP)
    entry = (first_entry + row * degree)[:, None] + step[None, :]
    total = tl.zeros([ROWS, STEP, COLUMNS], SUM)
    at = degree * 0
    while at < degree:
        here = (row < rows)[:, None] & (at + step < degree)[None, :]
        neighbor = tl.load(indices + entry + at, mask=here, other=0).to(tl.int64)
        features = tl.load(
            x + neighbor[:, :, None] * columns + column[None, None, :],
            mask=here[:, :, None] & inside[None, None, :],
            other=0.0,
        ).to(SUM)
        if WEIGHTED:
            features *= tl.load(values + entry + at, mask=here, other=0.0).to(SUM)[:, :, None]
        total += features
        at += STEP
    y = tl.sum(total, 1)
    target = tl.load(order + first_row + row, mask=row < rows, other=0).to(tl.int64)
    tl.store(
        out + target[:, None] * columns + column[None, :],
        y.to(out.dtype.element_ty),
        mask=(row < rows)[:, None] & inside[None, :],
    )


@triton.jit
def segments_kernel(
    blocks, first_block, order, indices, values, x, out, columns,
    WEIGHTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
    ATOMIC: tl.constexpr,
):  # fmt: skip
    """A segment of a long row times COLUMNS columns: into a row of its own, or added to the result."""
    segment = tl.program_id(0).to(tl.int64)
    record = blocks + (first_block + segment) * 4
    at = tl.load(record + 2).to(tl.int64)
    end = at + tl.load(record + 3).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    y = _sum_of_entries(at, end, indices, values, x, column, inside, columns, WEIGHTED, SUM, EDGES, COLUMNS)
    if ATOMIC:
        row = tl.load(order + tl.load(record + 1)).to(tl.int64)
        tl.atomic_add(out + row * columns + column, y, mask=inside)
    else:
        tl.store(out + segment * columns + column, y, mask=inside)


@triton.jit
def join_kernel(bounds, rows, parts, out, columns, SUM: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of a long row's segments, first to last."""
    long_row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    segment = tl.load(bounds + long_row)
    end = tl.load(bounds + long_row + 1)
    total = tl.zeros([COLUMNS], SUM)
    while segment < end:
        total += tl.load(parts + segment * columns + column, mask=inside, other=0.0)
        segment += 1
    row = tl.load(rows + long_row).to(tl.int64)
    tl.store(out + row * columns + column, total.to(out.dtype.element_ty), mask=inside)


TILES = [
    Tiles(edges, columns, warps)
    for edges in (16, 32, 64)
    for columns in (32, 64, 128)
    for warps in (1, 2, 4, 8)
]
"""What is tried for a class of blocks on a GPU: neighbors a step, columns of a program, warps."""


def spmm_rows(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"],
) -> None:
    """Write A X into ``out``, one program a row and tile of columns."""
    rows, columns = out.shape
    if not out.numel():
        return
    tile = column_tile(columns)
    rows_kernel[(rows, triton.cdiv(columns, tile))](
        indptr, indices, values, x, out, columns,
        WEIGHTED=values is not None, SUM=accumulator(x), EDGES=16, COLUMNS=tile,
    )  # fmt: skip


def spmm_buckets(
    layout: BucketLayout,
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"],
    *,
    atomic: bool = False,
) -> None:
    """Write A X into ``out`` by blocks of equal degree.

    Args:
        layout: the matrix with its rows sorted by degree, and its blocks.
        values: in that order.
        x: features.
        out: where the result goes; its rows are in their own order.
        atomic: add segments of long rows as they come, so that sums of such rows vary from run to run, in
            place of joining them in order.
    """
    if not out.numel():
        return
    partition = layout.partition
    columns = x.shape[1]
    shared: dict[str, Any] = {"WEIGHTED": values is not None, "SUM": accumulator(x)}
    if partition.empty_rows:
        out.index_fill_(0, layout.empty_rows, 0)
    for first, count, rows in layout.groups:
        launch_tuned(
            blocks_kernel, TILES, count, columns, triton.next_power_of_2(rows),
            (partition.blocks, first, partition.order, layout.indices, values, x, out, columns), shared,
        )  # fmt: skip
    if partition.segments:
        _add_segments(layout, values, x, out, shared, atomic)


def _add_segments(
    layout: BucketLayout,
    values: Tensor | None,
    x: Tensor,
    out: Tensor,
    shared: dict[str, Any],
    atomic: bool,
) -> None:
    partition = layout.partition
    columns = x.shape[1]
    tile = column_tile(columns)
    tiles = triton.cdiv(columns, tile)
    first = len(partition.blocks) - partition.segments
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if atomic:
        # Atomic additions want the type of the sums; for narrower results they go to a copy of these rows.
        parts = out if out.dtype == wide else out.new_zeros(out.shape, dtype=wide)
        parts.index_fill_(0, layout.long_rows, 0)
    else:
        parts = x.new_empty((partition.segments, columns), dtype=wide)
    segments_kernel[(partition.segments, tiles)](
        partition.blocks, first, partition.order, layout.indices, values, x, parts, columns,
        EDGES=32, COLUMNS=tile, ATOMIC=atomic, **shared,
    )  # fmt: skip
    if not atomic:
        join_kernel[(len(layout.long_rows), tiles)](
            layout.segment_bounds, layout.long_rows, parts, out, columns, SUM=shared["SUM"], COLUMNS=tile
        )
    elif parts is not out:
        out.index_copy_(0, layout.long_rows, parts.index_select(0, layout.long_rows).to(out.dtype))
