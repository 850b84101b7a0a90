"""The raw operators on a GPU, by Triton; their contracts are those of :mod:`reference`.

On a CPU they run under Triton's interpreter (``TRITON_INTERPRET=1`` before triton is imported), for tests.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tradeoff.engines.kernels import reference, triton_cbsr, triton_maxk, triton_sddmm, triton_spmm
from tradeoff.engines.kernels.errors import NanError
from tradeoff.engines.kernels.layout import BucketLayout
from tradeoff.engines.kernels.reference import cbsr_dense, cbsr_gather, order_entries, row_of_entry, transpose

__all__ = [
    "cbsr_dense",
    "cbsr_edge_dots",
    "cbsr_gather",
    "cbsr_sddmm",
    "cbsr_spmm",
    "maxk_select",
    "order_entries",
    "sddmm",
    "spmm",
    "spmm_buckets",
    "transpose",
]

_transposes: WeakIdKeyDictionary = WeakIdKeyDictionary()


def spmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n d"]:
    """Y[i,:] = sum_j a_ij X[j,:], a program a row; see :func:`reference.spmm`."""
    y = x.new_empty(len(indptr) - 1, x.shape[1]) if out is None else out
    triton_spmm.spmm_rows(indptr, indices, values, x, y)
    return y


def spmm_buckets(
    layout: BucketLayout,
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n d"]:
    """A X, a program a block of rows of equal degree; see :func:`reference.spmm_buckets`."""
    y = x.new_empty(len(layout.order), x.shape[1]) if out is None else out
    triton_spmm.spmm_buckets(layout, values, x, y)
    return y


def maxk_select(
    x: Float[Tensor, "n d"], k: int, clip: bool, nan_policy: str
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Int[Tensor, " rows"]]:
    """The k largest signed values of each row; see :func:`reference.maxk_select`."""
    if nan_policy == "raise" and bool((missing := x.isnan().any(1)).any()):
        raise NanError(int(missing.nonzero()[0]))
    values = x.new_empty(len(x), k)
    index = torch.empty((len(x), k), dtype=reference.index_dtype(x.shape[1]), device=x.device)
    count = torch.empty(len(x) if clip else 0, dtype=torch.int32, device=x.device)
    triton_maxk.maxk_select(x, k, clip, values, index, count)
    return values, index, count


def cbsr_spmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    features: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    num_columns: int,
    deterministic: bool,
) -> Float[Tensor, "n d"]:
    """A times a compressed matrix: by bitmaps if ``deterministic``, else by atomic additions."""
    rows = len(indptr) - 1
    if deterministic:
        y = features.new_empty(rows, num_columns)
        words, before = triton_cbsr.bitmap(index, count, num_columns)
        triton_cbsr.spmm_bitmap(indptr, indices, values, features, words, before, y)
        return y
    wide = torch.zeros((rows, num_columns), dtype=_wide(features), device=features.device)
    triton_cbsr.spmm_atomic(row_of_entry(indptr, len(indices)), indices, values, features, index, count, wide)
    return wide.to(features.dtype)


def cbsr_sddmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    grad: Float[Tensor, "n d"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    column_offsets: Int[Tensor, " m+1"] | None,
    deterministic: bool,
) -> Float[Tensor, "m k"]:
    """dV[j,t] = sum_i a_ij G[i, index[j,t]]: over A transposed if ``deterministic``, else atomically."""
    if deterministic:
        offsets, rows, perm = _transpose_once(indptr, indices, len(index))
        weights = None if values is None else values[perm]
        out = grad.new_empty(index.shape)
        triton_cbsr.sddmm_pull(offsets, rows, weights, grad, index, count, out)
        return out
    wide = torch.zeros(index.shape, dtype=_wide(grad), device=grad.device)
    triton_cbsr.sddmm_push(indptr, indices, values, grad, index, count, wide)
    return wide.to(grad.dtype)


def sddmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    y: Float[Tensor, "n d"],
    x: Float[Tensor, "m d"],
) -> Float[Tensor, " nnz"]:
    """For each entry e = (i, j) of A: the inner product of Y[i,:] and X[j,:]; see :func:`reference.sddmm`."""
    out = torch.empty(len(indices), dtype=_wide(x), device=x.device)
    triton_sddmm.sddmm(row_of_entry(indptr, len(indices)), indices, y, x, out)
    return out


def cbsr_edge_dots(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    grad: Float[Tensor, "n d"],
    features: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
) -> Float[Tensor, " nnz"]:
    """For each entry e = (i, j) of A: sum_t G[i, index[j,t]] features[j,t]."""
    out = torch.empty(len(indices), dtype=_wide(grad), device=grad.device)
    triton_sddmm.edge_dots(row_of_entry(indptr, len(indices)), indices, grad, features, index, count, out)
    return out


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _transpose_once(indptr: Tensor, indices: Tensor, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of a matrix, kept as long as its ``indices`` live: backward passes meet it again."""
    known: tuple[Tensor, Tensor, Tensor] | None = None
    if indices in _transposes:
        known = _transposes[indices]
    if known is None or len(known[0]) != num_columns + 1:
        known = _transposes[indices] = transpose(indptr, indices, num_columns)
    return known
