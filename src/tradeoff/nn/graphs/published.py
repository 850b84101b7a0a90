"""Stand-ins for the 18 graphs that Accel-GCN was measured on (Xie et al., ICCAD 2023): same size and degrees.

What a kernel's balance depends on is the degree sequence. Of 16 graphs it is known exactly, from the
partitions that the paper's authors published. Of the other two (products, reddit) nodes and edges are; their
largest degree is an assumption, and the rest is log-normal. Which node is joined to which is random: locality
and accuracy cannot be learned from these.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from tradeoff.nn.graphs.adjacency import Adjacency
from tradeoff.nn.graphs.arrays import load_npz
from tradeoff.nn.graphs.generators import with_degrees

DEGREES_FILE = Path(__file__).with_name("published_degrees.npz")
"""Graph -> uint32 ``(2, distinct)``: degrees, and how many rows have each."""


@dataclass(frozen=True)
class PublishedGraph:
    """Size of a public graph.

    Attributes:
        nodes: rows of its matrix.
        edges: stored entries of it.
        max_degree: of a row; assumed where not ``exact``.
        exact: whether its whole degree sequence is known.
    """

    nodes: int
    edges: int
    max_degree: int
    exact: bool = True


PUBLISHED = {
    "am": PublishedGraph(881_680, 5_668_682, 154_828),
    "amazon0601": PublishedGraph(403_394, 5_478_357, 2_547),
    "artist": PublishedGraph(50_515, 1_638_396, 1_469),
    "arxiv": PublishedGraph(169_343, 1_166_243, 13_155),
    "citation": PublishedGraph(2_927_963, 30_387_995, 1_738),
    "collab": PublishedGraph(235_868, 2_358_104, 671),
    "com-amazon": PublishedGraph(334_863, 1_851_744, 549),
    "ovcar-8h": PublishedGraph(1_889_542, 3_946_402, 5),
    "ppa": PublishedGraph(576_289, 42_463_862, 3_241),
    "products": PublishedGraph(2_449_029, 123_718_280, 17_481, exact=False),
    "pubmed": PublishedGraph(19_717, 99_203, 171),
    "reddit": PublishedGraph(232_965, 114_615_891, 21_657, exact=False),
    "sw-620h": PublishedGraph(1_888_584, 3_944_206, 5),
    "twitter-partial": PublishedGraph(580_768, 1_435_116, 12),
    "wikikg2": PublishedGraph(2_500_604, 16_109_182, 911),
    "yeast": PublishedGraph(1_710_902, 3_636_546, 6),
    "yelp": PublishedGraph(716_847, 13_954_819, 4_886),
    "youtube": PublishedGraph(1_138_499, 5_980_886, 28_754),
}
"""The graphs of the paper's comparison, by lower-case name."""


def like_published(name: str, seed: int = 0) -> Adjacency:
    """A directed random graph with the nodes, edges and row degrees of a published one.

    Raises:
        ValueError: the name is none of :data:`PUBLISHED`.
    """
    return with_degrees(published_degrees(name, seed), seed, f"like:{name}")


def published_degrees(name: str, seed: int = 0) -> Int64[np.ndarray, " nodes"]:
    """The degree of each row of a published graph, rows in a random order.

    Raises:
        ValueError: the name is none of :data:`PUBLISHED`.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published graph {name!r}; there are: {', '.join(PUBLISHED)}")
    graph = PUBLISHED[name]
    degrees = _known_degrees(name) if graph.exact else _log_normal_degrees(graph)
    shuffled: Int64[np.ndarray, " nodes"] = np.random.Generator(np.random.PCG64(seed)).permutation(degrees)
    return shuffled


@cache
def _known_degrees(name: str) -> np.ndarray:
    degrees, rows = load_npz(DEGREES_FILE, (name,))[name].astype(np.int64)
    return np.repeat(degrees, rows)


@cache
def _log_normal_degrees(graph: PublishedGraph) -> np.ndarray:
    """Log-normal quantiles, the deviation found by bisection, so that sum and maximum come out."""
    from scipy.special import ndtri

    normal = ndtri((np.arange(graph.nodes) + 0.5) / graph.nodes)
    low, high = 0.0, 5.0
    for _ in range(40):
        deviation = (low + high) / 2
        degrees = np.exp(deviation * (normal - normal[-1])) * graph.max_degree
        low, high = (deviation, high) if degrees.sum() > graph.edges else (low, deviation)
    whole = np.maximum(np.floor(degrees), 1).astype(np.int64)
    # Rounding down lost less than one entry a row; the smallest rows but the hub take them up again.
    lost = graph.edges - int(whole.sum())
    whole[:lost] += 1
    return np.asarray(whole)
