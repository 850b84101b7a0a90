"""How evenly ways to cut a matrix fill a GPU: a computed schedule, not a timing.

A GPU has ``slots`` places for blocks of ``warps`` warps; blocks start in order, each in the place that is
free first, and a block takes as long as its longest warp has non-zeros. Its end over that of perfectly even
work is the imbalance.
"""

import heapq

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from tradeoff.engines.kernels import BlockPartition, Graph

SLOTS = 1300
"""Blocks of 12 warps that run at once on a large GPU: 108 multiprocessors of 12 blocks."""


def accel_gcn_costs(partition: BlockPartition) -> Int[NDArray[np.int64], " blocks"]:
    """Non-zeros of the longest warp of each block of a partition."""
    blocks = partition.blocks.cpu().numpy().astype(np.int64)
    degree, info = blocks[:, 0], blocks[:, 3]
    segment = np.minimum(info, partition.shape.nnz_per_warp)
    return np.where(degree > partition.limit, segment, info >> 16)


def row_per_warp_costs(graph: Graph, warps: int = 12) -> Int[NDArray[np.int64], " blocks"]:
    """The same where each warp takes one row, in the graph's own order."""
    return _longest_of(graph.degrees().cpu().numpy(), warps)


def warp_chunk_costs(
    graph: Graph, warps: int = 12, nnz_per_warp: int = 32
) -> Int[NDArray[np.int64], " blocks"]:
    """The same where each warp takes at most ``nnz_per_warp`` non-zeros of one row (GNNAdvisor's groups)."""
    degrees = graph.degrees().cpu().numpy()
    chunks = -(-degrees // nnz_per_warp)
    costs = np.full(int(chunks.sum()), nnz_per_warp, np.int64)
    kept = chunks > 0
    costs[np.cumsum(chunks)[kept] - 1] = degrees[kept] - (chunks[kept] - 1) * nnz_per_warp
    return _longest_of(costs, warps)


def makespan(costs: Int[NDArray[np.int64], " blocks"], slots: int = SLOTS) -> int:
    """When the last block ends, if blocks start in order, each where a slot is free first.

    Raises:
        ValueError: fewer than one slot.
    """
    if slots < 1:
        raise ValueError(f"there must be a slot for a block, not {slots}")
    ends = [0] * min(slots, max(1, len(costs)))
    for cost in costs.tolist():
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def imbalance(
    costs: Int[NDArray[np.int64], " blocks"], nnz: int, warps: int = 12, slots: int = SLOTS
) -> float:
    """The makespan over that of even work, ``nnz / (warps * slots)``; 1 for an empty matrix."""
    return makespan(costs, slots) * warps * slots / nnz if nnz else 1.0


def _longest_of(costs: NDArray[np.int64], warps: int) -> NDArray[np.int64]:
    """The largest of each ``warps`` costs."""
    padded = np.zeros(-(-len(costs) // warps) * warps, np.int64)
    padded[: len(costs)] = costs
    longest: NDArray[np.int64] = padded.reshape(-1, warps).max(1, initial=0)
    return longest
