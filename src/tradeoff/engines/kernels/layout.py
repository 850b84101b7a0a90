"""A matrix with its rows sorted by degree, as kernels that work on blocks read it."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.kernels.partition import BlockPartition
from tradeoff.engines.kernels.reference import row_of_entry


@dataclass(eq=False)
class BucketLayout:
    """Entries of a CSR matrix in the order of a partition's rows. Columns keep their numbers.

    Attributes:
        partition: the blocks.
        indptr: row pointers of the sorted matrix, int64.
        indices: its columns.
        entries: where each of its entries stands in the matrix itself.
        number: by which operators, which take tensors and numbers only, find it (:func:`layout_of`).
    """

    partition: BlockPartition
    indptr: Int[Tensor, " rows+1"]
    indices: Int[Tensor, " nnz"]
    entries: Int[Tensor, " nnz"]
    number: int = field(default_factory=itertools.count(1).__next__, init=False)
    _sorted: tuple[weakref.ref[Tensor], int, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _layouts[self.number] = self

    @classmethod
    def of(
        cls, partition: BlockPartition, indptr: Int[Tensor, " rows+1"], indices: Int[Tensor, " nnz"]
    ) -> BucketLayout:
        """Sort the rows of a matrix as its partition says.

        Raises:
            PartitionMismatch: the partition is another matrix's.
        """
        partition.check(indptr)
        order = partition.order.long()
        sorted_pointers = torch.zeros_like(indptr)
        torch.cumsum(indptr.diff()[order], 0, out=sorted_pointers[1:])
        shift = indptr[:-1][order] - sorted_pointers[:-1]
        nnz = indices.numel()
        entries = torch.arange(nnz, device=indices.device)
        entries += shift[row_of_entry(sorted_pointers, nnz)]
        return cls(partition, sorted_pointers, indices[entries], entries)

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """Blocks that hold as many rows: (first block, blocks, rows of a full block); long rows left out."""
        degrees = self.partition.blocks[: -self.partition.segments or None, 0].cpu().long()
        rows = torch.from_numpy(self.partition.shape.rows_per_block)[degrees]
        kinds, counts = torch.unique_consecutive(rows, return_counts=True)
        firsts = (counts.cumsum(0) - counts).tolist()
        return list(zip(firsts, counts.tolist(), kinds.tolist(), strict=True))

    @cached_property
    def order(self) -> Int[Tensor, " rows"]:
        """The partition's order of rows, int64."""
        return self.partition.order.long()

    @cached_property
    def empty_rows(self) -> Int[Tensor, " empty"]:
        """Rows without entries, which no block writes, int64."""
        return self.order[: self.partition.empty_rows]

    @cached_property
    def long_rows(self) -> Int[Tensor, " long"]:
        """Rows that are cut into segments, int64."""
        first = torch.unique_consecutive(self._segment_rows)
        return self.order[first]

    @cached_property
    def segment_bounds(self) -> Int[Tensor, " long+1"]:
        """First segment of each long row, and the number of segments, int64."""
        _, counts = torch.unique_consecutive(self._segment_rows, return_counts=True)
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    @property
    def _segment_rows(self) -> Int[Tensor, " segments"]:
        return self.partition.blocks[len(self.partition.blocks) - self.partition.segments :, 1].long()

    def sort(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        """Weights in the order of :attr:`entries`."""
        return values.index_select(0, self.entries)

    def sorted_once(self, values: Float[Tensor, " nnz"]) -> Float[Tensor, " nnz"]:
        """As :meth:`sort`, kept for the next call with the same weights."""
        if self._sorted is not None:
            known, version, result = self._sorted
            if known() is values and version == values._version:
                return result
        result = self.sort(values)
        self._sorted = (weakref.ref(values), values._version, result)
        return result


_layouts: weakref.WeakValueDictionary[int, BucketLayout] = weakref.WeakValueDictionary()


def layout_of(number: int) -> BucketLayout | None:
    """The layout of that number, while it lives."""
    return _layouts.get(number)
