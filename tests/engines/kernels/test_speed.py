"""Ratios of time, skipped where the machine is too busy to tell."""

import time
from collections.abc import Callable

import pytest
import torch

from tradeoff.core import native
from tradeoff.core.timing import side_by_side
from tradeoff.engines.kernels import Graph, maxk, reference, spmm
from tradeoff.engines.kernels.bench import Peer, ProcessorClock, bench, geometric_mean, torch_peer
from tradeoff.nn.graphs import generate

LEAST_SHARE = 0.6
"""Of the processor time asked for, below which a timing says nothing."""


@pytest.fixture(autouse=True)
def _needs_extension(require) -> None:
    require(native.extension(), "the compiled extension is missing: install a C++17 compiler")


def cpu_share(call: Callable[[], object], threads: int) -> float:
    """Processor time over wall-clock time and threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.process_time() - cpu) / (time.perf_counter() - wall) / threads


def test_products_are_faster_than_those_of_torch() -> None:
    """70 % of the aim, and what is no faster kernel misses it: the reference, which calls torch."""
    made = generate("pl:50000:15:2.2")
    graph = Graph.from_csr(made.indptr, made.indices, made.values)
    same = Peer(
        "reference", lambda g: lambda x: reference.spmm(g.indptr, g.indices, g.values, x), most_seconds=None
    )
    rows = list(bench([("pl50k", graph)], [64, 128], [1], [torch_peer(), same], rounds=3))
    if min(row.share for row in rows) < LEAST_SHARE:
        pytest.skip(f"got {min(row.share for row in rows):.2f} of a processor")
    assert geometric_mean(row.ratios["torch"][0] for row in rows) >= 1.4
    beside_reference = geometric_mean(row.ratios["torch"][0] / row.ratios["reference"][0] for row in rows)
    assert beside_reference < 1.4


def test_selection_is_faster_than_a_partial_sort(features, threads) -> None:
    threads(1)
    x = features(4000, 256, seed=1)
    calls = {"ours": lambda: maxk(x, 32), "topk": lambda: torch.topk(x, 32)}
    timings = side_by_side(calls, rounds=5, clock=ProcessorClock())
    share = cpu_share(lambda: [maxk(x, 32) for _ in range(20)], 1)
    if share < LEAST_SHARE:
        pytest.skip(f"got {share:.2f} of a processor")
    assert timings.ratio("topk", "ours")[0] >= 3


def test_one_long_row_keeps_two_threads_busy(features, threads) -> None:
    hub = 1_000_000
    star = Graph.from_csr(torch.tensor([0, hub]), torch.arange(hub), num_columns=hub)
    x = features(hub, 32, seed=1)

    def run() -> None:
        for _ in range(5):
            spmm(star, x)

    seconds = {}
    for count in (1, 2):
        threads(count)
        run()
        began = time.perf_counter()
        share = cpu_share(run, count)
        seconds[count] = time.perf_counter() - began
        if share < 0.9:
            pytest.skip(f"got {share:.2f} of {count} processor(s)")
    assert seconds[2] <= 0.65 * seconds[1]
