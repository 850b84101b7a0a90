"""Random walks that go forward in time, and node embeddings learned from them.

Walks: Nguyen et al., "Continuous-Time Dynamic Network Embeddings", 2018. Embeddings: skip-gram with negative
sampling, Mikolov et al., 2013.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.core.errors import DataError

END = -1
"""Stands where a walk has ended."""


def temporal_walks(
    sources: Int64[np.ndarray, " events"],
    targets: Int64[np.ndarray, " events"],
    times: np.ndarray,
    *,
    per_node: int = 10,
    length: int = 6,
    generator: np.random.Generator,
) -> tuple[Int64[np.ndarray, "walks length"], Int64[np.ndarray, "walks steps"]]:
    """Walks along events whose times never decrease, from every node that has an event of its own.

    Each starts with an event of its node, drawn evenly, and goes on with one of its current node's events
    that is not earlier than the last, drawn evenly, until there is none. Events may come in any order and
    share times.

    Args:
        sources, targets, times: of the events; an event of a node with itself is left out.
        per_node: walks that start at each node.
        length: nodes of a walk at most.

    Returns:
        The nodes of each walk, and the events between them, one fewer; :data:`END` after the last.

    Raises:
        DataError: there are no events, or their three arrays differ in length.
    """
    if not len(sources) == len(targets) == len(times):
        raise DataError(
            f"{len(sources)} sources, {len(targets)} targets and {len(times)} times are no events"
        )
    between_two = np.flatnonzero(np.asarray(sources) != targets)
    if not len(between_two):
        raise DataError("there is no event between two nodes to walk along")
    # Ranks stand for times, so that (source, time) is one integer and a binary search finds what may follow.
    _, ranks = np.unique(times, return_inverse=True)
    stride = int(ranks.max()) + 2
    keys = np.asarray(sources, dtype=np.int64) * stride + ranks
    order = between_two[np.argsort(keys[between_two], kind="stable")]
    keys = keys[order]

    starts = np.repeat(np.unique(np.asarray(sources)[order]), per_node)
    nodes = np.full((len(starts), length), END, dtype=np.int64)
    events = np.full((len(starts), length - 1), END, dtype=np.int64)
    nodes[:, 0] = starts
    rank = np.zeros(len(starts), dtype=np.int64)
    alive = np.arange(len(starts))
    for step in range(length - 1):
        here = nodes[alive, step] * stride
        first, last = np.searchsorted(keys, here + rank[alive]), np.searchsorted(keys, here + stride)
        alive, first, last = (array[last > first] for array in (alive, first, last))
        event = order[generator.integers(first, last)] if len(alive) else alive
        events[alive, step], nodes[alive, step + 1] = event, np.asarray(targets)[event]
        rank[alive] = ranks[event]
    return nodes, events


def skip_gram(
    walks: Int64[np.ndarray, "walks length"],
    num_nodes: int,
    *,
    dimension: int = 8,
    window: int = 5,
    negatives: int = 5,
    epochs: int = 5,
    batch_size: int = 4096,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> Float[Tensor, "nodes dimension"]:
    """Embeddings under which nodes are near whose walks meet the same nodes.

    Args:
        walks: of :func:`temporal_walks`.
        window: steps of a walk between two nodes that count as neighbors, at most.
        negatives: nodes drawn by their frequency to the power 0.75 for each pair.

    Returns:
        One row a node; that of a node on no walk is zero.

    Raises:
        DataError: no walk has two nodes.
    """
    centers, contexts = _pairs(walks, window)
    if not len(centers):
        raise DataError("no walk has two nodes to learn from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner, outer = (nn.Embedding(num_nodes, dimension, sparse=True) for _ in range(2))
        nn.init.uniform_(inner.weight, -0.5 / dimension, 0.5 / dimension)
        nn.init.zeros_(outer.weight)
        optimizer = torch.optim.SparseAdam([inner.weight, outer.weight], lr=learning_rate)
        frequency = torch.bincount(contexts, minlength=num_nodes).double() ** 0.75
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(centers)), batch_size):
                center = inner(centers[batch])
                drawn = torch.multinomial(frequency, len(batch) * negatives, replacement=True)
                near = (center * outer(contexts[batch])).sum(1)
                far = (center[:, None] * outer(drawn.view(-1, negatives))).sum(2)
                loss = functional.softplus(-near).sum() + functional.softplus(far).sum()
                optimizer.zero_grad()
                (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()  # type: ignore[no-untyped-call]
    on_a_walk = torch.zeros(num_nodes, 1).index_fill_(0, torch.unique(centers), 1)
    return inner.weight.detach() * on_a_walk


def _pairs(walks: np.ndarray, window: int) -> tuple[Tensor, Tensor]:
    """Nodes at most ``window`` steps apart on a walk, each as the center and as the context."""
    found = []
    for distance in range(1, min(window, walks.shape[1] - 1) + 1):
        left, right = walks[:, :-distance].ravel(), walks[:, distance:].ravel()
        both = right != END
        found += [(left[both], right[both]), (right[both], left[both])]
    centers, contexts = (np.concatenate(column) for column in zip(*found, strict=True)) if found else ((), ())
    return torch.as_tensor(centers), torch.as_tensor(contexts)
