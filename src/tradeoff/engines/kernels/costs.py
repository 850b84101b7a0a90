"""What each raw operator costs, by the shapes of its operands; :class:`meter.Call` says what is counted."""

from __future__ import annotations

from torch import Tensor

from tradeoff.engines.kernels.meter import Call, record


def spmm(
    operator: str, kernel: str, indptr: Tensor, indices: Tensor, values: Tensor | None, x: Tensor
) -> None:
    """Record A X: 2 nnz d operations; a row of X is read for each entry."""
    nnz, width, rows = indices.numel(), x.shape[1], indptr.numel() - 1
    graph = _bytes(indptr, indices, values)
    written = rows * width * x.element_size()
    gathered = nnz * width * x.element_size()
    record(Call(operator, kernel, 2 * nnz * width, graph + gathered, written, graph + _bytes(x) + written))


def sddmm(kernel: str, indptr: Tensor, indices: Tensor, y: Tensor, x: Tensor) -> None:
    """Record inner products at the entries: Y is read once, a row of X for each entry."""
    nnz, width = indices.numel(), x.shape[1]
    graph, written = _bytes(indptr, indices), nnz * max(4, x.element_size())
    read = graph + _bytes(y) + nnz * width * x.element_size()
    record(Call("sddmm", kernel, 2 * nnz * width, read, written, graph + _bytes(x, y) + written))


def maxk_select(kernel: str, x: Tensor, values: Tensor, index: Tensor, count: Tensor) -> None:
    """Record a selection: no operations, X is read once."""
    written = _bytes(values, index, count)
    record(Call("maxk_select", kernel, 0, _bytes(x), written, _bytes(x) + written))


def cbsr_dense(kernel: str, features: Tensor, index: Tensor, dense: Tensor) -> None:
    """Record the dense form of a compressed matrix."""
    read, written = _bytes(features, index), _bytes(dense)
    record(Call("cbsr_dense", kernel, 0, read, written, read + written))


def cbsr_gather(kernel: str, features: Tensor, index: Tensor) -> None:
    """Record the reading of a dense matrix at the columns of a compressed one."""
    read, written = _bytes(features, index), _bytes(features)
    record(Call("cbsr_gather", kernel, 0, read, written, read + written))


def cbsr_spmm(
    kernel: str, indices: Tensor, values: Tensor | None, features: Tensor, index: Tensor, y: Tensor
) -> None:
    """Record A times a compressed matrix: k values and columns are read for each entry."""
    nnz, kept = indices.numel(), features.shape[1]
    graph, written = _bytes(indices, values) + 8 * (y.shape[0] + 1), _bytes(y)
    read = graph + nnz * kept * (features.element_size() + index.element_size())
    record(
        Call("cbsr_spmm", kernel, 2 * nnz * kept, read, written, graph + _bytes(features, index) + written)
    )


def cbsr_sddmm(kernel: str, indices: Tensor, values: Tensor | None, grad: Tensor, index: Tensor) -> None:
    """Record its backward: G is read once; for each entry k sums are read and written, k columns read."""
    nnz, kept = indices.numel(), index.shape[1]
    graph = _bytes(indices, values) + 8 * (grad.shape[0] + 1)
    moved = nnz * kept * grad.element_size()
    read = graph + _bytes(grad) + moved + nnz * kept * index.element_size()
    result = index.numel() * grad.element_size()
    record(Call("cbsr_sddmm", kernel, 2 * nnz * kept, read, moved, graph + _bytes(grad, index) + result))


def cbsr_edge_dots(
    kernel: str, indptr: Tensor, indices: Tensor, grad: Tensor, features: Tensor, index: Tensor
) -> None:
    """Record inner products with a compressed matrix at the entries."""
    nnz, kept = indices.numel(), index.shape[1]
    graph, written = _bytes(indptr, indices), nnz * max(4, grad.element_size())
    read = graph + _bytes(grad) + nnz * kept * (features.element_size() + index.element_size())
    record(
        Call(
            "cbsr_edge_dots",
            kernel,
            2 * nnz * kept,
            read,
            written,
            graph + _bytes(grad, features, index) + written,
        )
    )


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
