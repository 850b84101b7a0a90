"""The raw operators in C++: multithreaded, with AVX2 or AVX-512 where they are; see :mod:`reference`.

Tensors are handed over as they are, and results written into new ones, without the lock of the interpreter.
Products with 64-bit columns, of which there are then more than 2^31 - 1, are left to the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.kernels import reference
from tradeoff.engines.kernels.backends import huge_pages_wanted, native_kernels
from tradeoff.engines.kernels.errors import NanError
from tradeoff.engines.kernels.reference import column_dtype, index_dtype

if TYPE_CHECKING:
    from tradeoff.engines.kernels.layout import BucketLayout

_HUGE_BYTES = 4 << 20
"""From this size on results ask for huge pages: the size from which NumPy does."""


def spmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n d"]:
    """Y[i,:] = sum_j a_ij X[j,:]."""
    if indices.dtype != torch.int32:
        return reference.spmm(indptr, indices, values, x, out)
    return _product(indptr, indices, values, x, out, None)


def spmm_buckets(
    layout: BucketLayout,
    values: Float[Tensor, " nnz"] | None,
    x: Float[Tensor, "m d"],
    out: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "n d"]:
    """A X with rows multiplied in the order of the layout, each written to its own place."""
    if layout.indices.dtype != torch.int32:
        return reference.spmm_buckets(layout, values, x, out)
    return _product(layout.indptr, layout.indices, values, x, out, layout.partition.order)


def maxk_select(
    x: Float[Tensor, "n d"], k: int, clip: bool, nan_policy: str
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Int[Tensor, " rows"]]:
    """The k largest signed values of each row."""
    rows, columns = x.shape
    wide = _widened(x)
    values = _empty(rows, k, wide)
    index = torch.empty((rows, k), dtype=index_dtype(columns))
    count = torch.empty(rows if clip else 0, dtype=torch.int32)
    first_nan = _native().maxk_select(
        *_arrays(wide), k, *_arrays(count if clip else None, values, index), torch.get_num_threads()
    )
    if first_nan >= 0 and nan_policy == "raise":
        raise NanError(first_nan)
    return values.to(x.dtype), index, count


def cbsr_dense(
    features: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
    num_columns: int,
) -> Float[Tensor, "m d"]:
    """The dense form of a compressed matrix."""
    wide = _widened(features)
    dense = _empty(features.shape[0], num_columns, wide)
    _native().cbsr_dense(*_arrays(wide, index, count, dense), torch.get_num_threads())
    return dense.to(features.dtype)


def cbsr_gather(
    dense: Float[Tensor, "m d"], index: Int[Tensor, "m k"], count: Int[Tensor, " m"] | None
) -> Float[Tensor, "m k"]:
    """``dense`` at the columns of a compressed matrix."""
    wide = _widened(dense)
    values = _empty(index.shape[0], index.shape[1], wide)
    _native().cbsr_gather(*_arrays(wide, index, count, values), torch.get_num_threads())
    return values.to(dense.dtype)


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
    """Y[i, index[j,t]] += a_ij features[j,t]; always deterministic."""
    if indices.dtype != torch.int32:
        return reference.cbsr_spmm(
            indptr, indices, values, features, index, count, num_columns, deterministic
        )
    wide = _widened(features)
    y = _empty(indptr.numel() - 1, num_columns, wide)
    _native().cbsr_spmm(*_arrays(indptr, indices, values, wide, index, count, y), torch.get_num_threads())
    return y.to(features.dtype)


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
    """dV[j,t] = sum_i a_ij G[i, index[j,t]]; always deterministic."""
    if indices.dtype != torch.int32:
        return reference.cbsr_sddmm(
            indptr, indices, values, grad, index, count, column_offsets, deterministic
        )
    wide = _widened(grad)
    if column_offsets is None:
        column_offsets = torch.zeros(index.shape[0] + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(indices, minlength=index.shape[0]), 0, out=column_offsets[1:])
    result = _empty(index.shape[0], index.shape[1], wide)
    arrays = _arrays(indptr, indices, values, wide, index, count, column_offsets, result)
    _native().cbsr_sddmm(*arrays, torch.get_num_threads())
    return result.to(grad.dtype)


def sddmm(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    y: Float[Tensor, "n d"],
    x: Float[Tensor, "m d"],
) -> Float[Tensor, " nnz"]:
    """The inner product of Y[i,:] and X[j,:] at each entry (i, j)."""
    if indices.dtype != torch.int32:
        return reference.sddmm(indptr, indices, y, x)
    left, right = _widened(y), _widened(x)
    dots = torch.empty(indices.numel(), dtype=right.dtype)
    _native().sparse_sddmm(*_arrays(indptr, indices, left, right, dots), torch.get_num_threads())
    return dots


def cbsr_edge_dots(
    indptr: Int[Tensor, " n+1"],
    indices: Int[Tensor, " nnz"],
    grad: Float[Tensor, "n d"],
    features: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    count: Int[Tensor, " m"] | None,
) -> Float[Tensor, " nnz"]:
    """The inner product of G[i,:] and row j of a compressed matrix at each entry (i, j)."""
    if indices.dtype != torch.int32:
        return reference.cbsr_edge_dots(indptr, indices, grad, features, index, count)
    left, right = _widened(grad), _widened(features)
    dots = torch.empty(indices.numel(), dtype=right.dtype)
    arrays = _arrays(indptr, indices, left, right, index, count, dots)
    _native().cbsr_edge_dots(*arrays, torch.get_num_threads())
    return dots


def transpose(
    indptr: Int[Tensor, " n+1"], indices: Int[Tensor, " nnz"], num_columns: int
) -> tuple[Int[Tensor, " m+1"], Int[Tensor, " nnz"], Int[Tensor, " nnz"]]:
    """Row pointers and columns of A transposed, and the permutation of values, by a counting sort."""
    offsets = torch.empty(num_columns + 1, dtype=torch.int64)
    rows = torch.empty(indices.numel(), dtype=column_dtype(indptr.numel() - 1))
    perm = torch.empty(indices.numel(), dtype=torch.int64)
    _native().sparse_transpose(*_arrays(indptr, indices, offsets, rows, perm))
    return offsets, rows, perm


def order_entries(
    row: Int[Tensor, " nnz"], column: Int[Tensor, " nnz"], num_rows: int, num_columns: int
) -> Int[Tensor, " nnz"]:
    """The stable order that sorts entries by row, then by column."""
    order = torch.empty_like(row)
    _native().sparse_order(*_arrays(row, column), num_rows, num_columns, *_arrays(order))
    return order


def _product(
    indptr: Tensor,
    indices: Tensor,
    values: Tensor | None,
    x: Tensor,
    out: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    """Row i of A X in row order[i] of the result, or in row i."""
    wide = _widened(x)
    y = out if out is not None and out.dtype == wide.dtype else _empty(indptr.numel() - 1, x.shape[1], wide)
    _native().sparse_spmm(*_arrays(indptr, indices, values, wide, y, order), torch.get_num_threads())
    if out is None:
        return y.to(x.dtype)
    return out if y is out else out.copy_(y)


def _native() -> Any:
    return native_kernels()


def _arrays(*tensors: Tensor | None) -> list[Any]:
    """NumPy's view of the memory of each tensor."""
    return [None if tensor is None else tensor.detach().numpy() for tensor in tensors]


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _empty(rows: int, columns: int, like: Tensor) -> Tensor:
    """A new matrix of the dtype of ``like``, from huge pages if it is large."""
    size = rows * columns * like.element_size()
    if size < _HUGE_BYTES or not huge_pages_wanted():
        return torch.empty((rows, columns), dtype=like.dtype)
    return torch.from_numpy(_native().huge_empty(size)).view(like.dtype).view(rows, columns)
