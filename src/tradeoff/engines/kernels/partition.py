"""Degree-bucketed blocks: rows sorted by degree and cut into rectangles of equal work, one record a block.

After Xie et al., "Accel-GCN: High-Performance GPU Accelerator Design for Graph Convolution Networks", ICCAD
2023: a block has ``warps`` warps of at most ``nnz_per_warp`` non-zeros. A row of g non-zeros is served by f
warps, the smallest divisor of ``warps`` that suffices, so that a block holds ``warps / f`` rows of that
degree; longer rows are cut into segments of ``warps * nnz_per_warp``. The order of rows and the records
depend on ``indptr`` only::

    partition = BlockPartition.from_indptr(indptr)
    for degree, first_row, first_nonzero, info in partition.blocks.tolist():
        if degree <= partition.limit:
            width, rows = info >> 16, info & 0xFFFF   # non-zeros a warp, rows of the block
        else:
            length = info                             # of this segment of row first_row

``first_row`` counts rows in the order of :attr:`BlockPartition.order`, ``first_nonzero`` counts non-zeros in
it.
"""

import hashlib
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tradeoff.core import native
from tradeoff.core.errors import EngineError
from tradeoff.engines.kernels.transforms import may_need_gradient

if TYPE_CHECKING:
    from tradeoff.engines.kernels.graph import Graph, Structure
    from tradeoff.engines.kernels.layout import BucketLayout

RECORD_BYTES = 16
"""Of a record with 32-bit fields, and of a warp's in a warp-level scheme."""
_LARGEST_WIDTH = 2**15 - 1  # it is the upper half of a signed 32-bit field
_WIDE_FROM = 2**31  # non-zeros from which records have 64-bit fields


class PartitionMismatch(EngineError, ValueError):
    """A partition was made for another graph than it is used with."""


@dataclass(frozen=True)
class BlockShape:
    """How a block is filled: which divisor of its warps serves a row of each degree.

    Attributes:
        warps: of a block, 1 to 32.
        nnz_per_warp: non-zeros that a warp takes at most.
        compat: as the published code does: its table ends before degree ``limit / 2``, so that such rows are
            alone in their block, and rows that have a block of their own give each warp ``nnz_per_warp``
            non-zeros. Otherwise degree ``limit / 2`` shares its block and widths are balanced.

    Raises:
        ValueError: a number is out of range.
    """

    warps: int = 12
    nnz_per_warp: int = 32
    compat: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.warps <= 32:
            raise ValueError(f"a block has 1 to 32 warps, not {self.warps}")
        if not 1 <= self.nnz_per_warp <= _LARGEST_WIDTH:
            raise ValueError(f"a warp takes 1 to {_LARGEST_WIDTH} non-zeros, not {self.nnz_per_warp}")

    @property
    def limit(self) -> int:
        """Non-zeros of a block; longer rows are cut into segments."""
        return self.warps * self.nnz_per_warp

    @cached_property
    def warps_per_row(self) -> NDArray[np.int64]:
        """f(g) for degrees 0 to :attr:`limit`; 0 for degree 0, which no block serves."""
        divisors = np.array([f for f in range(1, self.warps + 1) if self.warps % f == 0])
        degrees = np.arange(self.limit + 1)
        factors = divisors[np.searchsorted(divisors * self.nnz_per_warp, degrees)]
        factors[0] = 0
        if self.compat:
            factors[max(1, self.limit // 2) :] = self.warps
        return factors

    @cached_property
    def rows_per_block(self) -> NDArray[np.int64]:
        """R(g) for degrees 0 to :attr:`limit`."""
        return self.warps // np.maximum(self.warps_per_row, 1)

    @cached_property
    def width(self) -> NDArray[np.int64]:
        """w(g), non-zeros a warp, for degrees 0 to :attr:`limit`."""
        factors = np.maximum(self.warps_per_row, 1)
        width = -(-np.arange(self.limit + 1) // factors)
        if self.compat:
            width[factors == self.warps] = self.nnz_per_warp
        width[0] = 0
        return width


@dataclass(frozen=True)
class PartitionStats:
    """What a partition costs and how well it fills its blocks.

    Attributes:
        records: blocks.
        bytes: of the records.
        warp_level_bytes: of a scheme with one record of 16 bytes for each ``nnz_per_warp`` non-zeros of a
            row.
        padding: slots of warps that serve rows over non-zeros; 1 where each slot has one.
        split: fraction of the non-zeros that lie in rows cut into segments.
        empty_rows: rows that no block serves.
        seconds: that sorting and partitioning took.
    """

    records: int
    bytes: int
    warp_level_bytes: int
    padding: float
    split: float
    empty_rows: int
    seconds: float

    @property
    def metadata_ratio(self) -> float:
        """Bytes of the warp-level scheme over those of the records; 1 where both are empty."""
        return self.warp_level_bytes / self.bytes if self.bytes else 1.0


@dataclass(eq=False)
class BlockPartition:
    """The blocks of a matrix's rows; see the module for its fields.

    Attributes:
        order: rows by ascending degree, equal degrees in their own order.
        blocks: records (degree, first row, first non-zero, info); 64-bit from 2^31 non-zeros on.
        shape: of a block.
        checksum: of the ``indptr`` that it was made from.
        empty_rows: how many rows at the start of :attr:`order` have no non-zero.
        nnz: non-zeros that the blocks cover.
        seconds: that it took to make.
    """

    order: Int[Tensor, " rows"]
    blocks: Int[Tensor, "blocks 4"]
    shape: BlockShape
    checksum: bytes
    empty_rows: int
    nnz: int
    seconds: float
    _bound: "tuple[Structure, BucketLayout] | None" = field(default=None, repr=False)
    _transposed: "BlockPartition | None" = field(default=None, repr=False)

    @classmethod
    def from_indptr(
        cls,
        indptr: Int[Tensor, " rows+1"],
        *,
        warps: int = 12,
        nnz_per_warp: int = 32,
        compat: bool = False,
    ) -> Self:
        """Sort the rows by degree and cut them into blocks: O(rows + largest degree + blocks).

        Args:
            indptr: of the CSR matrix, int64.
            warps: of a block, 1 to 32.
            nnz_per_warp: non-zeros that a warp takes at most.
            compat: see :class:`BlockShape`.

        Raises:
            ValueError: a number is out of range.
        """
        shape = BlockShape(warps, nnz_per_warp, compat)
        started = time.perf_counter()
        pointers = indptr.detach().cpu().numpy()
        degrees = np.diff(pointers)
        partition = _native_partition if native.extension() is not None else reference_partition
        order, blocks = partition(pointers, shape)
        return cls(
            order=torch.from_numpy(order).to(indptr.device),
            blocks=torch.from_numpy(blocks).to(indptr.device),
            shape=shape,
            checksum=checksum(indptr),
            empty_rows=int(np.count_nonzero(degrees == 0)),
            nnz=int(pointers[-1]),
            seconds=time.perf_counter() - started,
        )

    @classmethod
    def from_graph(
        cls, graph: "Graph", *, warps: int = 12, nnz_per_warp: int = 32, compat: bool = False
    ) -> Self:
        """The partition of a graph's rows; see :meth:`from_indptr`."""
        return cls.from_indptr(graph.indptr, warps=warps, nnz_per_warp=nnz_per_warp, compat=compat)

    @property
    def limit(self) -> int:
        """Non-zeros of a block; longer rows are cut into segments."""
        return self.shape.limit

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return len(self.order)

    @cached_property
    def segments(self) -> int:
        """How many records are segments of long rows; they are the last ones."""
        return int((self.blocks[:, 0] > self.limit).sum())

    def check(self, indptr: Int[Tensor, " rows+1"]) -> None:
        """Check that this is a partition of the matrix with that ``indptr``.

        Raises:
            PartitionMismatch: it is not.
        """
        if len(indptr) != self.rows + 1 or checksum(indptr) != self.checksum:
            raise PartitionMismatch(
                f"this partition of {self.rows} rows and {self.nnz} non-zeros was made for another graph; "
                "make one with BlockPartition.from_graph(graph)"
            )

    def spmm(
        self,
        graph: "Graph",
        x: Float[Tensor, "m d"],
        *,
        backend: str = "auto",
        out: Float[Tensor, "n d"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """A X by these blocks, for ``spmm(graph, x, strategy="buckets", partition=self)``, which checks.

        Differentiable in x and in weights; the gradient goes by blocks of the transpose, made once.

        Raises:
            PartitionMismatch: this partition is another graph's.
        """
        from tradeoff.engines.kernels import buckets

        layout = self.layout(graph.structure)
        learned = graph.values is not None and graph.values.requires_grad
        if out is not None:
            return buckets.multiply(layout, graph.values, x, out, not learned, backend)
        tensors: tuple[Any, ...] = (None, None, None, None)
        transposed = None
        if may_need_gradient(graph.values, x):
            structure, perm = graph.structure.transposed()
            transposed = self.transposed(graph.structure).layout(structure)
            tensors = (structure.indptr, structure.indices, perm, graph.transposed_values())
        result: Tensor = buckets.spmm_buckets(
            *(layout.number, 0 if transposed is None else transposed.number),
            *(graph.indptr, graph.indices, graph.values, x, *tensors),
            *(not learned, backend),
        )
        return result

    def layout(self, structure: "Structure") -> "BucketLayout":
        """The entries of a matrix in the order of these blocks; sorted once, for the latest matrix.

        Raises:
            PartitionMismatch: this partition is another matrix's.
        """
        if self._bound is None or self._bound[0] is not structure:
            from tradeoff.engines.kernels.layout import BucketLayout

            self._bound = structure, BucketLayout.of(self, structure.indptr, structure.indices)
        return self._bound[1]

    def transposed(self, structure: "Structure") -> "BlockPartition":
        """The partition of the transpose into blocks of the same shape; itself for a symmetric pattern."""
        other, _ = structure.transposed()
        if other is structure:
            return self
        if self._transposed is None or self._transposed.bound_to is not other:
            shape = self.shape
            self._transposed = BlockPartition.from_indptr(
                other.indptr, warps=shape.warps, nnz_per_warp=shape.nnz_per_warp, compat=shape.compat
            )
            self._transposed.layout(other)
        return self._transposed

    @property
    def bound_to(self) -> "Structure | None":
        """The matrix whose entries are sorted."""
        return None if self._bound is None else self._bound[0]

    def stats(self) -> PartitionStats:
        """What the partition costs and how well it fills its blocks."""
        blocks = self.blocks.cpu().numpy().astype(np.int64)
        degree, info = blocks[:, 0], blocks[:, 3]
        long = degree > self.limit
        short_degree, rows = degree[~long], info[~long] & 0xFFFF
        room = self.shape.warps_per_row * self.shape.width * self.shape.rows_per_block
        segment_warps = -(-info[long] // self.shape.nnz_per_warp)
        split = int(info[long].sum())
        warps = np.sum(rows * -(-short_degree // self.shape.nnz_per_warp)) + segment_warps.sum()
        return PartitionStats(
            records=len(blocks),
            bytes=self.blocks.numel() * self.blocks.element_size(),
            warp_level_bytes=RECORD_BYTES * int(warps),
            padding=int(room[short_degree].sum() + self.limit * long.sum()) / self.nnz if self.nnz else 1.0,
            split=split / self.nnz if self.nnz else 0.0,
            empty_rows=self.empty_rows,
            seconds=self.seconds,
        )


def checksum(indptr: Int[Tensor, " rows+1"]) -> bytes:
    """16 bytes that tell one ``indptr`` from another."""
    pointers = np.ascontiguousarray(indptr.detach().cpu().numpy().astype(np.int64, copy=False))
    return hashlib.blake2b(pointers.view(np.uint8).data, digest_size=16).digest()


def reference_partition(
    indptr: NDArray[np.int64], shape: BlockShape
) -> tuple[NDArray[np.int32], NDArray[np.int32 | np.int64]]:
    """Order of rows and records by NumPy: the oracle of the native function and its fallback."""
    degrees = np.diff(indptr)
    order = np.argsort(degrees, kind="stable").astype(np.int32)
    first_long = int(np.count_nonzero(degrees <= shape.limit))
    count = np.bincount(degrees[degrees <= shape.limit], minlength=shape.limit + 1)
    # Where the run of each degree starts, in rows and in non-zeros of the sorted matrix.
    run_row = np.cumsum(count) - count
    run_nonzero = np.cumsum(count * np.arange(len(count)))
    run_nonzero -= count * np.arange(len(count))
    count[0] = 0

    groups = -(-count // shape.rows_per_block)
    degree = np.repeat(np.arange(len(count)), groups)
    offset = _ranges(groups) * shape.rows_per_block[degree]
    rows = np.minimum(shape.rows_per_block[degree], count[degree] - offset)
    short = np.stack(
        [
            degree,
            run_row[degree] + offset,
            run_nonzero[degree] + offset * degree,
            shape.width[degree] << 16 | rows,
        ],
        axis=1,
    )

    long_degrees = degrees[order[first_long:]]
    nonzero = int(indptr[-1]) - long_degrees.sum() + np.cumsum(long_degrees) - long_degrees
    segments = -(-long_degrees // shape.limit)
    row = np.repeat(np.arange(len(long_degrees)), segments)
    offset = _ranges(segments) * shape.limit
    long = np.stack(
        [
            long_degrees[row],
            first_long + row,
            nonzero[row] + offset,
            np.minimum(shape.limit, long_degrees[row] - offset),
        ],
        axis=1,
    )
    return order, np.concatenate([short, long]).astype(_record_type(indptr))


def _ranges(counts: NDArray[Any]) -> NDArray[np.int64]:
    """0 to count - 1 for each count, one after another."""
    ends = np.cumsum(counts, dtype=np.int64)
    result: NDArray[np.int64] = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return result


def _record_type(indptr: NDArray[np.int64]) -> type[np.int32] | type[np.int64]:
    return np.int64 if indptr[-1] >= _WIDE_FROM else np.int32


def _native_partition(
    indptr: NDArray[np.int64], shape: BlockShape
) -> tuple[NDArray[np.int32], NDArray[np.int32 | np.int64]]:
    extension: Any = native.extension()
    order = np.empty(len(indptr) - 1, np.int32)
    extension.sort_by_degree(indptr, order)
    records = extension.count_blocks(indptr, shape.limit, shape.rows_per_block)
    blocks = np.empty((records, 4), _record_type(indptr))
    extension.cut_blocks(indptr, order, shape.limit, shape.rows_per_block, shape.width, blocks)
    return order, blocks
