"""Training epochs of several systems, timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tradeoff.core.timing import side_by_side
from tradeoff.engines.kernels import Graph
from tradeoff.engines.kernels.device_timing import DeviceClock, threads

from .breakdown import PARTS, Breakdown, profiled
from .model import sparse_if_worth
from .training import node_loss

_PROFILES = 3


@dataclass(frozen=True)
class EpochTime:
    """One system's training epoch.

    Attributes:
        seconds: median over the rounds: processor seconds of one thread, or on a GPU until it has done all.
        breakdown: of some more epochs, the least that each part took, which adds up to about ``seconds``.
    """

    seconds: float
    breakdown: Breakdown

    @property
    def aggregation(self) -> float:
        """Seconds of the sums over neighbors, forward and backward."""
        return self._scaled(self.breakdown.aggregation)

    @property
    def activation(self) -> float:
        """Seconds of the nonlinearity and dropout."""
        return self._scaled(self.breakdown.activation)

    @property
    def own_product(self) -> float:
        """Seconds of the products of nodes' own activations with weights."""
        return self._scaled(self.breakdown.seconds["own_gemm"])

    def _scaled(self, seconds: float) -> float:
        """The same part of the epoch that was timed without a profiler."""
        return self.seconds * seconds / self.breakdown.epoch


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

    On a CPU by one thread, in processor seconds, which other programs do not disturb. Calibrations of
    ``auto`` and the warm-up are outside the clock.

    Args:
        networks: name -> network, with ``normalized`` and ``forward`` as :class:`MaxKGNN` has them.
        graph: the adjacency matrix, as it is, on the device of all operands.
        rounds: epochs of each.
    """
    features = sparse_if_worth(x)
    steps = {}
    for name, network in networks.items():
        normalized = cast(Any, network.train()).normalized(graph, self_loops=self_loops)
        steps[name] = _step(network, normalized, features, y, train_nodes)
    with threads(1):
        timings = side_by_side(steps, rounds=rounds, clock=DeviceClock(x.device)).timings
        return {
            name: EpochTime(timings[name].median, _breakdown(step, x.device)) for name, step in steps.items()
        }


def _step(
    network: nn.Module, graph: Any, x: Tensor | Graph, y: Tensor, train_nodes: Tensor
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        node_loss(network(graph, x)[train_nodes], y[train_nodes]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _breakdown(step: Callable[[], None], device: torch.device) -> Breakdown:
    """The least of several for each part: the profiler's clock is on the wall, others' work adds to it."""
    found = []
    for _ in range(_PROFILES):
        with profiled(device) as breakdown:
            step()
        found.append(breakdown)
    seconds = {part: min(each.seconds[part] for each in found) for part in PARTS}
    unexplained = min(each.epoch - sum(each.seconds.values()) for each in found)
    return Breakdown(seconds, sum(seconds.values()) + max(0.0, unexplained))


def saved_bytes(block: nn.Module, graph: Graph, x: Float[Tensor, "n d"]) -> int:
    """Bytes that autograd keeps of one block for its backward pass, whatever the operators asked for.

    Each memory counts once; that of the block's weights, of the graph and of ``x`` is there anyway and does
    not count.

    Args:
        block: of a network, in training mode.
        graph: as the block's ``forward`` takes it.
    """
    there = [x, *block.parameters(), graph.perm]
    for each in (graph, graph.transpose()):
        there += [tensor for tensor in (each.indptr, each.indices, each.values) if tensor is not None]
    counted = {tensor.untyped_storage().data_ptr() for tensor in there}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = block(graph, x.detach().requires_grad_())
    del result
    return sum(kept.values())
