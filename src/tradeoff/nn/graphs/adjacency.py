"""The arrays of a sparse adjacency matrix, as NumPy holds them: no torch, no kernels."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, Integer

from tradeoff.core.errors import DataError
from tradeoff.nn.graphs.arrays import load_npz

MAX_NODES = 1 << 32
"""So that a pair of nodes fits in 64 bits, by which edges are sorted."""
INT32_NODES = 1 << 31
"""With fewer nodes column indices are 32-bit; offsets into the edges are always 64-bit."""


@dataclass(frozen=True)
class Adjacency:
    """A square sparse matrix A in CSR form; row ``i`` lists the nodes that ``i`` aggregates from.

    Columns ascend within a row and none repeats. In PyTorch Geometric's terms an edge ``source -> target`` is
    the entry ``A[target, source]``.

    Attributes:
        indptr: int64 ``(nodes + 1,)``; row ``i`` is ``indices[indptr[i]:indptr[i + 1]]``.
        indices: int32 ``(nnz,)``, or int64 where there are 2^31 nodes or more.
        values: float32 ``(nnz,)``, or None where every entry is one.
        name: what it was made from.
    """

    indptr: Int64[np.ndarray, " rows_and_one"]
    indices: Integer[np.ndarray, " nnz"]
    values: Float32[np.ndarray, " nnz"] | None = None
    name: str = "graph"

    @property
    def num_nodes(self) -> int:
        """Rows, which are as many as columns."""
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """Stored entries: an undirected edge counts twice."""
        return len(self.indices)

    @cached_property
    def degrees(self) -> Int64[np.ndarray, " nodes"]:
        """Entries of each row."""
        return np.diff(self.indptr)

    @property
    def rows(self) -> Integer[np.ndarray, " nnz"]:
        """The row of each entry, which with :attr:`indices` makes the coordinate (COO) form."""
        return np.repeat(np.arange(self.num_nodes, dtype=self.indices.dtype), self.degrees)

    @property
    def edge_index(self) -> Int64[np.ndarray, "2 nnz"]:
        """Sources and targets, as PyTorch Geometric orders them; a copy."""
        return np.stack([self.indices.astype(np.int64), self.rows.astype(np.int64)])

    @property
    def is_symmetric(self) -> bool:
        """Whether ``A == A^T``, values included."""
        other = self.transpose()
        return bool(
            np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.indices, other.indices)
            and (self.values is other.values is None or bool(np.all(self.values == other.values)))
        )

    def transpose(self) -> "Adjacency":
        """``A^T``."""
        order = np.argsort(self.indices, kind="stable")
        counts = np.bincount(self.indices, minlength=self.num_nodes)
        values = None if self.values is None else self.values[order]
        return replace(self, indptr=_offsets(counts), indices=self.rows[order], values=values)

    def induced(self, nodes: Int64[np.ndarray, " kept"]) -> "Adjacency":
        """The graph among ``nodes``, which are renumbered in the order given.

        Raises:
            ValueError: a node is repeated or is none of this graph.
        """
        if len(np.unique(nodes)) != len(nodes) or (
            len(nodes) and not 0 <= nodes.min() <= nodes.max() < self.num_nodes
        ):
            raise ValueError("nodes must be distinct nodes of this graph")
        position = np.full(self.num_nodes, -1, np.int64)
        position[nodes] = np.arange(len(nodes))
        rows, columns = position[self.rows], position[self.indices]
        kept = (rows >= 0) & (columns >= 0)
        values = None if self.values is None else self.values[kept]
        return from_edges(rows[kept], columns[kept], len(nodes), values=values, name=self.name)

    def save(self, path: Path | str) -> None:
        """Write an ``.npz`` that :func:`read_adjacency` and ``scipy.sparse.load_npz`` read."""
        data = np.ones(self.nnz, np.float32) if self.values is None else self.values
        shape = np.array([self.num_nodes, self.num_nodes])
        np.savez(
            path, indptr=self.indptr, indices=self.indices, data=data, shape=shape, format=np.array(b"csr")
        )


def from_edges(
    rows: Integer[np.ndarray, " edges"],
    columns: Integer[np.ndarray, " edges"],
    num_nodes: int,
    *,
    values: Float32[np.ndarray, " edges"] | None = None,
    symmetric: bool = False,
    self_loops: bool = True,
    name: str = "graph",
) -> Adjacency:
    """Sort entries into rows and merge those that repeat: their values add up, or stay one without values.

    Args:
        rows, columns: the two ends of each entry.
        symmetric: whether to add the mirror image of each entry, where it is not there already; not for
            weighted entries.
        self_loops: whether to keep the diagonal.

    Raises:
        ValueError: lengths differ, or a node is out of range.
    """
    if not 0 <= num_nodes <= MAX_NODES:
        raise ValueError(f"a graph has from 0 to 2^32 nodes, not {num_nodes:,}")
    if rows.shape != columns.shape or rows.ndim != 1 or (values is not None and values.shape != rows.shape):
        raise ValueError("rows, columns and values must be vectors of one length")
    if symmetric and values is not None:
        raise ValueError("weighted entries are not made symmetric: add their mirror images")
    for ends in (rows, columns):
        if len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < num_nodes:
            wrong = int(np.flatnonzero((ends < 0) | (ends >= num_nodes))[0])
            raise ValueError(f"edge {wrong} has node {ends[wrong]}; there are {num_nodes:,} nodes")
    # One 64-bit key an entry: sorting keys is several times faster than sorting pairs.
    keys = rows.astype(np.uint64) * np.uint64(num_nodes) + columns.astype(np.uint64)
    if symmetric:
        keys = np.concatenate(
            [keys, columns.astype(np.uint64) * np.uint64(num_nodes) + rows.astype(np.uint64)]
        )
    if values is None:
        keys.sort()
        first = _firsts(keys)
        keys = keys[first]
    else:
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = _firsts(keys)
        starts = np.flatnonzero(first)
        values = (
            np.add.reduceat(values[order].astype(np.float64), starts).astype(np.float32)
            if len(starts)
            else np.zeros(0, np.float32)
        )
        keys = keys[first]
    row, column = np.divmod(keys, np.uint64(max(num_nodes, 1)))
    if not self_loops:
        kept = row != column
        row, column = row[kept], column[kept]
        values = None if values is None else values[kept]
    counts = np.bincount(row.astype(np.int64), minlength=num_nodes)
    index_type = np.int32 if num_nodes <= INT32_NODES else np.int64
    return Adjacency(_offsets(counts), column.astype(index_type), values, name)


def read_adjacency(path: Path | str) -> Adjacency:
    """A square matrix from an ``.npz`` as :meth:`Adjacency.save` or ``scipy.sparse.save_npz`` writes it.

    Raises:
        DataError: the file is not there, not such a file, or its arrays do not make a square CSR matrix.
    """
    path = Path(path)
    arrays = load_npz(path, ("format", "shape", "indptr", "indices", "data"))
    if arrays["format"].tobytes().replace(b"\0", b"") != b"csr" or arrays["shape"].dtype.kind not in "iu":
        raise DataError(f"{path} holds a sparse matrix that is not in CSR form")
    indptr, indices, data, shape = (arrays[name] for name in ("indptr", "indices", "data", "shape"))
    return checked(indptr, indices, data, tuple(shape.ravel().tolist()), path)


def checked(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray | None, shape: tuple[int, ...], path: Path
) -> Adjacency:
    """An :class:`Adjacency` of CSR arrays from a file that may be wrong in any way.

    Raises:
        DataError: the arrays are not those of a square CSR matrix.
    """
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 0:
        raise DataError(f"{path} holds a matrix of shape {shape}; a graph's is square")
    if shape[0] >= MAX_NODES:
        raise DataError(f"{path} holds a matrix of {shape[0]:,} rows; a graph has less than 2^32 nodes")
    num_nodes = int(shape[0])
    arrays = (indptr, indices) if data is None else (indptr, indices, data)
    if any(a.ndim != 1 for a in arrays) or indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise DataError(f"{path}: indptr and indices must be vectors of integers")
    if len(indptr) != num_nodes + 1 or indptr[0] != 0 or indptr[-1] != len(indices):
        raise DataError(f"{path}: indptr must have {num_nodes + 1:,} numbers, from 0 to {len(indices):,}")
    counts: Int64[np.ndarray, " rows"] = np.diff(indptr.astype(np.int64))
    if (counts < 0).any():
        raise DataError(f"{path}: indptr decreases at row {int(np.argmax(counts < 0)):,}")
    if data is not None and (len(data) != len(indices) or data.dtype.kind not in "fiub"):
        raise DataError(f"{path}: data must be as many real numbers as there are indices")
    ones = data is None or bool((data == 1).all())
    rows = np.repeat(np.arange(num_nodes), counts)
    try:
        if ones:
            graph = from_edges(rows, indices, num_nodes, name=path.stem)
            if data is None or graph.nnz == len(indices):
                return graph  # no entry repeats: entries of a file with values add up
        assert data is not None
        return from_edges(rows, indices, num_nodes, values=data.astype(np.float32), name=path.stem)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _firsts(keys: np.ndarray) -> np.ndarray:
    """Which keys of a sorted vector differ from the one before."""
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return first


def _offsets(counts: np.ndarray) -> Int64[np.ndarray, " rows_and_one"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
