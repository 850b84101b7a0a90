"""Accel-GCN: balanced sparse products by degree-sorted blocks (Xie et al., ICCAD 2023)."""

from tradeoff.engines.kernels import BlockPartition

from .bench import PEERS, ProductTimes, check_product, peer_products, time_products
from .model import GCN
from .scheduling import accel_gcn_costs, imbalance, makespan, row_per_warp_costs, warp_chunk_costs
from .training import Trained, train

__all__ = [
    "GCN",
    "PEERS",
    "BlockPartition",
    "ProductTimes",
    "Trained",
    "accel_gcn_costs",
    "check_product",
    "imbalance",
    "makespan",
    "peer_products",
    "row_per_warp_costs",
    "time_products",
    "train",
    "warp_chunk_costs",
]
