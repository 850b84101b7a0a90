"""Triton kernels of products with compressed matrices (CBSR), after Peng et al., MaxK-GNN, ASPLOS 2024.

Triton cannot scatter into shared memory, so the forward product exists twice. With atomics, each program adds
the stored entries of some neighbors to its row of the result, in the L2 cache; sums depend on timing.
Without, the columns of a compressed row are a bitmap (a word for each 32 columns, and how many bits lie
before it): a lane owns a column, finds its entry by counting bits, and keeps its sum in a register. The
backward product adds into the compressed gradient with atomics, a row of G read once and spread with
``tl.gather``; or, without, sums rows of G over the transpose of A and picks the stored columns once at the
end.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.kernels.triton_launch import accumulator, column_tile

EDGES = 16
"""Neighbors a step."""


@triton.jit
def scatter_kernel(
    rows, indices, values, features, index, count, out, entries, columns, k,
    WEIGHTED: tl.constexpr, COUNTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Add EDGES entries of A, of any rows, atomically. The result must be 0 before, of type SUM."""
    entry = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    here = entry < entries
    row = tl.load(rows + entry, mask=here, other=0).to(tl.int64)
    neighbor = tl.load(indices + entry, mask=here, other=0).to(tl.int64)
    slot = tl.arange(0, KEPT)
    mask = here[:, None] & (slot < k)[None, :]
    if COUNTED:
        mask = mask & (slot[None, :] < tl.load(count + neighbor, mask=here, other=0)[:, None])
    place = neighbor[:, None] * k + slot[None, :]
    column = tl.load(index + place, mask=mask, other=0).to(tl.int64)
    value = tl.load(features + place, mask=mask, other=0.0).to(SUM)
    if WEIGHTED:
        value *= tl.load(values + entry, mask=here, other=0.0).to(SUM)[:, None]
    tl.atomic_add(out + row[:, None] * columns + column, value, mask=mask)


@triton.jit
def bitmap_kernel(
    index, count, words, before, rows, num_words, k,
    COUNTED: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """The columns of ROWS compressed rows as bits, and the bits before each word."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    word = tl.arange(0, WORDS)
    kept = tl.full([ROWS], 0, tl.int32) + k
    if COUNTED:
        kept = tl.load(count + row, mask=inside, other=0)
    bits = tl.zeros([ROWS, WORDS], tl.int32)
    earlier = tl.zeros([ROWS, WORDS], tl.int32)
    slot = 0
    while slot < k:
        valid = inside & (slot < kept)
        column = tl.load(index + row * k + slot, mask=valid, other=0).to(tl.int32)
        mine = (column >> 5)[:, None] == word[None, :]
        bit = (tl.full([ROWS], 1, tl.int32) << (column & 31))[:, None]
        bits = tl.where(valid[:, None] & mine, bits | bit, bits)
        earlier += (valid[:, None] & ((column >> 5)[:, None] < word[None, :])).to(tl.int32)
        slot += 1
    target = row[:, None] * num_words + word[None, :]
    mask = inside[:, None] & (word < num_words)[None, :]
    tl.store(words + target, bits, mask=mask)
    tl.store(before + target, earlier.to(before.dtype.element_ty), mask=mask)


@triton.jit
def count_bits(word):
    """The set bits of unsigned 32-bit words, by shifts and masks: the interpreter has no device libraries."""
    pairs = word - ((word >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    halves = eights + (eights >> 8)
    return (halves + (halves >> 16)) & 0x3F


@triton.jit
def bitmap_spmm_kernel(
    indptr, indices, values, features, words, before, out, columns, num_words, k,
    WEIGHTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of the result times COLUMNS columns: a lane looks its column up in the neighbors' bitmaps."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    lane = (column & 31).to(tl.uint32)
    below = (tl.full([COLUMNS], 1, tl.uint32) << lane) - 1
    at = tl.load(indptr + row)
    end = tl.load(indptr + row + 1)
    total = tl.zeros([EDGES, COLUMNS], SUM)
    while at < end:
        entry = at + tl.arange(0, EDGES)
        here = entry < end
        neighbor = tl.load(indices + entry, mask=here, other=0).to(tl.int64)
        mask = here[:, None] & inside[None, :]
        place = neighbor[:, None] * num_words + (column >> 5)[None, :]
        word = tl.load(words + place, mask=mask, other=0).to(tl.uint32, bitcast=True)
        rank = tl.load(before + place, mask=mask, other=0).to(tl.int32)
        rank += count_bits(word & below[None, :]).to(tl.int32)
        stored = mask & (((word >> lane[None, :]) & 1) != 0)
        value = tl.load(features + neighbor[:, None] * k + rank, mask=stored, other=0.0).to(SUM)
        if WEIGHTED:
            value *= tl.load(values + entry, mask=here, other=0.0).to(SUM)[:, None]
        total += tl.where(stored, value, 0.0)
        at += EDGES
    y = tl.sum(total, 0)
    tl.store(out + row * columns + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def push_kernel(
    indptr, indices, values, grad, index, count, out, columns, k,
    WEIGHTED: tl.constexpr, COUNTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr,
    COLUMNS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Add a_ij G[i, index[j,:]] for each neighbor j of row i, atomically; the result must be 0 before."""
    row = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, COLUMNS)
    gradient = tl.load(grad + row * columns + every, mask=every < columns, other=0.0).to(SUM)
    slot = tl.arange(0, KEPT)
    at = tl.load(indptr + row)
    end = tl.load(indptr + row + 1)
    while at < end:
        entry = at + tl.arange(0, EDGES)
        here = entry < end
        neighbor = tl.load(indices + entry, mask=here, other=0).to(tl.int64)
        mask = here[:, None] & (slot < k)[None, :]
        if COUNTED:
            mask = mask & (slot[None, :] < tl.load(count + neighbor, mask=here, other=0)[:, None])
        place = neighbor[:, None] * k + slot[None, :]
        column = tl.load(index + place, mask=mask, other=0).to(tl.int32)
        picked = tl.gather(gradient, tl.reshape(column, [EDGES * KEPT]), 0)
        value = tl.reshape(picked, [EDGES, KEPT])
        if WEIGHTED:
            value *= tl.load(values + entry, mask=here, other=0.0).to(SUM)[:, None]
        tl.atomic_add(out + place, value, mask=mask)
        at += EDGES


@triton.jit
def pull_kernel(
    offsets, rows, values, grad, index, count, out, columns, k,
    WEIGHTED: tl.constexpr, COUNTED: tl.constexpr, SUM: tl.constexpr, EDGES: tl.constexpr,
    COLUMNS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """The gradient of compressed row j: the sum of a_ij G[i,:] over column j of A, at the stored columns."""
    j = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, COLUMNS)
    at = tl.load(offsets + j)
    end = tl.load(offsets + j + 1)
    total = tl.zeros([EDGES, COLUMNS], SUM)
    while at < end:
        entry = at + tl.arange(0, EDGES)
        here = entry < end
        row = tl.load(rows + entry, mask=here, other=0).to(tl.int64)
        gradient = tl.load(
            grad + row[:, None] * columns + every[None, :],
            mask=here[:, None] & (every < columns)[None, :],
            other=0.0,
        ).to(SUM)
        if WEIGHTED:
            gradient *= tl.load(values + entry, mask=here, other=0.0).to(SUM)[:, None]
        total += gradient
        at += EDGES
    slot = tl.arange(0, KEPT)
    column = tl.load(index + j * k + slot, mask=slot < k, other=0).to(tl.int32)
    picked = tl.gather(tl.sum(total, 0), column, 0)
    if COUNTED:
        picked = tl.where(slot < tl.load(count + j), picked, 0.0)
    tl.store(out + j * k + slot, picked.to(out.dtype.element_ty), mask=slot < k)


def spmm_atomic(
    rows: Int[Tensor, " nnz"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    features: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    out: Float[Tensor, "n d"],
) -> None:
    """Add A times a compressed matrix to ``out``, of the type of the sums; ``rows`` are its entries'."""
    entries, k = len(indices), index.shape[1]
    if not (entries and k):
        return
    scatter_kernel[(triton.cdiv(entries, EDGES),)](
        rows, indices, values, features, index, count, out, entries, out.shape[1], k,
        WEIGHTED=values is not None, COUNTED=count is not None, SUM=accumulator(features), EDGES=EDGES,
        KEPT=triton.next_power_of_2(k),
    )  # fmt: skip


def bitmap(
    index: Int[Tensor, "m k"], count: Int[Tensor, " m"] | None, columns: int
) -> tuple[Int[Tensor, "m words"], Int[Tensor, "m words"]]:
    """The columns of a compressed matrix as bits (32 a word), and how many lie before each word."""
    (rows, k), num_words = index.shape, triton.cdiv(columns, 32)
    words = torch.empty((rows, num_words), dtype=torch.int32, device=index.device)
    before = torch.empty_like(words, dtype=torch.uint8 if k <= 255 else torch.int16)
    if words.numel():
        padded = triton.next_power_of_2(num_words)
        together = max(1, min(32, 4096 // padded))
        bitmap_kernel[(triton.cdiv(rows, together),)](
            index, count, words, before, rows, num_words, k,
            COUNTED=count is not None, ROWS=together, WORDS=padded,
        )  # fmt: skip
    return words, before


def spmm_bitmap(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    features: Float[Tensor, "m k"],
    words: Int[Tensor, "m words"],
    before: Int[Tensor, "m words"],
    out: Float[Tensor, "n d"],
) -> None:
    """Write A times a compressed matrix, its columns as bitmaps, into ``out``; the same in every run."""
    rows, columns = out.shape
    if not out.numel():
        return
    tile = column_tile(columns)
    bitmap_spmm_kernel[(rows, triton.cdiv(columns, tile))](
        indptr, indices, values, features, words, before, out, columns, words.shape[1], features.shape[1],
        WEIGHTED=values is not None, SUM=accumulator(features), EDGES=EDGES, COLUMNS=tile,
    )  # fmt: skip


def sddmm_push(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    grad: Float[Tensor, "n d"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    out: Float[Tensor, "m k"],
) -> None:
    """Add sum_i a_ij G[i, index[j,t]] to ``out``, whose type must be that of the sums."""
    (rows, columns), k = grad.shape, index.shape[1]
    if not (grad.numel() and len(indices) and k):
        return
    push_kernel[(rows,)](
        indptr, indices, values, grad, index, count, out, columns, k,
        WEIGHTED=values is not None, COUNTED=count is not None, SUM=accumulator(grad), EDGES=EDGES,
        COLUMNS=triton.next_power_of_2(columns), KEPT=triton.next_power_of_2(k),
    )  # fmt: skip


def sddmm_pull(
    offsets: Int[Tensor, " m+1"],
    rows: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    grad: Float[Tensor, "n d"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    out: Float[Tensor, "m k"],
) -> None:
    """Write sum_i a_ij G[i, index[j,t]] into ``out`` from A transposed; the same in every run."""
    (compressed, k), columns = index.shape, grad.shape[1]
    if not out.numel():
        return
    width = triton.next_power_of_2(columns)
    pull_kernel[(compressed,)](
        offsets, rows, values, grad, index, count, out, columns, k,
        WEIGHTED=values is not None, COUNTED=count is not None, SUM=accumulator(grad),
        EDGES=max(1, min(EDGES, 4096 // width)), COLUMNS=width, KEPT=triton.next_power_of_2(k),
        num_warps=4 if width <= 4096 else 16,
    )  # fmt: skip
