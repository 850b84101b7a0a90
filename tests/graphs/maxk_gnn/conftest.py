"""Small graphs and a slow network for the tests of MaxK-GNN."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tradeoff.engines.kernels import Graph
from tradeoff.methods.graphs.maxk_gnn import MaxKGNN, NodeSplits
from tradeoff.methods.graphs.maxk_gnn.dropout import dropout as draw_dropout


def random_graph(nodes: int, degree: int, seed: int = 0) -> Graph:
    """Directed, without weights; the last node has no neighbors."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(nodes - 1, (nodes * degree,), generator=generator)
    sources = torch.randint(nodes, (nodes * degree,), generator=generator)
    coalesced = Graph.from_coo(targets, sources, shape=(nodes, nodes))
    return coalesced.with_values(None)


@pytest.fixture
def graph() -> Graph:
    return random_graph(60, 5)


@pytest.fixture
def splits() -> NodeSplits:
    place = torch.arange(60) % 4
    return NodeSplits(place < 2, place == 2, place == 3)


def slow_select(x: Tensor, k: int) -> Tensor:
    """The mask of the k largest of each row, ties to the lowest column, by sorting Python tuples."""
    mask = torch.zeros(x.shape, dtype=torch.bool)
    for row, values in enumerate(x.tolist()):
        order = sorted(range(len(values)), key=lambda column: (-values[column], column))
        mask[row, order[:k]] = True
    return mask


def simulated(model: MaxKGNN) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The model's function with dense masks, dense adjacency and dropout drawn as the model draws it.

    Returns:
        ``forward(dense_graph, x, dropout)``.
    """

    def forward(adjacency: Tensor, x: Tensor, dropout: float) -> Tensor:
        x = nn.functional.linear(x, model.first.weight, model.first.bias)
        if model.kind != "sage":
            x = x.relu()
        for block, k in zip(model.blocks, model.k, strict=True):
            if model.kind != "sage":
                x = nn.functional.linear(x, block.weights.weight, block.weights.bias)
            mask = slow_select(x, k)
            kept = draw_dropout(torch.ones(len(x), k, dtype=x.dtype), dropout, True)
            h = x * torch.zeros_like(x).masked_scatter(mask, kept)
            if model.kind == "sage":
                own = nn.functional.linear(h, block.self_weights.weight)
                neighbor = nn.functional.linear(adjacency @ h, block.neighbor_weights.weight)
                x = own + neighbor + block.neighbor_weights.bias
            elif model.kind == "gcn":
                x = adjacency @ h + block.bias
            else:
                x = (1 + block.epsilon) * h + adjacency @ h
            x = block.norm(x)
        return nn.functional.linear(x, model.last.weight, model.last.bias)

    return forward
