"""Graphs with features and labels for the study and the commands, by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tradeoff.engines.kernels import Graph
from tradeoff.nn.graphs import NAMED, Adjacency, community_labels, generate

from .training import NodeSplits

_COMMUNITIES, _FEATURES = 41, 64
_SIGNAL = 0.3
"""Of the class in a generated node's features, whose noise is 1: neighbors are needed to tell classes apart."""


@dataclass(frozen=True)
class NodeData:
    """A graph whose nodes are to be classified.

    Attributes:
        graph: the adjacency matrix A[target, source], as it is.
        x: features.
        y: classes.
    """

    graph: Graph
    x: Float[Tensor, "n features"]
    y: Int[Tensor, " n"]
    splits: NodeSplits

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return int(self.y.max()) + 1


@lru_cache(maxsize=2)
def load_nodes(name: str) -> NodeData:
    """A graph by name.

    Args:
        name: a data set of :mod:`tradeoff.data.graphs`, or a generated graph such as ``reddit23k`` or
            ``community:NODES:DEGREE:COMMUNITIES``, which gets noisy features, and its communities as classes.

    Raises:
        DataError: no such data set, or it is not here.
        ValueError: no such generator, or a number of it is wrong.
    """
    if name in NAMED or ":" in name:
        return _generated(name)
    raise NotImplementedError


def _generated(name: str) -> NodeData:
    adjacency = generate(name)
    numbers = NAMED.get(name, name).split(":")
    communities = int(numbers[3]) if numbers[0] == "community" and len(numbers) > 3 else _COMMUNITIES
    labels = torch.from_numpy(community_labels(adjacency.num_nodes, communities))
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(communities, _FEATURES, generator=generator)
    noise = torch.randn(adjacency.num_nodes, _FEATURES, generator=generator)
    place = torch.rand(adjacency.num_nodes, generator=generator)
    splits = NodeSplits(place < 0.5, (place >= 0.5) & (place < 0.75), place >= 0.75)
    return NodeData(to_graph(adjacency), _SIGNAL * means[labels] + noise, labels, splits)


def to_graph(adjacency: Adjacency) -> Graph:
    """The matrix as the kernels take it; arrays are shared."""
    values = None if adjacency.values is None else torch.from_numpy(adjacency.values)
    indptr, indices = (torch.from_numpy(np.asarray(part)) for part in (adjacency.indptr, adjacency.indices))
    return Graph.from_csr(indptr, indices, values)
