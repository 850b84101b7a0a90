"""The systems that MaxK-GNN is compared with: the same networks on other kernels, and one without a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.core.errors import MissingExtra
from tradeoff.engines.kernels import CBSR, Graph

from .dropout import dropout
from .model import SAGE, MaxKGNN, first_layer

SYSTEMS = ("mlp", "relu", "maxk", "maxk-sums", "simulated", "torch", "pyg")
"""``mlp``: no graph; ``relu``: dense features on our kernels; ``maxk``; ``maxk-sums``: MaxK whose sums
over neighbors (and dropout) only are compressed, while nodes' own features meet their weights as dense ones;
``simulated``: MaxK as a dense mask on dense kernels, as the published training code has it; ``torch``: dense
features on torch.sparse, with the transpose kept; ``pyg``: PyTorch Geometric's SAGEConv on a torch.sparse
matrix."""
SELECTING = ("maxk", "maxk-sums", "simulated")
"""Those that have a k."""


def build(
    system: str, in_dim: int, hidden: int, layers: int, out_dim: int, k: int | None, **settings: Any
) -> nn.Module:
    """A SAGE network as one of :data:`SYSTEMS` has it, with the same shapes and starting weights.

    Args:
        k: of :data:`SELECTING`; the others have ReLU.
        settings: ``dropout``, ``norm`` and ``aggregation`` of :class:`MaxKGNN`.

    Raises:
        MissingExtra: PyTorch Geometric is asked for and not installed.
    """
    if system == "mlp":
        return MLP(in_dim, hidden, layers, out_dim, settings.get("dropout", 0.5))
    networks: dict[str, type[MaxKGNN]] = {"torch": _TorchNetwork, "pyg": _PyGNetwork}
    sizes = (in_dim, hidden, layers, out_dim)
    network = networks.get(system, MaxKGNN)("sage", *sizes, k if system in SELECTING else None, **settings)
    blocks: dict[str, type[SAGE]] = {
        "simulated": SimulatedSAGE,
        "maxk-sums": DenseOwnSAGE,
        "torch": TorchSAGE,
    }
    replaced = blocks.get(system)
    if replaced is not None:
        network.blocks = nn.ModuleList(_as(replaced, block) for block in network.blocks)
    return network


@dataclass(frozen=True)
class TorchMatrix:
    """A and its transpose as torch.sparse takes them fastest, made once for all passes."""

    matrix: Tensor
    transpose: Tensor


class _TorchNetwork(MaxKGNN):
    """The same network whose graph is a :class:`TorchMatrix`."""

    def normalized(self, graph: Graph, self_loops: bool = False) -> Any:
        """The mean over neighbors."""
        scaled = super().normalized(graph, self_loops)
        return TorchMatrix(scaled.to_torch(), scaled.transpose().to_torch())


class TorchSAGE(SAGE):
    """The same block on torch.sparse."""

    def neighbors(self, graph: Any, h: Tensor | CBSR) -> Float[Tensor, "n d"]:
        result: Tensor = _TorchAggregate.apply(h, graph)  # type: ignore[no-untyped-call]
        return result


class _TorchAggregate(torch.autograd.Function):
    """``A h``, whose gradient is a product with the transpose that is there already."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, graph: TorchMatrix) -> Tensor:
        ctx.transpose = graph.transpose
        return graph.matrix @ h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return ctx.transpose @ grad, None


class DenseOwnSAGE(SAGE):
    """MaxK that makes sums over neighbors shorter, and no product with weights."""

    def with_own(self, aggregated: Float[Tensor, "n d"], h: Tensor | CBSR) -> Float[Tensor, "n d"]:
        return super().with_own(aggregated, h.to_dense() if isinstance(h, CBSR) else h)


class SimulatedSAGE(SAGE):
    """MaxK by a mask of d columns from torch.topk: nothing is compressed, so nothing is saved."""

    def activation(self, x: Float[Tensor, "n d"]) -> Tensor:
        assert self.maxk is not None
        kept = x.topk(self.maxk.k, dim=1, sorted=False).indices
        mask = torch.zeros_like(x).scatter_(1, kept, 1.0)
        return dropout(x * mask, self.dropout, self.training)


class MLP(nn.Module):
    """As many hidden layers of the same width, each node by itself."""

    def __init__(self, in_dim: int, hidden: int, layers: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(in_dim, hidden)
        parts: list[nn.Module] = [nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout)]
        for _ in range(layers):
            parts += [nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.rest = nn.Sequential(*parts, nn.Linear(hidden, out_dim))

    def normalized(self, graph: Graph, self_loops: bool = False) -> Graph:
        """The graph, which is not looked at."""
        return graph

    def forward(self, graph: Graph, x: Float[Tensor, "n features"] | Graph) -> Float[Tensor, "n classes"]:
        """Logits of all nodes."""
        logits: Tensor = self.rest(first_layer(self.first, x))
        return logits


class _PyGNetwork(MaxKGNN):
    """The same network with PyG's layer; its graph is a torch.sparse CSR tensor."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.blocks = nn.ModuleList(_PyGBlock(block) for block in self.blocks)

    def normalized(self, graph: Graph, self_loops: bool = False) -> Any:
        """The mean over neighbors as a torch.sparse matrix: PyG's own mean on such a one is slower."""
        return super().normalized(graph, self_loops).to_torch()


class _PyGBlock(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        try:
            from torch_geometric.nn import SAGEConv
        except ImportError:
            raise MissingExtra("torch_geometric", "graphs") from None
        assert isinstance(block, SAGE)
        width = block.neighbor_weights.out_features
        self.convolution = SAGEConv(width, width, aggr="sum")
        self.convolution.lin_l.load_state_dict(block.neighbor_weights.state_dict())
        self.convolution.lin_r.load_state_dict(block.self_weights.state_dict())
        self.dropout, self.norm = block.dropout, block.norm

    def forward(self, adjacency: Tensor, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        h = dropout(x, self.dropout, self.training, rectify=True)
        result: Tensor = self.norm(self.convolution(h, adjacency))
        return result


def _as(kind: type[SAGE], block: nn.Module) -> SAGE:
    """The block, weights shared, as another kind of SAGE block."""
    assert isinstance(block, SAGE)
    hidden = block.neighbor_weights.out_features
    k = None if block.maxk is None else block.maxk.k
    other = kind(
        block.name, hidden, k, block.dropout, not isinstance(block.norm, nn.Identity), block.aggregation
    )
    other.load_state_dict(block.state_dict())
    return other
