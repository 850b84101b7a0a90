"""Graph networks whose hidden features are compressed by MaxK: SAGE, GCN and GIN (MaxK-GNN, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.engines.kernels import CBSR, Graph, cbsr_linear, sparse_linear, spmm
from tradeoff.engines.kernels.errors import NanError

from .activation import MaxK
from .aggregation import AGGREGATIONS, Aggregation, aggregate
from .dropout import dropout
from .errors import KMismatch, ModelError, NanActivation

Kind = Literal["sage", "gcn", "gin"]
NORMALIZATIONS: dict[Kind, str] = {"sage": "row", "gcn": "sym", "gin": "none"}
"""How the adjacency matrix of each kind of network is scaled: mean, symmetric, sum."""
SPARSE_LINEAR_FROM = 8
"""From this d / k on, compressed features are multiplied by weights as they are, which is faster there."""
SPARSE_FEATURES_FROM = 16
"""From one feature in so many that is not 0 on, a node's features are multiplied as a sparse matrix."""
_MOST_HIDDEN = 32_768


class MaxKGNN(nn.Module):
    """A graph network with MaxK, or with ReLU, as its nonlinearity.

    Linear layer to the hidden width, blocks, linear layer to the classes; weights are Xavier-uniform. In a
    block ``h = dropout(MaxK(.))``, kept compressed as k values and columns, and

    * ``sage``: ``x = W_self h + W_neighbors mean_j h_j + b`` with ``h`` of x itself;
    * ``gcn``: ``x = D^-1/2 A D^-1/2 h + b`` with ``h`` of ``W x``;
    * ``gin``: ``x = (1 + epsilon) h + sum_j h_j`` with ``h`` of ``W x`` and a learned ``epsilon``.

    ``gcn`` and ``gin`` have a ReLU after the first linear layer.

    Args:
        kind: ``sage``, ``gcn`` or ``gin``.
        in_dim: features of a node.
        hidden: width d.
        layers: blocks.
        out_dim: classes, or labels of a node that can have several.
        k: features kept by MaxK: one number, or one for each block; None for ReLU in place of MaxK.
        dropout: probability with which a kept value is dropped; it stays stored, as 0.
        norm: layer normalization after each block.
        aggregation: kernels for the sums over neighbors, see :func:`aggregate`.

    Raises:
        ModelError: such a network cannot be; the message says why.

    Example::

        model = MaxKGNN("sage", in_dim=1024, hidden=256, layers=3, out_dim=58, k=32)
        logits = model(model.normalized(graph), x)
    """

    def __init__(
        self,
        kind: Kind,
        in_dim: int,
        hidden: int,
        layers: int,
        out_dim: int,
        k: int | Sequence[int] | None,
        *,
        dropout: float = 0.5,
        norm: bool = True,
        aggregation: Aggregation = "auto",
    ) -> None:
        super().__init__()
        _check(kind in NORMALIZATIONS, f"kind is one of {', '.join(NORMALIZATIONS)}, not {kind!r}")
        _check(
            aggregation in AGGREGATIONS,
            f"aggregation is one of {', '.join(AGGREGATIONS)}, not {aggregation!r}",
        )
        for name, value in {"in_dim": in_dim, "hidden": hidden, "layers": layers, "out_dim": out_dim}.items():
            _check(_whole(value) and value >= 1, f"{name} is a whole number of at least 1, not {value!r}")
        _check(hidden <= _MOST_HIDDEN, f"hidden is at most {_MOST_HIDDEN:,}, not {hidden:,}")
        _check(0 <= dropout < 1, f"dropout is from 0 to below 1, not {dropout}")
        self.kind, self.hidden = kind, hidden
        self.k = _k_of_layers(k, hidden, layers)
        self.first = _linear(in_dim, hidden)
        self.blocks = nn.ModuleList(
            _BLOCKS[kind](f"block {layer}", hidden, self.k[layer], dropout, norm, aggregation)
            for layer in range(layers)
        )
        self.last = _linear(hidden, out_dim)

    def normalized(self, graph: Graph, self_loops: bool = False) -> Graph:
        """The graph as :meth:`forward` needs it, from an adjacency matrix A[target, source].

        Args:
            self_loops: first join each node with itself.
        """
        return graph.normalize(NORMALIZATIONS[self.kind], self_loops=self_loops)

    def forward(self, graph: Graph, x: Float[Tensor, "n features"] | Graph) -> Float[Tensor, "n classes"]:
        """Logits of all nodes.

        Args:
            graph: of :meth:`normalized`.
            x: features, also as the sparse matrix of :func:`sparse_if_worth`.

        Raises:
            NanActivation: a block is given NaN.
            OperandError: the features do not fit the graph.
        """
        x = first_layer(self.first, x)
        if self.kind != "sage":
            x = functional.relu(x)
        for block in self.blocks:
            x = block(graph, x)
        logits: Tensor = self.last(x)
        return logits

    def get_extra_state(self) -> Tensor:
        """The numbers of kept features go with the weights: 0 stands for ReLU."""
        return torch.tensor([k or 0 for k in self.k])

    def set_extra_state(self, state: Tensor) -> None:
        """Compare what the weights were trained with.

        Raises:
            KMismatch: with other numbers of kept features.
        """
        if (stored := [int(k) or None for k in state]) != self.k:
            raise KMismatch(
                f"the weights were trained with k = {_shown(stored)}, this network has k = {_shown(self.k)}"
            )

    def extra_repr(self) -> str:
        return f"kind={self.kind}, k={_shown(self.k)}"


class Block(nn.Module):
    """Nonlinearity, dropout and aggregation of one layer.

    Args:
        name: for error messages.
    """

    def __init__(
        self, name: str, hidden: int, k: int | None, dropout: float, norm: bool, aggregation: Aggregation
    ) -> None:
        super().__init__()
        self.name, self.dropout, self.aggregation = name, dropout, aggregation
        self.maxk = None if k is None else MaxK(k)
        self.norm = nn.LayerNorm(hidden) if norm else nn.Identity()

    def activation(self, x: Float[Tensor, "n d"]) -> Tensor | CBSR:
        """ReLU and dropout of d values, or MaxK and dropout of its k values."""
        if self.maxk is None:
            return dropout(x, self.dropout, self.training, rectify=True)
        try:
            h = self.maxk.compressed(x)
        except NanError as error:
            raise NanActivation(
                f"{self.name}: node {error.row} has NaN features; lower the learning rate"
            ) from None
        return h.with_values(dropout(h.values, self.dropout, self.training))

    def neighbors(self, graph: Graph, h: Tensor | CBSR) -> Float[Tensor, "n d"]:
        """``A h``."""
        return aggregate(graph, h, self.aggregation) if isinstance(h, CBSR) else spmm(graph, h)

    def normed(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Layer normalization, if the block has it."""
        result: Tensor = self.norm(x)
        return result


class SAGE(Block):
    """``x = W_self h + W_neighbors A h + b`` (GraphSAGE with the mean, Hamilton et al., 2017)."""

    def __init__(self, name: str, hidden: int, *settings: Any) -> None:
        super().__init__(name, hidden, *settings)
        self.self_weights = _linear(hidden, hidden, bias=False)
        self.neighbor_weights = _linear(hidden, hidden)

    def forward(self, graph: Graph, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        h = self.activation(x)
        aggregated = self.neighbor_weights(self.neighbors(graph, h))
        return self.normed(self.with_own(aggregated, h))

    def with_own(self, aggregated: Float[Tensor, "n d"], h: Tensor | CBSR) -> Float[Tensor, "n d"]:
        """``aggregated + W_self h``."""
        own = self.self_weights.weight
        if isinstance(h, CBSR) and SPARSE_LINEAR_FROM * h.k <= h.num_columns:
            return cbsr_linear(h, own, add_to=aggregated)
        return aggregated + functional.linear(h.to_dense() if isinstance(h, CBSR) else h, own)


class GCN(Block):
    """``x = A h + b`` with ``h`` of ``W x`` (Kipf and Welling, 2017; the weights stand before MaxK)."""

    def __init__(self, name: str, hidden: int, *settings: Any) -> None:
        super().__init__(name, hidden, *settings)
        self.weights = _linear(hidden, hidden)
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, graph: Graph, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        h = self.activation(self.weights(x))
        return self.normed(self.neighbors(graph, h) + self.bias)


class GIN(Block):
    """``x = (1 + epsilon) h + A h`` with ``h`` of ``W x`` (Xu et al., 2019, without an inner network)."""

    def __init__(self, name: str, hidden: int, *settings: Any) -> None:
        super().__init__(name, hidden, *settings)
        self.weights = _linear(hidden, hidden)
        self.epsilon = nn.Parameter(torch.zeros(()))

    def forward(self, graph: Graph, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        h = self.activation(self.weights(x))
        own = h.to_dense() if isinstance(h, CBSR) else h
        return self.normed((1 + self.epsilon) * own + self.neighbors(graph, h))


_BLOCKS: dict[Kind, type[Block]] = {"sage": SAGE, "gcn": GCN, "gin": GIN}


def sparse_if_worth(x: Float[Tensor, "n features"]) -> Tensor | Graph:
    """The features as a sparse matrix where few are not 0, such as words: the first layer costs little."""
    if x.dtype != torch.float32 or int(x.count_nonzero()) * SPARSE_FEATURES_FROM > x.numel():
        return x
    row, column = x.nonzero(as_tuple=True)
    return Graph.from_coo(row, column, x[row, column], (x.shape[0], x.shape[1]))


def first_layer(layer: nn.Linear, x: Tensor | Graph) -> Tensor:
    """A linear layer on dense or sparse features."""
    if isinstance(x, Graph):
        return sparse_linear(x, layer.weight, layer.bias)
    result: Tensor = layer(x)
    return result


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def _k_of_layers(k: int | Sequence[int] | None, hidden: int, layers: int) -> list[int | None]:
    if k is None:
        return [None] * layers
    ks = list(k) if isinstance(k, Sequence) else [k] * layers
    _check(len(ks) == layers, f"k has {len(ks)} numbers for {layers} layers; give one, or one for each layer")
    for each in ks:
        _check(
            _whole(each) and 1 <= each <= hidden,
            f"k is a whole number from 1 to hidden={hidden}, not {each!r}",
        )
    return list(ks)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(ks: Sequence[int | None]) -> str:
    words = ["ReLU" if k is None else str(k) for k in ks]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)
