"""A graph convolutional network whose sums over neighbors go through a partition."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.core.errors import MissingExtra
from tradeoff.engines.kernels import BlockPartition, Graph


class GCN(nn.Module):
    """Kipf and Welling's network (ICLR 2017): layers of A X W + b with ReLU and dropout between them.

    Args:
        in_dim: features of a node.
        hidden: of the layers between.
        out_dim: outputs of a node.
        layers: at least 1.
        dropout: before each layer but the first.
        strategy, partition: how A is multiplied; see :func:`tradeoff.engines.kernels.spmm`.
        conv: makes a layer from its input and output size, in place of those of this project: for peers.

    Raises:
        MissingExtra: PyTorch Geometric, whose layers these are, is not installed.

    Example::

        graph = Graph.from_edge_index(edge_index, num_nodes=n).normalize("sym", self_loops=True)
        model = GCN(x.shape[1], hidden=128, out_dim=classes, partition=BlockPartition.from_graph(graph))
        logits = model(x, graph)
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int = 128,
        *,
        out_dim: int,
        layers: int = 2,
        dropout: float = 0.5,
        strategy: str = "auto",
        partition: BlockPartition | None = None,
        conv: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a network has at least one layer, not {layers}")
        if conv is None:
            conv = partial(_conv(), normalize=False, strategy=strategy, partition=partition)
        widths = [in_dim, *[hidden] * (layers - 1), out_dim]
        self.layers = nn.ModuleList(map(conv, widths[:-1], widths[1:]))
        self.dropout = dropout

    def forward(
        self, x: Float[Tensor, "nodes in_dim"], adjacency: Graph | Tensor
    ) -> Float[Tensor, "nodes out_dim"]:
        """Outputs of the nodes.

        Args:
            x: features.
            adjacency: the normalized matrix, as a graph or, for layers of others, in their form.
        """
        for number, layer in enumerate(self.layers):
            if number:
                x = nn.functional.dropout(torch.relu(x), self.dropout, self.training)
            x = layer(x, adjacency)
        return x


def peer_conv() -> Callable[..., nn.Module]:
    """PyTorch Geometric's own layer, for a matrix that is normalized.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from torch_geometric.nn import GCNConv
    except ImportError as error:
        raise MissingExtra("torch_geometric", "graphs") from error
    return partial(GCNConv, normalize=False)


def _conv() -> Callable[..., nn.Module]:
    peer_conv()
    from tradeoff.engines.kernels.pyg import GCNConv

    return GCNConv
