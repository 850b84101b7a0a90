"""Sparsification of graph networks: train and prune, or sparse training (Peng et al., ICCD 2022)."""

from tradeoff.nn.masks import ADMM, SET, SLR, Explore, MaskSet, RigL, SparseMomentum, Static

from .models import GCN, LinkFNN, NodeFNN, link_loss
from .training import DenseTrainer, Objective, PruneTrainer, Report, SparseTrainer, Splitting
from .walks import skip_gram, temporal_walks

__all__ = [
    "ADMM",
    "GCN",
    "SET",
    "SLR",
    "DenseTrainer",
    "Explore",
    "LinkFNN",
    "MaskSet",
    "NodeFNN",
    "Objective",
    "PruneTrainer",
    "Report",
    "RigL",
    "SparseMomentum",
    "SparseTrainer",
    "Splitting",
    "Static",
    "link_loss",
    "skip_gram",
    "temporal_walks",
]
