"""Which kernels sums over neighbors take, with a made-up clock, and rows that keep fewer than k features."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tradeoff.engines.kernels import Graph, maxk
from tradeoff.methods.graphs.maxk_gnn import aggregate, aggregation
from tradeoff.methods.graphs.maxk_gnn.aggregation import SAMPLED_ENTRIES, choices, choose

sys.path.insert(0, str(Path(__file__).parent))
from conftest import random_graph

WIDTH = 64
FIXED = 1e-3
"""Seconds of a call, whatever the graph."""


@dataclass
class MadeUpTime:
    """A clock that only kernels move: by :data:`FIXED`, so many seconds an entry, and what ``delays`` adds.

    Attributes:
        forward, backward, dense: seconds of an entry.
        delays: further seconds of the next calls, as by another program on the machine.
        calls: of each kernel.
    """

    forward: float
    backward: float
    dense: float
    delays: list[float] = field(default_factory=list)
    now: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)

    def advancing(self, name: str, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(graph: Graph, *operands: Any, **options: Any) -> Tensor:
            self.now += FIXED + graph.nnz * getattr(self, name) + (self.delays.pop(0) if self.delays else 0.0)
            self.calls[name] = self.calls.get(name, 0) + 1
            return kernel(graph, *operands, **options)

        return call


Start = Callable[..., MadeUpTime]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Start:
    def start(forward: float, backward: float, dense: float, delays: list[float] | None = None) -> MadeUpTime:
        clock = MadeUpTime(forward, backward, dense, delays or [])
        monkeypatch.setattr(aggregation, "time", SimpleNamespace(process_time=lambda: clock.now))
        for name, kernel in (("forward", "cbsr_spmm"), ("backward", "cbsr_sddmm"), ("dense", "spmm")):
            monkeypatch.setattr(aggregation, kernel, clock.advancing(name, getattr(aggregation, kernel)))
        return clock

    return start


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("degree", [5, 120])
def test_auto_takes_the_kernel_with_fewer_seconds(made_up: Start, degree: int) -> None:
    """Small graphs are measured whole, of large ones a sample; delays of single calls change nothing."""
    graph = random_graph(3000, degree)
    assert (graph.nnz > SAMPLED_ENTRIES) == (degree == 120)
    made_up(1e-6, 3e-6, 2e-6, delays=[0.0, 1.0, 0.0, 0.0, 2.0, 1.0, 1.0])
    forward, backward = (choose(graph, WIDTH, 8, direction) for direction in ("forward", "backward"))
    assert (forward.kernel, backward.kernel) == ("cbsr", "dense")
    assert forward.cbsr_seconds == pytest.approx(FIXED + graph.nnz * 1e-6)
    assert backward.cbsr_seconds == pytest.approx(FIXED + graph.nnz * 3e-6)
    for choice in (forward, backward):
        assert choice.dense_seconds == pytest.approx(FIXED + graph.nnz * 2e-6)


@pytest.mark.usefixtures("one_thread")
def test_seconds_of_a_call_are_not_extrapolated(made_up: Start) -> None:
    """The sample has a third of the entries; tripling what a call costs anyway would choose wrongly."""
    graph = random_graph(3000, 130)
    made_up(0.0, 0.0, 1e-9)
    assert choose(graph, WIDTH, 8, "forward").cbsr_seconds == pytest.approx(FIXED)


def test_auto_is_calibrated_once_for_each_direction_and_runs_its_choice(made_up: Start) -> None:
    graph = random_graph(60, 5).normalize("row")
    clock = made_up(1e-6, 3e-6, 2e-6)
    features = maxk(torch.randn(60, WIDTH, requires_grad=True), 8)
    aggregate(graph, features).sum().backward()
    first = choices(graph)
    assert set(first) == {(WIDTH, 8, "forward"), (WIDTH, 8, "backward")}
    clock.calls.clear()
    aggregate(graph, maxk(torch.randn(60, WIDTH, requires_grad=True), 8)).sum().backward()
    assert clock.calls == {"forward": 1, "dense": 1}
    assert choices(graph) == first


def test_real_clocks_give_real_choices() -> None:
    graph = random_graph(60, 5)
    assert all(
        seconds > 0
        for seconds in (
            choose(graph, WIDTH, 8, "forward").cbsr_seconds,
            choose(graph, WIDTH, 8, "backward").dense_seconds,
        )
    )


def test_where_nothing_is_dropped_auto_is_dense_and_does_not_measure(made_up: Start) -> None:
    graph = random_graph(60, 5).normalize("row")
    clock = made_up(0.0, 0.0, 1.0)  # however slow it would be
    x = torch.randn(60, WIDTH, requires_grad=True)
    aggregate(graph, maxk(x, WIDTH)).square().sum().backward()
    assert clock.calls == {"dense": 2}
    assert not choices(graph)
    expected = x.detach().clone().requires_grad_()
    (graph.to_dense() @ expected).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [7, WIDTH])
@pytest.mark.parametrize("how", ["auto", "cbsr", "dense"])
def test_rows_with_fewer_features_get_no_gradient_beyond_them(how: aggregation.Aggregation, k: int) -> None:
    """Negative features are dropped, so that rows keep 0 to k; the rest repeats a column and is 0."""
    graph = random_graph(60, 5).normalize("row").to(dtype=torch.float64)
    x = torch.randn(60, WIDTH, dtype=torch.float64)
    x[0] = -1.0
    x[1, 1:] = -1.0
    x[2:30] -= 1.5
    clipped = maxk(x, k, clip=True)
    assert clipped.count is not None
    assert int(clipped.count.min()) == 0
    values = clipped.values.clone().requires_grad_()
    result = aggregate(graph, clipped.with_values(values), how)
    dense = clipped.to_dense().requires_grad_()
    expected = graph.to_dense(torch.float64) @ dense
    torch.testing.assert_close(result, expected)
    weights = torch.randn_like(expected)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    kept = torch.arange(k) < clipped.count[:, None]
    assert values.grad is not None
    assert dense.grad is not None
    sampled = dense.grad.gather(1, clipped.index.long())
    torch.testing.assert_close(values.grad, torch.where(kept, sampled, 0.0))


def test_compressed_features_of_another_graph_are_refused() -> None:
    features = maxk(torch.randn(9, 5), 2)
    for how in ("cbsr", "dense"):
        with pytest.raises(ValueError, match="9 rows"):
            aggregate(random_graph(60, 5), features, how)  # type: ignore[arg-type]
