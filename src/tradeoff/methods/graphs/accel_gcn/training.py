"""Full-batch training of a network on a graph, its losses and the time of an epoch."""

import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tradeoff.engines.kernels import Graph
from tradeoff.engines.kernels.device_timing import DeviceClock, threads


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        losses: of the training nodes at each epoch.
        accuracy: of the test nodes after the last.
        epoch_seconds: median of the epochs but the first, which sorts and transposes: processor time of one
            thread on a CPU, time until the GPU is done on a GPU.
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

    On a CPU it has one thread, so that processor time is what an epoch takes on a quiet machine.

    Raises:
        ValueError: fewer than two epochs.
    """
    if epochs < 2:
        raise ValueError(f"timing an epoch needs at least two, not {epochs}")
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    torch.manual_seed(seed)
    model.train()
    losses: list[Tensor] = []
    clock = DeviceClock(x.device)
    times = [clock.wall()]
    with threads(1) if x.device.type == "cpu" else nullcontext():
        for _ in range(epochs):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x, adjacency)[train_mask], y[train_mask])
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            times.append(clock.wall())
    seconds = statistics.median(after - before for before, after in pairwise(times[1:]))
    model.eval()
    with torch.no_grad():
        right = model(x, adjacency)[test_mask].argmax(1) == y[test_mask]
    return Trained(tuple(torch.stack(losses).tolist()), right.double().mean().item(), seconds)
