"""A sparse matrix for graph learning: compressed sparse rows, checked once, with its transpose kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.core.memory import physical_memory
from tradeoff.engines.kernels import operators
from tradeoff.engines.kernels.errors import GraphError
from tradeoff.engines.kernels.partition import BlockPartition
from tradeoff.engines.kernels.reference import column_dtype, row_of_entry, swallow_beta_warning
from tradeoff.engines.kernels.transforms import has_tangent, transforming

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from tradeoff.nn.graphs import Adjacency

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""For which torch has few operators."""
_NORMALIZATIONS = ("row", "sym", "none")


class Structure:
    """Where the entries of a matrix are; shared by all graphs that differ in weights only.

    Attributes:
        indptr: int64 [n+1]; the entries of row i are indptr[i] to indptr[i+1].
        indices: columns, int32 [nnz] (int64 from 2^31 columns on), ascending within a row.
        shape: (n, m).
    """

    def __init__(self, indptr: Tensor, indices: Tensor, shape: tuple[int, int]) -> None:
        self.indptr = indptr
        self.indices = indices
        self.shape = shape
        self._transposed: tuple[Structure, Tensor] | None = None
        self._inverse: Tensor | None = None
        self._column_offsets: Tensor | None = None
        self._partition: BlockPartition | None = None

    def partition(self) -> BlockPartition:
        """Its rows in blocks of equal degree, as the kernels for GPUs take them; made once."""
        if self._partition is None:
            self._partition = BlockPartition.from_indptr(self.indptr)
        return self._partition

    def transposed(self) -> tuple[Structure, Int[Tensor, " nnz"]]:
        """The structure of the transpose, and ``perm`` with values_T = values[perm]; made once."""
        if self._transposed is None:
            indptr, indices, perm = operators.transpose(self.indptr, self.indices, self.shape[1])
            other = Structure(indptr, indices, (self.shape[1], self.shape[0]))
            other._column_offsets = self.indptr
            if (
                self.shape[0] == self.shape[1]
                and _equal(indptr, self.indptr)
                and _equal(indices, self.indices)
            ):
                other = self  # one copy of a symmetric pattern
            self._transposed = (other, perm)
            self._column_offsets = other.indptr
        return self._transposed

    @property
    def column_offsets(self) -> Int[Tensor, " m+1"]:
        """The row pointers of the transpose: how many entries lie left of each column."""
        if self._column_offsets is None:
            offsets = torch.zeros(self.shape[1] + 1, dtype=torch.int64, device=self.indptr.device)
            torch.cumsum(torch.bincount(self.indices, minlength=self.shape[1]), 0, out=offsets[1:])
            self._column_offsets = offsets
        return self._column_offsets


class Graph:
    """A sparse n x m matrix A; for a graph, A[target, source] is the weight of the edge source -> target.

    Build one with :meth:`from_csr`, :meth:`from_coo`, :meth:`from_edge_index`, :meth:`from_scipy` or
    :meth:`from_adjacency`; a graph does not change afterwards. Its transpose, which every backward pass
    needs, is built at the first need and kept.

    Example::

        graph = Graph.from_edge_index(edge_index, num_nodes=n).normalize("sym", self_loops=True)
        y = spmm(graph, x)
    """

    def __init__(self, structure: Structure, values: Tensor | None) -> None:
        """For the constructors below, which check; the arrays are taken as they are."""
        self.structure = structure
        self.values = values
        # With the version of the weights that they were made of.
        self._values_t: tuple[int, Tensor] | None = None
        self._transpose: tuple[int, Graph] | None = None
        self._derived: dict[Hashable, tuple[int, Graph]] = {}

    @classmethod
    def from_csr(
        cls,
        indptr: Int[Tensor, " n+1"] | Any,
        indices: Int[Tensor, " nnz"] | Any,
        values: Float[Tensor, " nnz"] | Any | None = None,
        num_columns: int | None = None,
    ) -> Graph:
        """From compressed sparse rows; tensors of the right dtype are shared, not copied.

        Rows whose columns are not ascending are sorted, and entries at one position are added up.

        Args:
            indptr: [n+1], from 0 to nnz, never falling.
            indices: [nnz], columns.
            values: [nnz], float32 or float64; None for a graph without weights (all ones).
            num_columns: m; n if not given.

        Raises:
            GraphError: the arrays are no matrix; names the first bad position.
        """
        indptr, indices = _integers("indptr", indptr), _integers("indices", indices)
        if not indptr.numel():
            raise GraphError("indptr is empty; a matrix of n rows has n + 1 row pointers, the first one 0")
        num_rows = indptr.numel() - 1
        num_columns = num_rows if num_columns is None else _size("num_columns", num_columns)
        indptr = indptr.to(torch.int64).contiguous()
        _check_pointers(indptr, indices.numel())
        _check_range("indices", indices, num_columns)
        _check_devices(indptr=indptr, indices=indices)
        weights = _checked_values(values, indices)
        indices = indices.to(column_dtype(num_columns)).contiguous()
        if not _ascending(indptr, indices):
            rows = row_of_entry(indptr, indices.numel())
            return cls._coalesced(rows, indices.long(), weights, (num_rows, num_columns))
        return cls(Structure(indptr, indices, (num_rows, num_columns)), weights)

    @classmethod
    def from_coo(
        cls,
        row: Int[Tensor, " nnz"] | Any,
        column: Int[Tensor, " nnz"] | Any,
        values: Float[Tensor, " nnz"] | Any | None = None,
        shape: tuple[int, int] | None = None,
    ) -> Graph:
        """From coordinates in any order; entries at one position are added up (ones, if there are no values).

        Args:
            row, column: [nnz].
            values: [nnz], float32 or float64; gradients flow back to them.
            shape: (n, m); one more than the largest coordinates if not given.

        Raises:
            GraphError: a coordinate is negative or too large, or lengths differ; names the first bad
                position.
        """
        row, column = _integers("row", row), _integers("column", column)
        if row.numel() != column.numel():
            raise GraphError(f"row has {row.numel()} entries, column {column.numel()}")
        if shape is None:
            shape = (int(row.max()) + 1, int(column.max()) + 1) if row.numel() else (0, 0)
        shape = (_size("shape[0]", shape[0]), _size("shape[1]", shape[1]))
        _check_range("row", row, shape[0])
        _check_range("column", column, shape[1])
        _check_devices(row=row, column=column)
        weights = _checked_values(values, row)
        return cls._coalesced(row.long(), column.long(), weights, shape)

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Int[Tensor, "2 edges"] | Any,
        edge_weight: Float[Tensor, " edges"] | Any | None = None,
        num_nodes: int | None = None,
    ) -> Graph:
        """From PyG's edge list: row 0 holds sources, row 1 targets, and A[target, source] is the weight.

        Raises:
            GraphError: it has not two rows, or a node is out of range; names the first bad position.
        """
        edge_index = torch.as_tensor(edge_index)
        if edge_index.ndim != 2 or edge_index.shape[0] != 2:
            raise GraphError(f"edge_index has shape (2, edges), not {tuple(edge_index.shape)}")
        if num_nodes is None:
            nodes = _integers("edge_index", edge_index.reshape(-1))
            num_nodes = int(nodes.max()) + 1 if nodes.numel() else 0
        num_nodes = _size("num_nodes", num_nodes)
        return cls.from_coo(edge_index[1], edge_index[0], edge_weight, (num_nodes, num_nodes))

    @classmethod
    def from_scipy(cls, matrix: Any) -> Graph:
        """From a scipy.sparse matrix or array; values become weights, as float32 unless they are float64.

        Raises:
            GraphError: values are complex.
        """
        csr = matrix.tocsr()
        values = torch.as_tensor(csr.data)
        if values.is_complex():
            raise GraphError(f"values are real numbers, not {values.dtype}")
        values = values if values.dtype == torch.float64 else values.float()
        return cls.from_csr(torch.as_tensor(csr.indptr), torch.as_tensor(csr.indices), values, csr.shape[1])

    @classmethod
    def from_adjacency(cls, adjacency: Adjacency) -> Graph:
        """From the arrays of a data set or a generator; those of the right dtype are shared."""
        return cls.from_csr(adjacency.indptr, adjacency.indices, adjacency.values)

    @classmethod
    def _coalesced(cls, row: Tensor, column: Tensor, values: Tensor | None, shape: tuple[int, int]) -> Graph:
        needed, there = 8 * sum(shape), physical_memory()
        if needed > there:
            raise GraphError(
                f"a matrix of {shape[0]:,} rows and {shape[1]:,} columns takes {needed:,} bytes to count its "
                f"entries; this machine has {there:,}"
            )
        order = operators.order_entries(row.contiguous(), column.contiguous(), *shape)
        row, column = row[order], column[order]
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
        repeated = not bool(first.all())
        if values is not None:
            values = values[order]
        elif repeated:
            values = torch.ones(row.numel(), dtype=torch.float32, device=row.device)
        if repeated:
            assert values is not None
            position = first.cumsum(0) - 1
            row, column = row[first], column[first]
            values = values.new_zeros(row.numel()).index_add(0, position, values)
        indptr = torch.zeros(shape[0] + 1, dtype=torch.int64, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=shape[0]), 0, out=indptr[1:])
        return cls(Structure(indptr, column.to(column_dtype(shape[1])), shape), values)

    def with_values(self, values: Float[Tensor, " nnz"] | None) -> Graph:
        """The same entries with other weights, such as learned ones; transposes are shared.

        Raises:
            GraphError: not one float32 or float64 value for each entry.
        """
        return Graph(self.structure, _checked_values(values, self.indices))

    def normalize(self, how: str, self_loops: bool = False) -> Graph:
        """A graph whose weights are divided by row sums, as PyG does it.

        Args:
            how: ``row``: a_ij / r_i, the mean over neighbors; ``sym``: a_ij / sqrt(r_i r_j) (GCN); ``none``;
                with r_i the sum of row i. Rows that sum to 0 get weights 0.
            self_loops: first add weight 1 where the diagonal is empty.

        Raises:
            GraphError: another ``how``; ``sym`` or ``self_loops`` of a matrix that is not square; ``sym`` of
                a row that sums to less than 0.
        """
        if how not in _NORMALIZATIONS:
            raise GraphError(f"normalize takes one of {', '.join(_NORMALIZATIONS)}, not {how!r}")
        if (how == "sym" or self_loops) and self.num_rows != self.num_columns:
            raise GraphError(
                f"normalize({how!r}, self_loops={self_loops}) needs a square matrix, not {self.shape}"
            )
        graph = self._with_self_loops() if self_loops else self
        if how == "none":
            return graph
        values = graph._weights()
        rows = row_of_entry(graph.indptr, graph.nnz)
        sums = values.new_zeros(graph.num_rows).index_add(0, rows, values)
        if how == "row":
            tiny = (sums != 0) & (sums.abs() < torch.finfo(sums.dtype).tiny)
            scale = torch.where(sums == 0, 0, 1 / torch.where((sums == 0) | tiny, 1, sums))
            means = values * scale[rows]
            if bool(tiny.any()):  # of which 1 / sum may be infinite
                means = torch.where(tiny[rows], values / torch.where(tiny, sums, 1)[rows], means)
            return graph.with_values(means)
        if bool((sums < 0).any()):
            raise GraphError(f"normalize('sym'): row {int((sums < 0).nonzero()[0])} sums to less than 0")
        scale = torch.where(sums == 0, 0, torch.where(sums == 0, 1, sums).rsqrt())
        return graph.with_values(values * scale[rows] * scale[graph.indices.long()])

    def _with_self_loops(self) -> Graph:
        rows = row_of_entry(self.indptr, self.nnz)
        empty = torch.ones(self.num_rows, dtype=torch.bool, device=self.device)
        empty[rows[rows == self.indices]] = False
        missing = empty.nonzero()[:, 0]
        values = self._weights()
        return Graph._coalesced(
            torch.cat([rows, missing]),
            torch.cat([self.indices.long(), missing]),
            torch.cat([values, values.new_ones(missing.numel())]),
            self.shape,
        )

    @property
    def indptr(self) -> Int[Tensor, " n+1"]:
        """Row pointers, int64."""
        return self.structure.indptr

    @property
    def indices(self) -> Int[Tensor, " nnz"]:
        """Columns, ascending within a row."""
        return self.structure.indices

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.structure.shape

    @property
    def num_rows(self) -> int:
        """n."""
        return self.structure.shape[0]

    @property
    def num_columns(self) -> int:
        """m."""
        return self.structure.shape[1]

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return self.structure.indices.numel()

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.structure.indptr.device

    def degrees(self) -> Int[Tensor, " n"]:
        """Entries of each row, int64."""
        return self.indptr.diff()

    def __repr__(self) -> str:
        weights = "unweighted" if self.values is None else str(self.values.dtype).removeprefix("torch.")
        return f"Graph({self.num_rows} x {self.num_columns}, nnz={self.nnz}, {weights}, {self.device})"

    def transpose(self) -> Graph:
        """A transposed, made once; the graph itself if it is symmetric in pattern and weights.

        It is made again after the weights were written to. Gradients flow back to weights that need them; the
        transpose of such a graph is not kept.
        """
        structure, perm = self.structure.transposed()
        if self.values is not None and not self._constant:
            return Graph(structure, self.values[perm])
        if self._transpose is None or self._transpose[0] != self._version:
            values = self.transposed_values()
            same = structure is self.structure
            if values is not None and self.values is not None:
                same = same and _equal(values, self.values)
            self._transpose = self._version, self if same else Graph(structure, values)
        return self._transpose[1]

    @property
    def perm(self) -> Int[Tensor, " nnz"]:
        """The order of entries in the transpose: its values are ``values[perm]``."""
        return self.structure.transposed()[1]

    def transposed_values(self) -> Float[Tensor, " nnz"] | None:
        """``values[perm]``, kept until they are written to; None without weights, and for learned weights.

        None within compiled code, too, which cannot see whether they were written to: the backward pass takes
        them from the weights then.
        """
        if self.values is None or not self._constant or torch.compiler.is_compiling():
            return None
        if self._values_t is None or self._values_t[0] != self._version:
            self._values_t = self._version, self.values[self.perm]
        return self._values_t[1]

    @property
    def _version(self) -> int:
        """Changes when the weights are written to."""
        return 0 if self.values is None else self.values._version

    @property
    def _constant(self) -> bool:
        """Whether no derivative is taken by the weights, so that what is made of them may be kept."""
        if self.values is None:
            return True
        if self.values.requires_grad:
            return False
        return torch.compiler.is_compiling() or not (transforming() or has_tangent(self.values))

    @property
    def is_symmetric(self) -> bool:
        """Whether A equals its transpose, weights included."""
        return self.num_rows == self.num_columns and self.transpose() is self

    def derived(self, key: Hashable, build: Callable[[], Graph]) -> Graph:
        """What ``build`` makes of this graph, kept with it: made once for each ``key``.

        It is made again after the weights were written to, and each time for weights that require gradients.
        """
        if not self._constant:
            return build()
        version = self._version
        if key not in self._derived or self._derived[key][0] != version:
            self._derived[key] = version, build()
        return self._derived[key][1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Graph:
        """The graph on another device, or with weights of another dtype (float32, float64)."""
        target = self.device if device is None else torch.device(device)
        structure = self.structure
        if target != self.device:
            structure = Structure(self.indptr.to(target), self.indices.to(target), self.shape)
        values = self.values
        if values is not None:
            values = _checked_values(values.to(target, dtype or values.dtype), structure.indices)
        return self if structure is self.structure and values is self.values else Graph(structure, values)

    def to_dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "n m"]:
        """The n x m matrix: for tests and small graphs."""
        values = self._weights()
        dense = torch.zeros(self.shape, dtype=dtype or values.dtype, device=self.device)
        rows = row_of_entry(self.indptr, self.nnz)
        return dense.index_put((rows, self.indices.long()), values.to(dense.dtype))

    def to_torch(self) -> Tensor:
        """A torch sparse CSR tensor that shares the columns and values.

        Its indices are of 32 bits where they suffice: MKL and cuSPARSE read those without a copy.
        """
        swallow_beta_warning()
        short = self.nnz < 2**31 and self.indices.dtype == torch.int32
        dtype = torch.int32 if short else torch.int64
        indptr, indices = self.indptr.to(dtype), self.indices.to(dtype)
        return torch.sparse_csr_tensor(indptr, indices, self._weights(), self.shape, check_invariants=False)

    def to_scipy(self) -> csr_array:
        """A scipy CSR array, on the CPU."""
        from scipy.sparse import csr_array

        arrays = (part.detach().cpu().numpy() for part in (self._weights(), self.indices, self.indptr))
        data, indices, indptr = arrays
        return csr_array((data, indices, indptr), shape=self.shape)

    def _weights(self) -> Tensor:
        if self.values is not None:
            return self.values
        return torch.ones(self.nnz, dtype=torch.float32, device=self.device)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _size(name: str, value: int) -> int:
    try:
        size = int(value)
    except (TypeError, ValueError, OverflowError):
        size = -1
    if isinstance(value, bool) or size != value or size < 0:
        raise GraphError(f"{name} is a whole number of at least 0, not {value!r}")
    return size


def _integers(name: str, numbers: Any) -> Tensor:
    tensor = torch.as_tensor(numbers)
    if tensor.ndim != 1:
        raise GraphError(f"{name} has one dimension, not shape {tuple(tensor.shape)}")
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise GraphError(f"{name} holds whole numbers, not {tensor.dtype}")
    return tensor.to(torch.int64) if tensor.dtype in _UNSIGNED else tensor


def _check_pointers(indptr: Tensor, nnz: int) -> None:
    if int(indptr[0]) != 0:
        raise GraphError(f"indptr starts with {int(indptr[0])} at position 0, not with 0")
    falls = (indptr.diff() < 0).nonzero()
    if falls.numel():
        at = int(falls[0]) + 1
        raise GraphError(f"indptr falls at position {at}: {int(indptr[at])} after {int(indptr[at - 1])}")
    if int(indptr[-1]) != nnz:
        raise GraphError(
            f"indptr ends with {int(indptr[-1])} at position {indptr.numel() - 1}, but indices has {nnz}"
        )


def _check_range(name: str, index: Tensor, limit: int) -> None:
    if not index.numel():
        return
    least, most = (int(bound) for bound in torch.aminmax(index))
    if least < 0 or most >= limit:
        at = int(((index < 0) | (index >= limit)).nonzero()[0])
        raise GraphError(f"{name}[{at}] is {int(index[at])}, must be from 0 to {limit - 1}")


def _check_devices(**tensors: Tensor) -> None:
    places = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(places.values())) > 1:
        raise GraphError(
            "arrays are on different devices: " + ", ".join(f"{n} {d}" for n, d in places.items())
        )


def _checked_values(values: Any | None, like: Tensor) -> Tensor | None:
    if values is None:
        return None
    values = torch.as_tensor(values)
    if values.dtype not in (torch.float32, torch.float64):
        raise GraphError(f"values are float32 or float64, not {values.dtype}")
    if values.shape != (like.numel(),):
        raise GraphError(
            f"values has shape {tuple(values.shape)}, needs one for each of {like.numel()} entries"
        )
    if values.device != like.device:
        raise GraphError(f"values are on {values.device}, the entries on {like.device}")
    return values.contiguous()


def _ascending(indptr: Tensor, indices: Tensor) -> bool:
    """Whether columns rise strictly within every row."""
    if indices.numel() < 2:
        return True
    falls = torch.zeros(indices.numel() + 1, dtype=torch.bool, device=indices.device)
    falls[1:-1] = indices[1:] <= indices[:-1]
    falls[indptr] = False  # a new row may start anywhere
    return not bool(falls.any())
