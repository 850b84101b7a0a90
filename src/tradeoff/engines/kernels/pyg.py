"""PyTorch Geometric's layers on the kernels of this engine: swap one import, keep the rest.

::

    from tradeoff.engines.kernels.pyg import GCNConv  # was: from torch_geometric.nn import GCNConv

The layers are PyG's own with another ``propagate``: same arguments, parameters, ``state_dict`` and results,
gradients included. An edge list becomes a :class:`Graph` at its first use and is recognized afterwards by
identity, so that layers and epochs share the sorting and the transpose, for as long as the edge list lives; a
:class:`Graph` or a torch sparse matrix may be given in its place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from tradeoff.engines.kernels.errors import GraphError
from tradeoff.engines.kernels.functional import CBSR, cbsr_spmm, maxk, spmm
from tradeoff.engines.kernels.graph import Graph
from tradeoff.engines.kernels.partition import BlockPartition

Edges = Tensor | Graph
"""PyG's edge list [2, edges], a torch sparse matrix A[target, source], or a :class:`Graph`."""

_MOST_REMEMBERED = 8  # forms (normalizations, weights) of one edge list
_remembered: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def aggregate(graph: Graph, x: Float[Tensor, "m d"] | CBSR, **options: Any) -> Float[Tensor, "n d"]:
    """The weighted sum over neighbors of dense or compressed features; ``options`` are of :func:`spmm`."""
    return cbsr_spmm(graph, x) if isinstance(x, CBSR) else spmm(graph, x, **options)


class _Kernels(torch_geometric.nn.MessagePassing):  # type: ignore[misc]
    """What the layers share: no templates of PyG, and messages that may be compressed.

    Attributes:
        k: if given, neighbors send the k largest of their features only (MaxK-GNN, Peng et al., ASPLOS 2024).
        strategy, partition: how dense features are multiplied; see :func:`spmm`.
    """

    def __init__(
        self,
        *arguments: Any,
        k: int | None = None,
        strategy: str = "auto",
        partition: BlockPartition | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.k = k
        self.strategy = strategy
        self.partition = partition

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """PyG would replace ``propagate`` by one that it generates."""

    def _aggregate(self, graph: Graph, x: Tensor | CBSR) -> Tensor:
        features = x if self.k is None or isinstance(x, CBSR) else maxk(x, self.k)
        return aggregate(graph, features, strategy=self.strategy, partition=self.partition)


class GCNConv(_Kernels, torch_geometric.nn.GCNConv):  # type: ignore[misc]
    """The graph convolution of Kipf and Welling.

    From "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017. Arguments and shapes
    are those of ``torch_geometric.nn.GCNConv``, and ``k`` (send the k largest features only), ``strategy``
    and ``partition`` (of :func:`spmm`).

    X' = D^-1/2 A D^-1/2 X W + b with A including self-loops and D its row sums.
    """

    _cached_edge_index: Any  # PyG clears it with the parameters

    def forward(
        self,
        x: Float[Tensor, "nodes in"],
        edge_index: Edges,
        edge_weight: Float[Tensor, " edges"] | None = None,
    ) -> Float[Tensor, "nodes out"]:
        """Apply the layer.

        Raises:
            GraphError: a node is out of range, or weights do not fit the edges.
        """
        graph = self._normalized(x, edge_index, edge_weight)
        out = self._aggregate(graph, self.lin(x))
        return out if self.bias is None else out + self.bias

    def _normalized(self, x: Tensor, edges: Edges, weights: Tensor | None) -> Graph:
        if self.cached and self._cached_edge_index is not None:
            cached: Graph = self._cached_edge_index
            return cached
        dtype, size = _weight_dtype(x), (len(x), len(x))

        def build() -> Graph:
            if not self.normalize:
                return _typed(_matrix(edges, weights, size, self.flow), dtype)
            if isinstance(edges, Tensor) and edges.layout == torch.strided:
                _check_list(edges, weights, len(x))
                normalized, scaled = gcn_norm(
                    edges, weights, len(x), self.improved, self.add_self_loops, self.flow, dtype
                )
                return _typed(_matrix(normalized, scaled, size, self.flow), dtype)
            if self.improved:
                raise GraphError("improved=True takes an edge list")
            graph = _weighted(_matrix(edges, weights, size, self.flow), dtype)
            return graph.normalize("sym", self_loops=self.add_self_loops)

        key = ("gcn", self.normalize, self.add_self_loops, self.improved, self.flow, size, dtype)
        graph = _remember(edges, weights, key, build)
        if self.cached:
            self._cached_edge_index = graph
        return graph


class SAGEConv(_Kernels, torch_geometric.nn.SAGEConv):  # type: ignore[misc]
    """The layer of Hamilton et al., "Inductive Representation Learning on Large Graphs", NeurIPS 2017.

    Arguments and shapes are those of ``torch_geometric.nn.SAGEConv`` with ``aggr`` ``mean`` or ``sum``, and
    ``k`` (send the k largest features only), ``strategy`` and ``partition`` (of :func:`spmm`). In a pair of
    features the first may be compressed (:class:`CBSR`).

    x'_i = W_1 x_i + W_2 mean_j x_j
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _check_sum(self, ("mean", "sum", "add"))

    def propagate(self, edge_index: Edges, size: Any = None, *, x: Any) -> Tensor:
        """The mean (or sum) over the sources of each target."""
        return _propagate(self, edge_index, size, x, mean=self.aggr == "mean")


class GINConv(_Kernels, torch_geometric.nn.GINConv):  # type: ignore[misc]
    """The layer of Xu et al., "How Powerful are Graph Neural Networks?", ICLR 2019.

    Arguments and shapes are those of ``torch_geometric.nn.GINConv``, and ``k`` (send the k largest features
    only), ``strategy`` and ``partition`` (of :func:`spmm`).

    x'_i = h((1 + eps) x_i + sum_j x_j)
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _check_sum(self, ("sum", "add"))

    def propagate(self, edge_index: Edges, size: Any = None, *, x: Any) -> Tensor:
        """The sum over the sources of each target."""
        return _propagate(self, edge_index, size, x, mean=False)


def _propagate(layer: _Kernels, edges: Edges, size: Any, x: Any, mean: bool) -> Tensor:
    sources, targets = x
    num_sources = sources.shape[0]
    if targets is not None:
        num_targets = len(targets)
    elif size is not None:
        num_targets = size[1] if layer.flow == "source_to_target" else size[0]
    else:
        num_targets = num_sources
    size_of = (num_targets, num_sources)
    dtype = _weight_dtype(sources.values if isinstance(sources, CBSR) else sources)

    def build() -> Graph:
        graph = _matrix(edges, None, size_of, layer.flow)
        return _weighted(graph, dtype).normalize("row") if mean else _typed(graph, dtype)

    graph = _remember(edges, None, ("mean" if mean else "sum", layer.flow, size_of, dtype), build)
    return layer._aggregate(graph, sources)


def _check_sum(layer: Any, known: tuple[str, ...]) -> None:
    if layer.aggr not in known:
        raise ValueError(
            f"{type(layer).__name__} on these kernels aggregates by {' or '.join(known[:2])}, "
            f"not {layer.aggr!r}: take torch_geometric's own layer"
        )


def _matrix(edges: Edges, weights: Tensor | None, size: tuple[int, int], flow: str) -> Graph:
    """The matrix of ``edges``, of ``size`` (targets, sources).

    Raises:
        GraphError: the edges do not fit.
    """
    if isinstance(edges, Tensor) and edges.layout == torch.strided:
        _check_list(edges, weights, max(size))
        source, target = edges if flow == "source_to_target" else edges.flip(0)
        return Graph.from_coo(target, source, weights, size)
    if isinstance(edges, Tensor):
        csr = edges.to_sparse_csr()
        # The values of a sparse tensor are a view that keeps it alive.
        values = csr.values() if csr.requires_grad else csr.values().detach()
        edges = Graph.from_csr(csr.crow_indices(), csr.col_indices(), values, csr.shape[1])
    if edges.shape != size:
        raise GraphError(f"{edges} does not fit {size[1]} sources and {size[0]} targets")
    return edges


def _check_list(edges: Tensor, weights: Tensor | None, nodes: int) -> None:
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise GraphError(f"edge_index has shape (2, edges), not {tuple(edges.shape)}")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
        raise GraphError(
            f"edge_index has nodes {int(edges.min())} to {int(edges.max())}, must be from 0 to {nodes - 1}"
        )
    if weights is not None and weights.shape != edges.shape[1:]:
        raise GraphError(f"edge_weight has shape {tuple(weights.shape)} for {edges.shape[1]} edges")


def _weight_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _typed(graph: Graph, dtype: torch.dtype) -> Graph:
    """The graph with weights, if it has any, of that type."""
    return graph if graph.values is None else graph.with_values(graph.values.to(dtype))


def _weighted(graph: Graph, dtype: torch.dtype) -> Graph:
    """The graph with weights of that type, ones if it has none."""
    if graph.values is None:
        return graph.with_values(torch.ones(graph.nnz, dtype=dtype, device=graph.device))
    return _typed(graph, dtype)


def _remember(
    edges: Edges, weights: Tensor | None, key: tuple[Any, ...], build: Callable[[], Graph]
) -> Graph:
    """What ``build`` gave for these very edges, unless one was written to since; else what it gives.

    A graph keeps what was made of it itself; an edge list, which cannot, is looked up by identity.
    """
    if weights is not None and (isinstance(edges, Graph) or edges.layout != torch.strided):
        raise GraphError("edge_weight goes with an edge list; a matrix has weights of its own")
    if isinstance(edges, Graph):
        return edges.derived(key, build)
    if edges.requires_grad or (weights is not None and weights.requires_grad):
        return build()
    if edges not in _remembered:
        _remembered[edges] = {}
    known: dict[Any, tuple[Any, Graph]] = _remembered[edges]
    key = (*key, edges._version, None if weights is None else (id(weights), weights._version))
    if key in known:
        weight_of, graph = known[key]
        if weight_of is None or weight_of() is weights:
            return graph
    if len(known) >= _MOST_REMEMBERED:
        known.clear()
    graph = build()
    known[key] = (None if weights is None else weakref.ref(weights), graph)
    return graph
