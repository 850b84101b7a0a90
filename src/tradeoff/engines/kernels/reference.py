"""The raw operators in plain torch: the oracle of every test, and the fallback without a compiler.

This module also *defines* the raw interface. A backend is a module with functions of these names and
signatures (:mod:`native_ops` for C++, ``triton_ops`` for GPUs); the operators of :mod:`operators` call them.
Arguments are checked before they come here: all tensors contiguous and on one device, ``indptr`` int64
[n+1], ``indices`` int32 (int64 if there are more than 2^31 - 1 columns) [nnz], columns ascending within a
row, ``values`` [nnz] or None for all ones, in the dtype in which sums are taken: float64 for float64
features, else float32, also where the features are float16 or bfloat16. Results have the dtype of the
features; gradients of weights that of the weights.

Notation: A is n x m with row pointers ``indptr``; a compressed matrix (CBSR) is m x d with k entries in each
row, ``features`` [m, k] at the ascending columns ``index`` [m, k] (uint8 or int16); ``count`` int32 [m], or
None if all k entries of each row count. Entries beyond the count are 0 and repeat the last index.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.kernels.errors import NanError

if TYPE_CHECKING:
    from tradeoff.engines.kernels.layout import BucketLayout

_CHUNK_ELEMENTS = 1 << 24
"""Most elements of a temporary of the gathering operators."""


def spmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n d"]:
    """Y[i,:] = sum_j a_ij X[j,:]. Rows without neighbors are 0. ``out`` is written and returned."""
    wide = _widened(x)
    if not indices.numel() or not x.shape[1]:
        y = wide.new_zeros(indptr.numel() - 1, x.shape[1])
    else:
        y = _matrix(indptr, indices, _ones_if_none(values, indices, wide), x.shape[0]) @ wide
    return _narrowed(y, x, out)


def spmm_buckets(
    layout: BucketLayout,
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n d"]:
    """A X of the matrix that a layout holds with its rows sorted; ``values`` are in the layout's order."""
    y = spmm(layout.indptr, layout.indices, values, x)
    out = torch.empty_like(y) if out is None else out
    return out.index_copy_(0, layout.order, y)


def maxk_select(
    x: Float[Tensor, "n d"], k: int, clip: bool, nan_policy: str
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Int[Tensor, " rows"]]:
    """The k largest signed values of each row, ties to the lowest column: values, columns ascending, counts.

    With ``clip`` only positive values are kept, first in the row, and counts is int32 [n]; else it is empty.
    ``nan_policy``: ``raise``, or ``largest`` to rank NaN above +Inf.

    Raises:
        NanError: a row has NaN and the policy is ``raise``.
    """
    missing = x.isnan()
    if nan_policy == "raise" and bool(missing.any()):
        raise NanError(int(missing.any(1).nonzero()[0]))
    # A stable descending sort ranks equal values (0.0 and -0.0 are) by column, and NaN first.
    order = torch.sort(x, dim=1, descending=True, stable=True).indices[:, :k]
    index = order.sort(dim=1).values
    values = x.gather(1, index)
    counts = torch.empty(0, dtype=torch.int32, device=x.device)
    if clip:
        # Positive (or NaN) entries move to the front and keep their order; the rest becomes padding.
        kept = ~(values <= 0)
        counts = kept.sum(1, dtype=torch.int32)
        front = torch.sort(kept, dim=1, descending=True, stable=True).indices
        last = (counts.long() - 1).clamp(min=0)[:, None]
        valid = torch.arange(k, device=x.device)[None] < counts[:, None]
        values = torch.where(valid, values.gather(1, front), 0)
        index = index.gather(1, front)
        index = torch.where(valid, index, index.gather(1, last))
        index = torch.where(counts[:, None] > 0, index, 0)
    return values, index.to(index_dtype(x.shape[1])), counts


def cbsr_dense(
    features: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    num_columns: int,
) -> Float[Tensor, "m d"]:
    """The dense m x d matrix of a compressed one; entries beyond the count are left out."""
    dense = features.new_zeros(features.shape[0], num_columns)
    return dense.scatter_add_(1, index.long(), _counted(features, count))


def cbsr_gather(
    dense: Float[Tensor, "m d"], index: Int[Tensor, "m k"], count: Int[Tensor, " m"] | None
) -> Float[Tensor, "m k"]:
    """``dense`` at the columns of a compressed matrix, 0 beyond the count; adjoint of :func:`cbsr_dense`."""
    return _counted(dense.gather(1, index.long()), count)


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
    """Y[i, index[j,t]] += a_ij features[j,t]: A times a compressed matrix.

    ``deterministic`` asks a backend whose sums depend on timing (atomic additions) for one whose sums do not.
    """
    dense = cbsr_dense(features, index, count, num_columns)
    return spmm(indptr, indices, values, dense)


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
    """dV[j,t] = sum_i a_ij G[i, index[j,t]], 0 beyond the count.

    ``column_offsets`` are the row pointers of A transposed, if known: they say how entries spread over
    columns.
    """
    wide = _widened(grad)
    if not indices.numel() or not grad.shape[1]:
        product = wide.new_zeros(index.shape[0], grad.shape[1])
    else:
        swallow_beta_warning()
        size = (index.shape[0], indptr.numel() - 1)
        weights = _ones_if_none(values, indices, wide)
        # The arrays that are A by rows are its transpose by columns.
        product = (
            torch.sparse_csc_tensor(indptr, indices.long(), weights, size, check_invariants=False) @ wide
        )
    return cbsr_gather(product, index, count).to(grad.dtype)


def sddmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    y: Float[Tensor, "n d"],
    x: Float[Tensor, "m d"],
) -> Float[Tensor, " nnz"]:
    """For each entry e = (i, j) of A: the inner product of Y[i,:] and X[j,:], in the dtype of sums."""
    rows = row_of_entry(indptr, indices.numel())
    out = torch.empty(indices.numel(), dtype=_widened(x[:0]).dtype, device=x.device)
    step = max(1, _CHUNK_ELEMENTS // max(1, x.shape[1]))
    for begin in range(0, indices.numel(), step):
        part = slice(begin, begin + step)
        left, right = _widened(y[rows[part]]), _widened(x[indices[part].long()])
        torch.sum(left * right, dim=1, out=out[part])
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
    return sddmm(indptr, indices, grad, cbsr_dense(features, index, count, grad.shape[1]))


def transpose(
    indptr: Int[Tensor, " n+1"], indices: Int[Tensor, " nnz"], num_columns: int
) -> tuple[Int[Tensor, " m+1"], Int[Tensor, " nnz"], Int[Tensor, " nnz"]]:
    """Row pointers and columns of A transposed, and ``perm`` int64 with values_T = values[perm]."""
    perm = torch.argsort(indices, stable=True)
    rows = row_of_entry(indptr, indices.numel())
    counts = torch.bincount(indices, minlength=num_columns)
    offsets = torch.zeros(num_columns + 1, dtype=torch.int64, device=indices.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets, rows[perm].to(column_dtype(indptr.numel() - 1)), perm


def order_entries(
    row: Int[Tensor, " nnz"], column: Int[Tensor, " nnz"], num_rows: int, num_columns: int
) -> Int[Tensor, " nnz"]:
    """The stable order (int64) that sorts entries by row, then by column; both int64 and in range."""
    by_column = torch.argsort(column, stable=True)
    return by_column[torch.argsort(row[by_column], stable=True)]


def row_of_entry(indptr: Int[Tensor, " n+1"], nnz: int) -> Int[Tensor, " nnz"]:
    """The row of each entry, int64."""
    rows = torch.arange(indptr.numel() - 1, device=indptr.device)
    return torch.repeat_interleave(rows, indptr.diff(), output_size=nnz)


def index_dtype(num_columns: int) -> torch.dtype:
    """Of the columns of a compressed matrix: uint8 up to 256 columns, else int16."""
    return torch.uint8 if num_columns <= 256 else torch.int16


def column_dtype(num_columns: int) -> torch.dtype:
    """Of ``indices``: int32 while all columns fit."""
    return torch.int32 if num_columns <= 2**31 - 1 else torch.int64


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _narrowed(y: Tensor, like: Tensor, out: Tensor | None) -> Tensor:
    return y.to(like.dtype) if out is None else out.copy_(y)


def _ones_if_none(values: Tensor | None, indices: Tensor, like: Tensor) -> Tensor:
    return like.new_ones(indices.numel()) if values is None else values


def _matrix(indptr: Tensor, indices: Tensor, values: Tensor, num_columns: int) -> Tensor:
    swallow_beta_warning()
    size = (indptr.numel() - 1, num_columns)
    return torch.sparse_csr_tensor(indptr, indices.long(), values, size, check_invariants=False)


@functools.cache
def swallow_beta_warning() -> None:
    """torch says once in each process that sparse CSR is in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(empty, empty[:0], torch.zeros(0), (0, 1), check_invariants=False)


def _counted(features: Tensor, count: Tensor | None) -> Tensor:
    if count is None:
        return features
    valid = torch.arange(features.shape[1], device=features.device)[None] < count[:, None]
    return torch.where(valid, features, 0)
