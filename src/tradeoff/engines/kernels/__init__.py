"""Sparse-dense products for graph learning: formats, CPU and GPU kernels, gradients and their cost.

Example::

    from tradeoff.engines.kernels import Graph, cbsr_spmm, cost_meter, maxk, spmm

    graph = Graph.from_edge_index(edge_index, num_nodes=n).normalize("row")
    with cost_meter() as meter:
        y = spmm(graph, x)  # the mean over neighbors
        z = cbsr_spmm(graph, maxk(x, k=32))  # of the 32 largest features of each
    print(meter.flops, meter.bytes_read)
"""

from tradeoff.engines.kernels.backends import KernelInfo, kernel_info
from tradeoff.engines.kernels.errors import BackendError, GraphError, NanError, OperandError
from tradeoff.engines.kernels.functional import CBSR, Partition, cbsr_sddmm, cbsr_spmm, maxk, sddmm, spmm
from tradeoff.engines.kernels.graph import Graph
from tradeoff.engines.kernels.linear import cbsr_linear, sparse_linear
from tradeoff.engines.kernels.meter import Call, Meter, cost_meter
from tradeoff.engines.kernels.partition import BlockPartition, PartitionMismatch, PartitionStats

__all__ = [
    "CBSR",
    "BackendError",
    "BlockPartition",
    "Call",
    "Graph",
    "GraphError",
    "KernelInfo",
    "Meter",
    "NanError",
    "OperandError",
    "Partition",
    "PartitionMismatch",
    "PartitionStats",
    "cbsr_linear",
    "cbsr_sddmm",
    "cbsr_spmm",
    "cost_meter",
    "kernel_info",
    "maxk",
    "sddmm",
    "sparse_linear",
    "spmm",
]
