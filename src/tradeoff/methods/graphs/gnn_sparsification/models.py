"""The networks that are made sparse: for links, for nodes, and a graph convolution."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tradeoff.core.errors import MissingExtra


class LinkFNN(nn.Module):
    """Whether two nodes get linked: one hidden layer over their two embeddings.

    Args:
        inputs: numbers a pair has, twice the dimension of an embedding.
        hidden: width; 4 to 512 in the published code, which prunes at 128.
    """

    def __init__(self, inputs: int = 16, hidden: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, 1)

    def forward(self, pairs: Float[Tensor, "pairs inputs"]) -> Float[Tensor, " pairs"]:
        """Logits; a sigmoid gives probabilities."""
        logits: Tensor = self.output(functional.relu(self.hidden(pairs)))
        return logits.squeeze(1)


def link_loss(model: nn.Module, pairs: Tensor, linked: Tensor) -> Tensor:
    """Binary cross-entropy of a :class:`LinkFNN`'s logits."""
    return functional.binary_cross_entropy_with_logits(model(pairs), linked.to(pairs.dtype))


class NodeFNN(nn.Module):
    """Classes of nodes: linear layers without biases, each but the last followed by dropout and ReLU.

    Args:
        inputs: numbers a node has, or the dimension of its embedding.
        classes: how many.
        hidden: widths between.
        dropout: probability.
        nodes: give each of so many nodes a trained embedding; the input is then their numbers.
        paper_head: dropout and ReLU on the logits, too, as the published code has; it clips negative logits.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.1,
        nodes: int | None = None,
        paper_head: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = None if nodes is None else nn.Embedding(nodes, inputs)
        widths = [inputs, *hidden, classes]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.dropout, self.paper_head = dropout, paper_head

    def forward(
        self, x: Float[Tensor, "nodes inputs"] | Int64[Tensor, " nodes"]
    ) -> Float[Tensor, "nodes classes"]:
        """Logits."""
        if self.embedding is not None:
            x = self.embedding(x)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index + 1 < len(self.layers) or self.paper_head:
                x = functional.relu(functional.dropout(x, self.dropout, self.training))
        return x


class GCN(nn.Module):
    """Two graph convolutions (Kipf and Welling, 2017) over one graph that the module holds.

    Its input is the numbers of the nodes whose logits are wanted, so one batch of all training nodes is one
    step of full-batch training.

    Args:
        features: of all nodes.
        edges: two rows, sources and targets.
        classes: how many.

    Raises:
        MissingExtra: torch-geometric is not installed.
    """

    features: Tensor
    edges: Tensor

    def __init__(
        self,
        features: Float[Tensor, "nodes inputs"],
        edges: Int64[Tensor, "2 edges"],
        classes: int,
        hidden: int = 16,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        try:
            from torch_geometric.nn import GCNConv
        except ImportError:
            raise MissingExtra("torch_geometric", "graphs") from None
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("edges", edges, persistent=False)
        self.first = GCNConv(features.shape[1], hidden, cached=True)
        self.second = GCNConv(hidden, classes, cached=True)
        self.dropout = dropout

    def forward(self, nodes: Int64[Tensor, " nodes"]) -> Float[Tensor, "nodes classes"]:
        """Logits of some nodes."""
        x = functional.dropout(self.features, self.dropout, self.training)
        x = functional.relu(self.first(x, self.edges))
        x = functional.dropout(x, self.dropout, self.training)
        logits: Tensor = self.second(x, self.edges)
        return logits[nodes]
