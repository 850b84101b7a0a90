"""PyG's layers on these kernels beside PyG's own: equal outputs and gradients, and what is remembered."""

import gc
from typing import Any

import pytest
import torch

pytest.importorskip(
    "torch_geometric", reason="torch-geometric is not installed: pip install 'tradeoff[graphs]'"
)
import torch_geometric.nn as theirs

from tradeoff.engines.kernels import Graph, GraphError, cost_meter, maxk
from tradeoff.engines.kernels import pyg as ours

NODES, WIDTH = 40, 12


def edge_list(seed: int = 0, edges: int = 150, nodes: int = NODES) -> torch.Tensor:
    """Random edges with parallel ones and self-loops; the last nodes are isolated."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes - 4, (2, edges), generator=generator)
    edge_index[:, :5] = edge_index[:, 5:10]
    edge_index[1, 10:14] = edge_index[0, 10:14]
    return edge_index


def both(name: str, *arguments: Any, **options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our layer and PyG's, with the same parameters."""
    torch.manual_seed(1)
    mine, other = getattr(ours, name)(*arguments, **options), getattr(theirs, name)(*arguments, **options)
    other.load_state_dict(mine.state_dict())
    return mine, other


def assert_equal(mine: torch.nn.Module, other: torch.nn.Module, inputs: list[Any], *rest: Any) -> None:
    """Outputs and the gradients of inputs and parameters are equal."""
    results = []
    for layer in (mine, other):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        features = leaves[0] if len(leaves) == 1 else tuple(leaves)
        y = layer(features, *rest)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        layer.zero_grad()
        (y * weights).sum().backward()
        results.append([y, *(x.grad for x in leaves), *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"improved": True},
        {"cached": True},
        {"add_self_loops": False},
        {"normalize": False},
        {"bias": False, "flow": "target_to_source"},
    ],
    ids=str,
)
def test_gcn(dtype: torch.dtype, weighted: bool, options: dict[str, Any]) -> None:
    mine, other = both("GCNConv", WIDTH, 7, **options)
    mine, other = mine.to(dtype), other.to(dtype)
    edges = edge_list()
    weights = torch.rand(edges.shape[1], dtype=dtype) if weighted else None
    x = torch.randn(NODES, WIDTH, dtype=dtype)
    for _ in range(2):  # the second pass finds the graph
        assert_equal(mine, other, [x], edges, weights)


def test_gradient_of_edge_weights() -> None:
    edges = edge_list()
    for options in ({}, {"normalize": False}):
        mine, other = both("GCNConv", WIDTH, 7, **options)
        x = torch.randn(NODES, WIDTH)
        gradients = []
        for layer in (mine, other):
            weights = torch.linspace(0.1, 1, edges.shape[1]).requires_grad_()
            layer(x, edges, weights).square().sum().backward()
            gradients.append(weights.grad)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aggr": "sum"},
        {"aggr": "add", "root_weight": False},
        {"normalize": True, "project": True},
        {"flow": "target_to_source"},
    ],
    ids=str,
)
def test_sage(dtype: torch.dtype, options: dict[str, Any]) -> None:
    mine, other = both("SAGEConv", WIDTH, 7, **options)
    assert_equal(mine.to(dtype), other.to(dtype), [torch.randn(NODES, WIDTH, dtype=dtype)], edge_list())


@pytest.mark.parametrize("train_eps", [False, True])
def test_gin(train_eps: bool) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(WIDTH, 9), torch.nn.ReLU(), torch.nn.Linear(9, 5))
    twin = torch.nn.Sequential(torch.nn.Linear(WIDTH, 9), torch.nn.ReLU(), torch.nn.Linear(9, 5))
    mine = ours.GINConv(network, eps=0.3, train_eps=train_eps)
    other = theirs.GINConv(twin, eps=0.3, train_eps=train_eps)
    other.load_state_dict(mine.state_dict())
    assert_equal(mine, other, [torch.randn(NODES, WIDTH)], edge_list())


def test_bipartite_features() -> None:
    edges = torch.stack([torch.randint(20, (60,)), torch.randint(30, (60,))])
    mine, other = both("SAGEConv", (WIDTH, 5), 7)
    assert_equal(mine, other, [torch.randn(20, WIDTH), torch.randn(30, 5)], edges)
    x = torch.randn(20, WIDTH)
    torch.testing.assert_close(mine((x, None), edges, (20, 30)), other((x, None), edges, (20, 30)))


def test_a_graph_or_a_sparse_matrix_in_place_of_edges() -> None:
    edges = edge_list()
    graph = Graph.from_edge_index(edges, num_nodes=NODES)
    x = torch.randn(NODES, WIDTH)
    gcn, sage = ours.GCNConv(WIDTH, 7), ours.SAGEConv(WIDTH, 7, aggr="sum")
    for layer in (gcn, sage):
        torch.testing.assert_close(layer(x, graph), layer(x, edges))
        torch.testing.assert_close(layer(x, graph.to_torch()), layer(x, edges))


def test_gradient_of_a_sparse_matrix() -> None:
    graph = Graph.from_edge_index(edge_list(), torch.rand(150), NODES)
    layer, x = ours.GCNConv(WIDTH, 7, normalize=False), torch.randn(NODES, WIDTH)
    learned = graph.with_values(graph.values.clone().requires_grad_())
    matrix = graph.to_torch().requires_grad_()
    for given in (learned, matrix):
        for _ in range(2):  # the second backward pass has a graph of its own
            layer(x, given).square().sum().backward()
    torch.testing.assert_close(matrix.grad.values(), learned.values.grad)


def test_layers_and_epochs_share_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = Graph.from_coo
    monkeypatch.setattr(Graph, "from_coo", lambda *arguments: built.append(1) or original(*arguments))
    edges, weights = edge_list(), torch.rand(150)
    layers = [ours.GCNConv(WIDTH, WIDTH) for _ in range(3)]
    x = torch.randn(NODES, WIDTH)
    for _ in range(3):
        for layer in layers:
            x = layer(x, edges, weights)
    assert len(built) == 1
    before = layers[0](x, edges, weights)
    weights.mul_(2).add_(torch.rand(150))  # written to: another matrix
    after = layers[0](x, edges, weights)
    assert len(built) == 2
    assert not torch.allclose(before, after)
    edges[0, 0] = (edges[0, 0] + 1) % 30
    layers[0](x, edges, weights)
    assert len(built) == 3
    layers[0](x, edges, torch.rand(150))  # a new tensor may have the old one's address
    assert len(built) == 4


def test_graphs_that_share_an_array_are_told_apart() -> None:
    """Two matrices with one array of columns: what was made of the first is not taken for the second."""
    columns = torch.tensor([0, 1, 0, 2], dtype=torch.int32)
    pointers = [torch.tensor([0, 2, 4, 4]), torch.tensor([0, 0, 2, 4])]
    first, second = (Graph.from_csr(indptr, columns, num_columns=3) for indptr in pointers)
    assert first.indices is second.indices
    x = torch.randn(3, WIDTH)
    for layer in (ours.SAGEConv(WIDTH, 7), ours.GCNConv(WIDTH, 7), ours.SAGEConv(WIDTH, 7, aggr="sum")):
        alone = layer(x, Graph.from_csr(pointers[1], columns.clone(), num_columns=3))
        assert not torch.allclose(layer(x, first), alone)
        torch.testing.assert_close(layer(x, second), alone)


def test_graphs_forget_what_they_made_when_weights_are_written_to() -> None:
    graph = Graph.from_edge_index(edge_list(), torch.rand(150), NODES)
    layer, x = ours.GCNConv(WIDTH, 7), torch.randn(NODES, WIDTH)
    before = layer(x, graph)
    assert torch.equal(layer(x, graph), before)
    graph.values.copy_(torch.rand(graph.nnz))
    fresh = Graph(graph.structure, graph.values.clone())
    torch.testing.assert_close(layer(x, graph), layer(x, fresh))
    assert not torch.allclose(layer(x, graph), before)
    learned = graph.with_values(graph.values.clone().requires_grad_())
    layer(x, learned).sum().backward()
    layer(x, learned).sum().backward()  # not a graph that was freed after the first
    assert learned.values.grad is not None


def living_graphs() -> int:
    gc.collect()
    return sum(type(each) is Graph for each in gc.get_objects())


@pytest.mark.parametrize("form", ["edges", "graph", "sparse"])
def test_nothing_outlives_the_edges(form: str) -> None:
    before = living_graphs()
    edges = edge_list()
    if form == "edges":
        given = edges
    else:
        graph = Graph.from_edge_index(edges, num_nodes=NODES)
        given = graph if form == "graph" else graph.to_torch()
        del graph
    x = torch.randn(NODES, WIDTH)
    for layer in (ours.GCNConv(WIDTH, 7), ours.SAGEConv(WIDTH, 7), ours.SAGEConv(WIDTH, 7, aggr="sum")):
        layer(x, given)
    assert living_graphs() >= before + 3
    del given, edges
    assert living_graphs() == before


def test_layers_run_on_the_kernels_and_compressed_features_count_less() -> None:
    edges, x = edge_list(), torch.randn(NODES, WIDTH)
    torch.manual_seed(0)
    dense, sparse = ours.SAGEConv(WIDTH, 7), ours.SAGEConv(WIDTH, 7, k=3)
    sparse.load_state_dict(dense.state_dict())
    with cost_meter() as full:
        dense(x, edges)
    with cost_meter() as compressed:
        y = sparse(x, edges)
    assert compressed.flops < full.flops
    kept = maxk(x, 3)
    torch.testing.assert_close(y, dense((kept.to_dense(), x), edges))
    torch.testing.assert_close(y, dense((kept, x), edges))
    gcn = ours.GCNConv(WIDTH, 7, k=2)
    graph = Graph.from_edge_index(edges, num_nodes=NODES).normalize("sym", self_loops=True)
    expected = ours.aggregate(graph, maxk(gcn.lin(x), 2).to_dense()) + gcn.bias
    torch.testing.assert_close(gcn(x, edges), expected)


def test_subclasses_stay_on_the_kernels() -> None:
    class Mine(ours.SAGEConv):
        pass

    with cost_meter() as meter:
        Mine(WIDTH, 7)(torch.randn(NODES, WIDTH), edge_list())
    assert meter.flops


def test_what_does_not_fit_is_named() -> None:
    x = torch.randn(NODES, WIDTH)
    with pytest.raises(ValueError, match="aggregates by mean or sum, not 'max'"):
        ours.SAGEConv(WIDTH, 7, aggr="max")
    with pytest.raises(ValueError, match="aggregates by sum"):
        ours.GINConv(torch.nn.Identity(), aggr="mean")
    layer = ours.GCNConv(WIDTH, 7)
    with pytest.raises(GraphError, match="must be from 0 to 39"):
        layer(x, torch.tensor([[0, 40], [1, 2]]))
    with pytest.raises(GraphError, match="shape"):
        layer(x, torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(GraphError, match="does not fit"):
        layer(x, Graph.from_edge_index(torch.tensor([[0], [1]]), num_nodes=5))
    graph = Graph.from_edge_index(edge_list(), num_nodes=NODES)
    for matrix in (graph, graph.to_torch()):
        layer(x, matrix)
        with pytest.raises(GraphError, match="edge_weight goes with an edge list"):
            layer(x, matrix, torch.ones(graph.nnz))
    with pytest.raises(GraphError, match="edge_weight has shape"):
        layer(x, edge_list(), torch.rand(3))
    with pytest.raises(GraphError, match="takes an edge list"):
        ours.GCNConv(WIDTH, 7, improved=True)(x, Graph.from_edge_index(edge_list(), num_nodes=NODES))
    with pytest.raises(GraphError, match="does not fit"):
        layer(x, torch.eye(5).to_sparse())
