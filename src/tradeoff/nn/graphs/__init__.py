"""Adjacency matrices as NumPy arrays, and seeded generators of the graphs that kernels are compared on."""

from tradeoff.nn.graphs.adjacency import Adjacency, from_edges, read_adjacency
from tradeoff.nn.graphs.generators import community, community_labels, power_law, rmat, road, with_degrees
from tradeoff.nn.graphs.published import PUBLISHED, PublishedGraph, like_published, published_degrees
from tradeoff.nn.graphs.specs import NAMED, generate

__all__ = [
    "NAMED",
    "PUBLISHED",
    "Adjacency",
    "PublishedGraph",
    "community",
    "community_labels",
    "from_edges",
    "generate",
    "like_published",
    "power_law",
    "published_degrees",
    "read_adjacency",
    "rmat",
    "road",
    "with_degrees",
]
