"""Training epochs of several systems, timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tradeoff.core.timing import ProcessorClock, side_by_side
from tradeoff.engines.kernels import Graph, maxk

from .aggregation import Aggregation, aggregate
from .breakdown import Breakdown, profiled
from .model import sparse_if_worth
from .training import node_loss

_PROFILES = 1


@dataclass(frozen=True)
class EpochTime:
    """One system's training epoch.

    Attributes:
        seconds: processor seconds, median over the rounds.
        breakdown: of the least disturbed of some more epochs.
    """

    seconds: float
    breakdown: Breakdown

    @property
    def aggregation(self) -> float:
        """Seconds of the sums over neighbors, forward and backward."""
        return self.seconds * self.breakdown.share


def time_epochs(
    networks: Mapping[str, nn.Module],
    graph: Graph,
    x: Tensor,
    y: Tensor,
    train_nodes: Tensor,
    *,
    rounds: int = 3,
    self_loops: bool = False,
) -> dict[str, EpochTime]:
    """Time one epoch of each network, forward, backward and Adam's step, by turns.

    Calibrations of ``auto`` and the warm-up are outside the clock.

    Args:
        networks: name -> network, with ``normalized`` and ``forward`` as :class:`MaxKGNN` has them.
        graph: the adjacency matrix, as it is.
        rounds: epochs of each.
    """
    features = sparse_if_worth(x)
    steps = {}
    for name, network in networks.items():
        normalized = cast(Any, network.train()).normalized(graph, self_loops=self_loops)
        steps[name] = _step(network, normalized, features, y, train_nodes)
    timings = side_by_side(steps, rounds=rounds, clock=ProcessorClock()).timings
    return {name: EpochTime(timings[name].median, _least_disturbed(step)) for name, step in steps.items()}


def _step(
    network: nn.Module, graph: Any, x: Tensor | Graph, y: Tensor, train_nodes: Tensor
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        node_loss(network(graph, x)[train_nodes], y[train_nodes]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _least_disturbed(step: Callable[[], None]) -> Breakdown:
    """A breakdown of several, that of the shortest epoch."""
    found = []
    for _ in range(_PROFILES):
        with profiled() as breakdown:
            step()
        found.append(breakdown)
    return min(found, key=lambda breakdown: breakdown.epoch)


def saved_bytes(graph: Graph, hidden: int, k: int | None, aggregation: Aggregation = "cbsr") -> int:
    """Bytes that one aggregation keeps for its backward pass, the graph's own arrays left out.

    Args:
        k: kept features; None for dense ReLU features, whose output and mask the usual layers keep.
    """
    own = {t.data_ptr() for t in (graph.indptr, graph.indices, graph.values) if t is not None}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    x = torch.randn(graph.num_columns, hidden, requires_grad=True)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = torch.relu(x) if k is None else aggregate(graph, maxk(x, k), aggregation)
    del result
    return sum(kept.values())
