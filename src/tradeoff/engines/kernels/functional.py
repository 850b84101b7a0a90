"""The operators on graphs, for users: checked operands, gradients, choice of backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.kernels import backends, operators
from tradeoff.engines.kernels.errors import BackendError, OperandError
from tradeoff.engines.kernels.graph import Graph
from tradeoff.engines.kernels.reference import index_dtype
from tradeoff.engines.kernels.transforms import has_tangent, may_need_gradient

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MOST_COLUMNS = 32768
_NAN_POLICIES = ("raise", "largest")

_log = logging.getLogger(__name__)


class Partition(Protocol):
    """A plan of the rows of one graph, by which ``strategy="buckets"`` multiplies."""

    def spmm(self, graph: Graph, x: Tensor, *, backend: str, out: Tensor | None) -> Tensor:
        """A X like :func:`spmm`, differentiable, for the graph that the plan was made of."""


@dataclass(eq=False)
class CBSR:
    """A matrix with k stored entries in each row: compressed balanced sparse rows (MaxK-GNN, ASPLOS 2024).

    Attributes:
        values: [n, k].
        index: their columns, ascending within a row: uint8 up to 256 columns, else int16; [n, k].
        num_columns: d.
        count: int32 [n], how many entries of each row count; None for all k. The others have value 0 and
            repeat the last column (0 in a row without any), and get no gradient.
    """

    values: Float[Tensor, "n k"]
    index: Int[Tensor, "n k"]
    num_columns: int
    count: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        """Check everything, once, since kernels trust it: shapes, dtypes, columns, counts and padding.

        Raises:
            OperandError: they do not fit together; names the first bad position.
        """
        _check_matrix("values", self.values)
        if self.values.shape != self.index.shape:
            raise OperandError(
                f"values {tuple(self.values.shape)} and index {tuple(self.index.shape)} have different shapes"
            )
        if not 0 <= self.num_columns <= _MOST_COLUMNS:
            raise OperandError(f"num_columns is from 0 to {_MOST_COLUMNS}, not {self.num_columns}")
        if self.index.dtype != index_dtype(self.num_columns):
            wanted = index_dtype(self.num_columns)
            raise OperandError(f"index of {self.num_columns} columns is {wanted}, not {self.index.dtype}")
        if self.count is not None and (
            self.count.shape != self.values.shape[:1] or self.count.dtype != torch.int32
        ):
            raise OperandError(
                f"count is int32 with one number a row, not {self.count.dtype} {self.count.shape}"
            )
        places = {self.values.device, self.index.device, *([] if self.count is None else [self.count.device])}
        if len(places) > 1:
            raise OperandError(f"values are on {self.values.device}, index or count on another device")
        _check_entries(self.values.detach(), self.index, self.count, self.num_columns)

    @classmethod
    def unchecked(
        cls,
        values: Float[Tensor, "n k"],
        index: Int[Tensor, "n k"],
        num_columns: int,
        count: Int[Tensor, " n"] | None = None,
    ) -> CBSR:
        """Of columns and counts that :func:`maxk` gave: without the check, which reads all of them.

        Kernels trust columns; others than those of a checked matrix may crash the process.
        """
        self = object.__new__(cls)
        self.values, self.index, self.num_columns, self.count = values, index, num_columns, count
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d), as a dense matrix."""
        return self.values.shape[0], self.num_columns

    @property
    def k(self) -> int:
        """Stored entries in each row."""
        return self.values.shape[1]

    def with_values(self, values: Float[Tensor, "n k"]) -> CBSR:
        """The same columns with other values, such as after dropout; those beyond a row's count are ignored.

        Raises:
            OperandError: they are not of the shape of the columns, or on another device.
        """
        _check_matrix("values", values)
        if values.shape != self.index.shape or values.device != self.index.device:
            raise OperandError(
                f"values {tuple(values.shape)} on {values.device} do not fit columns "
                f"{tuple(self.index.shape)} on {self.index.device}"
            )
        return CBSR.unchecked(values, self.index, self.num_columns, self.count)

    def to_dense(self, *, backend: str = "auto") -> Float[Tensor, "n d"]:
        """The dense matrix; differentiable."""
        result: Tensor = operators.cbsr_dense(
            self.values.contiguous(), self.index.contiguous(), self.count, self.num_columns, backend
        )
        return result


def spmm(
    graph: Graph,
    x: Float[Tensor, "m d"],
    *,
    backend: str = "auto",
    strategy: str = "auto",
    partition: Partition | None = None,
    out: Float[Tensor, "n d"] | None = None,
    strict: bool = False,
) -> Float[Tensor, "n d"]:
    """Y = A X: Y[i,:] = sum_j a_ij X[j,:]. Differentiable in x and in weights that require gradients.

    Sums are taken in float64 for float64 features and in float32 for the others, on the CPU in an order that
    depends on the graph alone: the result is bit-identical for any number of threads
    (``torch.set_num_threads``).

    Args:
        graph: A, n x m; its weights are float64 if x is, else float32.
        x: [m, d], float32, float64, float16 or bfloat16.
        backend: ``cpp``, ``triton``, ``torch``, or ``auto`` for the best that is here.
        strategy: ``rows``: rows in their order, long ones in parts; ``buckets``: rows of equal degree
            together, as ``partition`` plans; ``auto``: buckets on a GPU, rows on the CPU.
        partition: a plan for ``buckets``, such as a ``BlockPartition``; one is made and kept if not given.
        out: [n, d], written and returned, without gradients: for loops that reuse their buffers, since a new
            large result can cost more than the product itself.
        strict: raise where x would have to be copied because it is not contiguous.

    Raises:
        OperandError: an operand does not fit (shape, dtype, device), or out overlaps x.
        BackendError: backend or strategy cannot run here.
    """
    x = _operand("x", x, graph, graph.num_columns, strict)
    _check_weights(graph, x)
    if strategy not in backends.STRATEGIES:
        raise BackendError(f"strategy is one of {', '.join(backends.STRATEGIES)}, not {strategy!r}")
    if out is not None:
        _check_out(out, x, graph)
    if backends.takes_buckets(strategy, backend, x.device):
        partition = partition or graph.structure.partition()
        return partition.spmm(graph, x, backend=backend, out=out)
    if out is not None:
        operators.spmm_out(graph.indptr, graph.indices, graph.values, x, out, backend)
        return out
    result: Tensor = operators.spmm(
        graph.indptr, graph.indices, graph.values, x, *_transposed(graph, x), _values_t(graph, x), backend
    )
    return result


def maxk(
    x: Float[Tensor, "n d"],
    k: int,
    *,
    clip: bool = False,
    nan_policy: str = "raise",
    backend: str = "auto",
    strict: bool = False,
) -> CBSR:
    """The k largest signed values of each row, ties to the lowest column (MaxK-GNN, section 3).

    The gradient passes to the kept positions. With k = d this is the identity.

    Args:
        x: [n, d] with d up to 32768.
        k: from 1 to d.
        clip: keep positive values only; rows then have a ``count``.
        nan_policy: ``raise``, or ``largest`` to rank NaN above +Inf.
        backend, strict: as in :func:`spmm`.

    Raises:
        OperandError: x is no such matrix, k is out of range, or the policy is unknown.
        NanError: a row has NaN and the policy is ``raise``; an OperandError too.
    """
    _check_matrix("x", x)
    columns = x.shape[1]
    if columns > _MOST_COLUMNS:
        raise OperandError(f"x has {columns} columns; a compressed matrix has at most {_MOST_COLUMNS}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= columns:
        raise OperandError(f"k is a whole number from 1 to the {columns} columns of x, not {k!r}")
    if nan_policy not in _NAN_POLICIES:
        raise OperandError(f"nan_policy is one of {', '.join(_NAN_POLICIES)}, not {nan_policy!r}")
    values, index, count = operators.maxk_select(_contiguous("x", x, strict), k, clip, nan_policy, backend)
    return CBSR.unchecked(values, index, columns, count if clip else None)


def cbsr_spmm(
    graph: Graph,
    features: CBSR,
    *,
    deterministic: bool | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> Float[Tensor, "n d"]:
    """Y = A H of a compressed H: Y[i, H.index[j,t]] += a_ij H.values[j,t]. Reads 5 k bytes an edge, not 4 d.

    Differentiable in ``features.values`` (through to the x of :func:`maxk`) and in weights that require
    gradients.

    Args:
        graph: A, n x m.
        features: H, m x d.
        deterministic: whether a GPU may add atomically, which is faster; None takes
            ``torch.are_deterministic_algorithms_enabled()``. On the CPU sums never depend on timing or
            threads.
        backend, strict: as in :func:`spmm`.

    Raises:
        OperandError: an operand does not fit.
    """
    values = _operand("features.values", features.values, graph, graph.num_columns, strict)
    _check_weights(graph, values)
    index, count = _on_device("features", features.index, features.count, graph)
    offsets = graph.structure.column_offsets if may_need_gradient(graph.values, values) else None
    result: Tensor = operators.cbsr_spmm(
        *(graph.indptr, graph.indices, graph.values, values, index, count, features.num_columns, offsets),
        *(_deterministic(deterministic), backend),
    )
    return result


def cbsr_sddmm(
    graph: Graph,
    grad: Float[Tensor, "n d"],
    pattern: CBSR | Int[Tensor, "m k"],
    *,
    deterministic: bool | None = None,
    backend: str = "auto",
    strict: bool = False,
) -> Float[Tensor, "m k"]:
    """dV[j,t] = sum_i a_ij G[i, index[j,t]]: A transposed times G, where a compressed matrix has columns.

    It is the backward pass of :func:`cbsr_spmm`, and differentiable itself in grad and weights.

    Args:
        graph: A, n x m.
        grad: G, [n, d].
        pattern: a compressed matrix, or its columns, [m, k].
        deterministic, backend, strict: as in :func:`cbsr_spmm`.

    Raises:
        OperandError: an operand does not fit.
    """
    grad = _operand("grad", grad, graph, graph.num_rows, strict)
    _check_weights(graph, grad)
    if isinstance(pattern, Tensor):
        pattern = CBSR(grad.new_empty(pattern.shape), pattern, grad.shape[1])
    if pattern.num_columns != grad.shape[1]:
        raise OperandError(f"grad has {grad.shape[1]} columns, the compressed matrix {pattern.num_columns}")
    if pattern.index.shape[0] != graph.num_columns:
        raise OperandError(
            f"the compressed matrix has {pattern.index.shape[0]} rows, {graph} needs {graph.num_columns}"
        )
    index, count = _on_device("pattern", pattern.index, pattern.count, graph)
    result: Tensor = operators.cbsr_sddmm(
        *(graph.indptr, graph.indices, graph.values, grad, index, count, graph.structure.column_offsets),
        *(_deterministic(deterministic), backend),
    )
    return result


def sddmm(
    graph: Graph,
    y: Float[Tensor, "n d"],
    x: Float[Tensor, "m d"] | CBSR,
    *,
    backend: str = "auto",
    strict: bool = False,
) -> Float[Tensor, " nnz"]:
    """For each entry (i, j) of A: the inner product of Y[i,:] and X[j,:]; the weights of A do not matter.

    It is the gradient of :func:`spmm` (or of :func:`cbsr_spmm`, for a compressed x) with respect to the
    weights, and differentiable in y and x.

    Returns:
        [nnz], float64 for float64 operands, else float32: as weights are.

    Raises:
        OperandError: an operand does not fit.
    """
    y = _operand("y", y, graph, graph.num_rows, strict)
    dense = x.values if isinstance(x, CBSR) else x
    dense = _operand("x", dense, graph, graph.num_columns, strict)
    if dense.dtype != y.dtype:
        raise OperandError(f"y is {y.dtype}, x is {dense.dtype}")
    width = x.num_columns if isinstance(x, CBSR) else x.shape[1]
    if width != y.shape[1]:
        raise OperandError(f"y has {y.shape[1]} columns, x has {width}")
    if isinstance(x, CBSR):
        index, count = _on_device("x", x.index, x.count, graph)
        offsets = graph.structure.column_offsets if may_need_gradient(graph.values, dense) else None
        dots: Tensor = operators.cbsr_edge_dots(
            graph.indptr, graph.indices, y, dense, index, count, offsets, backend
        )
    else:
        transposed = _transposed(graph, dense, y)
        dots = operators.sddmm(graph.indptr, graph.indices, y, dense, *transposed, backend)
    return dots


def _transposed(graph: Graph, *tensors: Tensor) -> tuple[Any, Any, Any]:
    """Row pointers, columns and permutation of the transpose where a backward pass will need them."""
    if not may_need_gradient(graph.values, *tensors):
        return None, None, None
    structure, perm = graph.structure.transposed()
    return structure.indptr, structure.indices, perm


def _values_t(graph: Graph, x: Tensor) -> Tensor | None:
    return graph.transposed_values() if may_need_gradient(graph.values, x) else None


def _deterministic(wanted: bool | None) -> bool:
    return torch.are_deterministic_algorithms_enabled() if wanted is None else wanted


def _operand(name: str, tensor: Tensor, graph: Graph, rows: int, strict: bool) -> Tensor:
    """The tensor, checked against the graph and contiguous."""
    _check_matrix(name, tensor)
    if tensor.shape[0] != rows:
        raise OperandError(f"{name} has {tensor.shape[0]} rows, {graph} needs {rows}")
    if tensor.device != graph.device:
        raise OperandError(f"{name} is on {tensor.device}, the graph on {graph.device}")
    return _contiguous(name, tensor, strict)


def _check_matrix(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise OperandError(f"{name} is a torch tensor, not {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.ndim != 2:
        raise OperandError(
            f"{name} is a dense matrix, not of shape {tuple(tensor.shape)} and {tensor.layout}"
        )
    if tensor.dtype not in _FLOATS:
        raise OperandError(f"{name} is float32, float64, float16 or bfloat16, not {tensor.dtype}")


def _check_entries(values: Tensor, index: Tensor, count: Tensor | None, num_columns: int) -> None:
    """Columns in range and ascending, counts in range, padding as :class:`CBSR` says."""
    rows, k = index.shape
    columns = index.int()
    _refuse(
        (columns < 0) | (columns >= num_columns),
        lambda row, t: f"index[{row}, {t}] is {int(index[row, t])}, must be from 0 to {num_columns - 1}",
    )
    counted = torch.full((rows,), k, dtype=torch.int32, device=index.device) if count is None else count
    _refuse(
        ((counted < 0) | (counted > k))[:, None],
        lambda row, _: f"count[{row}] is {int(counted[row])}, must be from 0 to k = {k}",
    )
    stored = torch.arange(k, device=index.device) < counted[:, None]
    falls = torch.zeros_like(stored)
    falls[:, 1:] = columns[:, 1:] <= columns[:, :-1]
    _refuse(
        falls & stored,
        lambda row, t: (
            f"columns ascend within a row, but index[{row}, {t}] is {int(index[row, t])} after "
            f"{int(index[row, t - 1])}"
        ),
    )
    if count is None or not k:
        return
    last = columns.gather(1, (counted[:, None].long() - 1).clamp(min=0)) * (counted[:, None] > 0)
    _refuse(
        ~stored & ((columns != last) | (values != 0)),
        lambda row, t: (
            f"row {row} counts {int(counted[row])} entries, so entry {t} is padding: value 0 at column "
            f"{int(last[row])}, not {float(values[row, t])} at {int(index[row, t])}"
        ),
    )


def _refuse(bad: Tensor, message: Callable[[int, int], str]) -> None:
    """Raise the message of the first position (row, entry) that is bad."""
    if bool(bad.any()):
        row, entry = bad.nonzero()[0].tolist()
        raise OperandError(message(row, entry))


def _contiguous(name: str, tensor: Tensor, strict: bool) -> Tensor:
    if tensor.is_contiguous():
        return tensor
    if strict:
        raise OperandError(
            f"{name} is not contiguous, with strides {tensor.stride()}; pass {name}.contiguous()"
        )
    _log.debug("%s of strides %s is copied to be contiguous", name, tensor.stride())
    return tensor.contiguous()


def _check_weights(graph: Graph, x: Tensor) -> None:
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    if graph.values is not None and graph.values.dtype != wanted:
        raise OperandError(
            f"the weights are {graph.values.dtype}, features of {x.dtype} need {wanted}: "
            f"use graph.to(dtype={wanted})"
        )


def _check_out(out: Tensor, x: Tensor, graph: Graph) -> None:
    shape = (graph.num_rows, x.shape[1])
    if out.shape != shape or out.dtype != x.dtype or out.device != x.device or not out.is_contiguous():
        raise OperandError(
            f"out must be contiguous, {shape} and {x.dtype} on {x.device}, not {tuple(out.shape)} and "
            f"{out.dtype} on {out.device} with strides {out.stride()}"
        )
    if may_need_gradient(graph.values, x, out) or has_tangent(graph.values, x):
        raise OperandError("out= has no gradient: use torch.no_grad(), or leave out= away")
    begin, end = (tensor.data_ptr() for tensor in (x, out))
    if begin < end + out.nbytes and end < begin + x.nbytes:
        raise OperandError("out overlaps x")


def _on_device(name: str, index: Tensor, count: Tensor | None, graph: Graph) -> tuple[Tensor, Tensor | None]:
    for tensor in (index, count):
        if tensor is not None and tensor.device != graph.device:
            raise OperandError(f"{name} is on {tensor.device}, the graph on {graph.device}")
    return index.contiguous(), None if count is None else count.contiguous()
