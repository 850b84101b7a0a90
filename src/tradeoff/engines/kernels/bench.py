"""Sparse products beside those of other libraries, timed by turns, and beside what memory allows.

A *row* is one graph, number of columns and number of threads. Each library is timed as it is called, with a
new result each time, and, where it can, writing into a result that exists already: never one against the
other. One thread is timed in processor seconds, several in seconds of the clock.

Two bounds say how much is left. *Compulsory*: each operand read once and the result written once, at the rate
of a copy of large arrays. *Gather*: the time to read the rows of X in the order of the entries of A and add
them up, which is the product without rows of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tradeoff.core.memory import physical_memory
from tradeoff.core.timing import ProcessorClock, SideBySide, SystemClock, side_by_side
from tradeoff.engines.kernels import backends, device_timing
from tradeoff.engines.kernels.errors import BackendError, OperandError
from tradeoff.engines.kernels.functional import spmm
from tradeoff.engines.kernels.graph import Graph

OURS = "tradeoff"
PEERS = ("torch", "scipy")
"""Libraries that every installation has."""

Product = Callable[[Tensor], Any]
"""X -> A X, in the library's own type."""


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        name: of its column.
        prepare: a weighted graph -> its product, with the graph in the library's own form.
        into: the same, writing into a given result; None if the library cannot.
        threads: whether it uses more than one.
        most_seconds: rows for which a first call takes longer are left out; None for no limit.
    """

    name: str
    prepare: Callable[[Graph], Product]
    into: Callable[[Graph], Callable[[Tensor, Tensor], Any]] | None = None
    threads: bool = True
    most_seconds: float | None = None


@dataclass
class Row:
    """What was measured for one graph, number of columns and number of threads.

    Attributes:
        seconds: library -> seconds of a call with a new result (median of the rounds).
        seconds_out: the same into a result that exists already.
        ratios: library -> how many times our seconds it takes, both with a new result: median, 95 % interval.
        ratios_out: the same into a result that exists.
        share: processor time over wall-clock time and threads that the timings got; 1 on a quiet machine.
        compulsory, gather: seconds of the bounds; see the module.
        gflops: of our call with a new result.
        gather_bytes_per_second: rows of X read by our call with a new result.
        error: largest error of our result against float64, over the sum of magnitudes that went into the
            element.
    """

    graph: str
    nodes: int
    nnz: int
    most_entries: int
    columns: int
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_out: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    ratios_out: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    share: float = 0.0
    compulsory: float = 0.0
    gather: float = 0.0
    gflops: float = 0.0
    gather_bytes_per_second: float = 0.0
    error: float = 0.0

    @property
    def bound(self) -> float:
        """Our share of the nearer bound: 1 would be a product that costs no more than its memory traffic."""
        return max(self.compulsory, self.gather) / self.seconds[OURS]


def torch_peer() -> Peer:
    """torch's own sparse product (MKL on most CPUs, cuSPARSE on NVIDIA's GPUs)."""

    def into(graph: Graph) -> Callable[[Tensor, Tensor], Any]:
        matrix = graph.to_torch()
        return lambda x, out: torch.addmm(out, matrix, x, beta=0, out=out)

    def prepare(graph: Graph) -> Product:
        matrix = graph.to_torch()
        return lambda x: matrix @ x

    return Peer("torch", prepare, into)


def scipy_peer() -> Peer:
    """scipy.sparse, which has one thread."""

    def prepare(graph: Graph) -> Product:
        matrix = graph.to_scipy()
        return lambda x: matrix @ x.numpy()

    return Peer("scipy", prepare, threads=False)


def peers_of(names: Iterable[str], more: Sequence[Peer] = ()) -> list[Peer]:
    """The peers of these names.

    Raises:
        BackendError: there is none of a name.
    """
    known = {peer.name: peer for peer in (torch_peer(), scipy_peer(), *more)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BackendError(f"no peer {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names]


def bench(
    graphs: Iterable[tuple[str, Graph]],
    columns: Sequence[int],
    threads: Sequence[int],
    peers: Sequence[Peer],
    rounds: int = 7,
) -> Iterator[Row]:
    """Measure every row, one after the other.

    Args:
        graphs: name and graph; weights are replaced by those of the mean over neighbors, which all libraries
            take.
        columns: of X.
        threads: how many to use; those of torch are put back afterwards.
        peers: to compare with.
        rounds: in each, every library takes its turn.

    Raises:
        OperandError: X and the result would take more memory than there is.
    """
    for name, given in graphs:
        for width in columns:
            _check_memory(given, width)
        graph = given.normalize("row")
        products = {peer.name: (peer.prepare(graph), peer.into and peer.into(graph)) for peer in peers}
        for count in threads:
            with device_timing.threads(count):
                rate = copy_rate(count)
                chosen = [peer for peer in peers if peer.threads or count == 1]
                for width in columns:
                    yield _row(name, graph, width, count, chosen, products, rounds, rate)


def _check_memory(graph: Graph, width: int) -> None:
    needed, there = 4 * width * (graph.num_rows + graph.num_columns), physical_memory()
    if needed > there:
        raise OperandError(
            f"X of {width:,} columns and its product take {needed:,} bytes; this machine has {there:,}"
        )


def copy_rate(threads: int) -> float:
    """Bytes a second, read and written, of a copy of 256 MB that is in no cache."""
    source, target = torch.ones(1 << 26), torch.zeros(1 << 26)
    timings, _ = _timed({"copy": lambda: target.copy_(source)}, 5, threads)
    return 2 * source.nbytes / min(timings.timings["copy"].samples)


def _row(
    name: str,
    graph: Graph,
    width: int,
    threads: int,
    peers: Sequence[Peer],
    products: dict[str, tuple[Product, Callable[[Tensor, Tensor], Any] | None]],
    rounds: int,
    rate: float,
) -> Row:
    x = torch.randn(graph.num_columns, width, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(graph.num_rows, width)
    row = Row(name, graph.num_rows, graph.nnz, int(graph.degrees().max()), width, threads)
    new: dict[str, Callable[[], object]] = {OURS: lambda: spmm(graph, x)}
    reused: dict[str, Callable[[], object]] = {OURS: lambda: spmm(graph, x, out=out)}
    for peer in peers:
        product, into = products[peer.name]
        if peer.most_seconds is not None and _seconds(lambda p=product: p(x)) > peer.most_seconds:  # type: ignore[misc]
            continue
        new[peer.name] = lambda p=product: p(x)  # type: ignore[misc]
        if into is not None:
            reused[peer.name] = lambda p=into: p(x, out)  # type: ignore[misc]
    row.error = _error(graph, x)
    row.gather = min(_timed({"gather": _gather(graph, x)}, 3, threads)[0].timings["gather"].samples)
    measured, share = _timed(new, rounds, threads)
    into_measured, into_share = _timed(reused, rounds, threads)
    row.seconds, row.ratios = _figures(measured)
    row.seconds_out, row.ratios_out = _figures(into_measured)
    row.share = min(share, into_share)
    row.compulsory = _compulsory_bytes(graph, x, out) / rate
    row.gflops = 2e-9 * graph.nnz * width / row.seconds[OURS]
    row.gather_bytes_per_second = 4 * graph.nnz * width / row.seconds[OURS]
    return row


def _timed(
    candidates: dict[str, Callable[[], object]], rounds: int, threads: int
) -> tuple[SideBySide, float]:
    """Timings by turns, and the share of the processor time asked for that they got."""
    wall, cpu = time.perf_counter(), time.process_time()
    clock = ProcessorClock() if threads == 1 else SystemClock()
    timings = side_by_side(candidates, rounds=rounds, threads=threads, clock=clock)
    return timings, (time.process_time() - cpu) / (time.perf_counter() - wall) / threads


def _figures(measured: SideBySide) -> tuple[dict[str, float], dict[str, tuple[float, float, float]]]:
    seconds = {name: timing.median for name, timing in measured.timings.items()}
    return seconds, {name: measured.ratio(name, OURS) for name in seconds if name != OURS}


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _gather(graph: Graph, x: Tensor) -> Callable[[], object]:
    """All rows of X that A names, in its order, added up: A as if it had one row."""
    module, _ = backends.raw("auto", x)
    whole = torch.tensor([0, graph.nnz])
    return lambda: module.spmm(whole, graph.indices, None, x)


def _compulsory_bytes(graph: Graph, x: Tensor, out: Tensor) -> int:
    values = graph.values
    assert values is not None
    return sum(tensor.nbytes for tensor in (graph.indptr, graph.indices, values, x, out))


def _error(graph: Graph, x: Tensor) -> float:
    """Of up to 16 columns."""
    some = x[:, :16].contiguous()
    matrix = graph.to_scipy().astype("float64")
    exact = matrix @ some.double().numpy()
    scale = abs(matrix) @ some.double().abs().numpy()
    error = (spmm(graph, some).double() - torch.from_numpy(exact)).abs()
    return float((error / torch.from_numpy(scale).clamp(min=1e-30)).max()) if error.numel() else 0.0
