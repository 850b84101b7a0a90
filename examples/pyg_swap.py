"""One training loop of PyTorch Geometric, twice: with its own layers and with those of tradeoff.

    python examples/pyg_swap.py --nodes 50000 --degree 15 --hidden 64

What changes in a script of yours is one import. The losses are equal; the printed ratio is processor time for
the same epochs, which other work on the machine does not disturb as it does the clock.
"""

import argparse
import time
from types import ModuleType

import torch
import torch_geometric.nn
from torch.nn.functional import cross_entropy, one_hot
from torch_geometric.data import Data

import tradeoff.engines.kernels.pyg


def power_law_graph(nodes: int, degree: int, classes: int) -> Data:
    """A skewed graph (Chung and Lu, exponent 2.2) whose classes can be told from features and neighbors."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (nodes,), generator=generator)
    expected = (torch.rand(nodes, generator=generator).clamp_min(1e-4)) ** (-1 / 1.2)
    ends = torch.multinomial(expected, nodes * degree, replacement=True, generator=generator).view(2, -1)
    edge_index = torch.cat([ends, ends.flip(0)], dim=1)
    x = torch.randn(nodes, 32, generator=generator) + one_hot(y % 32, 32)
    return Data(x=x, y=y, edge_index=edge_index)


class Network(torch.nn.Module):
    """Two layers of GraphSAGE."""

    def __init__(self, layers: ModuleType, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = layers.SAGEConv(32, hidden)
        self.second = layers.SAGEConv(hidden, classes)

    def forward(self, data: Data) -> torch.Tensor:
        """Logits of the nodes."""
        return self.second(torch.relu(self.first(data.x, data.edge_index)), data.edge_index)


def train(layers: ModuleType, data: Data, hidden: int, epochs: int) -> tuple[list[float], float]:
    """Losses, and processor seconds of the epochs after the first."""
    torch.manual_seed(0)
    network = Network(layers, hidden, int(data.y.max()) + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses, started = [], 0.0
    for epoch in range(epochs + 1):
        if epoch == 1:
            started = time.process_time()
        optimizer.zero_grad()
        loss = cross_entropy(network(data), data.y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, time.process_time() - started


def main() -> None:
    """Train with both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--degree", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    data = power_law_graph(options.nodes, options.degree, classes=8)
    theirs, their_seconds = train(torch_geometric.nn, data, options.hidden, options.epochs)
    ours, our_seconds = train(tradeoff.engines.kernels.pyg, data, options.hidden, options.epochs)
    for epoch, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        print(f"epoch {epoch}: loss {a:.6f} with PyG's layers, {b:.6f} with ours")
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-4)
    print(f"{their_seconds:.2f} s and {our_seconds:.2f} s: {their_seconds / our_seconds:.2f} times as fast")


if __name__ == "__main__":
    main()
