"""One training loop of PyTorch Geometric with its own layers and with those of tradeoff.

    python examples/pyg_swap.py --nodes 50000 --degree 15 --hidden 64

What changes in a script of yours is one import. The losses are equal. PyG's layers also run on a sparse
matrix in place of the edge list, which is its own way to be faster. Printed are the median epochs, in
processor time of one thread, which other work on the machine does not disturb as it does the clock.
"""

import argparse
import statistics
import time
from types import ModuleType

import torch
import torch_geometric.nn
from torch.nn.functional import cross_entropy, one_hot
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, to_torch_csr_tensor

import tradeoff.engines.kernels.pyg


def power_law_graph(nodes: int, degree: int, classes: int) -> Data:
    """A skewed graph (Chung and Lu, exponent 2.2) whose classes can be told from features and neighbors."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (nodes,), generator=generator)
    expected = (torch.rand(nodes, generator=generator).clamp_min(1e-4)) ** (-1 / 1.2)
    ends = torch.multinomial(expected, nodes * degree, replacement=True, generator=generator).view(2, -1)
    edge_index = coalesce(torch.cat([ends, ends.flip(0)], dim=1))
    x = torch.randn(nodes, 32, generator=generator) + one_hot(y % 32, 32)
    return Data(x=x, y=y, edge_index=edge_index)


class Network(torch.nn.Module):
    """Two layers of GraphSAGE."""

    def __init__(self, layers: ModuleType, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = layers.SAGEConv(32, hidden)
        self.second = layers.SAGEConv(hidden, classes)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Logits of the nodes."""
        return self.second(torch.relu(self.first(x, edges)), edges)


def train(
    layers: ModuleType, data: Data, edges: torch.Tensor, hidden: int, epochs: int
) -> tuple[list[float], float]:
    """Losses, and processor seconds of an epoch: the median of those after the first."""
    torch.manual_seed(0)
    network = Network(layers, hidden, int(data.y.max()) + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses, seconds = [], []
    for _ in range(epochs + 1):
        started = time.process_time()
        optimizer.zero_grad()
        loss = cross_entropy(network(data.x, edges), data.y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.process_time() - started)
    return losses, statistics.median(seconds[1:])


def main() -> None:
    """Train with both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--degree", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = power_law_graph(options.nodes, options.degree, classes=8)
    sparse = to_torch_csr_tensor(data.edge_index, size=(options.nodes, options.nodes))
    own, ours = torch_geometric.nn, tradeoff.engines.kernels.pyg
    systems = {
        "PyG's layers": (own, data.edge_index),
        "PyG's layers on a sparse matrix": (own, sparse),
        "ours": (ours, data.edge_index),
    }
    results = {
        name: train(layers, data, edges, options.hidden, options.epochs)
        for name, (layers, edges) in systems.items()
    }
    losses, seconds = results["ours"]
    for name, (other_losses, other_seconds) in results.items():
        torch.testing.assert_close(torch.tensor(other_losses), torch.tensor(losses), rtol=1e-4, atol=1e-4)
        ratio = "" if name == "ours" else f"; ours is {other_seconds / seconds:.2f} times as fast"
        print(
            f"{name}: loss {other_losses[0]:.6f} to {other_losses[-1]:.6f}, "
            f"{other_seconds:.3f} s an epoch{ratio}"
        )


if __name__ == "__main__":
    main()
