"""Full-batch training of a network on a graph, its losses and processor time."""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tradeoff.engines.kernels import Graph


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        losses: of the training nodes at each epoch.
        accuracy: of the test nodes after the last.
        epoch_seconds: processor time of an epoch; the first, which sorts and transposes, is left out.
    """

    losses: tuple[float, ...]
    accuracy: float
    epoch_seconds: float


def train(
    model: nn.Module,
    x: Float[Tensor, "nodes features"],
    adjacency: Graph | Tensor,
    y: Int[Tensor, " nodes"],
    train_mask: Bool[Tensor, " nodes"],
    test_mask: Bool[Tensor, " nodes"],
    *,
    epochs: int = 50,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> Trained:
    """Train a network on all of a graph at once, with Adam; dropout is drawn from ``seed``.

    Raises:
        ValueError: fewer than two epochs.
    """
    if epochs < 2:
        raise ValueError(f"timing an epoch needs at least two, not {epochs}")
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    torch.manual_seed(seed)
    model.train()
    losses: list[Tensor] = []
    started = 0.0
    for epoch in range(epochs):
        if epoch == 1:
            started = time.process_time()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, adjacency)[train_mask], y[train_mask])
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    values = torch.stack(losses).tolist()  # on a GPU: after all has run
    seconds = (time.process_time() - started) / (epochs - 1)
    model.eval()
    with torch.no_grad():
        right = model(x, adjacency)[test_mask].argmax(1) == y[test_mask]
    return Trained(tuple(values), right.double().mean().item(), seconds)
