"""Graphs with features and labels for the study and the commands, by name."""

from __future__ import annotations

from functools import lru_cache

import torch

from tradeoff.data.graphs import NodeData, load, load_structure
from tradeoff.engines.kernels import Graph
from tradeoff.nn.graphs import NAMED, community_labels

_COMMUNITIES, _FEATURES = 41, 64
_SIGNAL = 0.3
"""Of the class in a generated node's features, whose noise is 1: without neighbors classes look alike."""


@lru_cache(maxsize=2)
def load_nodes(name: str) -> tuple[NodeData, Graph]:
    """A graph by name, and its adjacency matrix as the kernels take it.

    Args:
        name: a data set of :mod:`tradeoff.data.graphs`, or a generated graph such as ``reddit23k`` or
            ``community:NODES:DEGREE:COMMUNITIES``, which gets noisy features, and its communities as classes.

    Raises:
        DataError: no such data set or generator, a number of it is wrong, or the data is not here.
    """
    data = _generated(name) if name in NAMED or ":" in name else load(name)
    return data, Graph.from_adjacency(data.graph)


def _generated(name: str) -> NodeData:
    adjacency = load_structure(name)
    numbers = NAMED.get(name, name).split(":")
    communities = int(numbers[3]) if numbers[0] == "community" and len(numbers) > 3 else _COMMUNITIES
    labels = torch.from_numpy(community_labels(adjacency.num_nodes, communities))
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(communities, _FEATURES, generator=generator)
    noise = torch.randn(adjacency.num_nodes, _FEATURES, generator=generator)
    place = torch.rand(adjacency.num_nodes, generator=generator)
    return NodeData(
        name=name,
        graph=adjacency,
        x=_SIGNAL * means[labels] + noise,
        y=labels,
        train=place < 0.5,
        validation=(place >= 0.5) & (place < 0.75),
        test=place >= 0.75,
        num_classes=communities,
        origin="generated",
    )
