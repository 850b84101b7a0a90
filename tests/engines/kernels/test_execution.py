"""How kernels run: threads, memory, instruction sets, processes, and what they report."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tradeoff.core import native
from tradeoff.engines.kernels import (
    CBSR,
    Graph,
    cbsr_sddmm,
    cbsr_spmm,
    cost_meter,
    kernel_info,
    maxk,
    native_ops,
    sddmm,
    spmm,
)

Run = Callable[[], tuple[Tensor, ...]]


@pytest.fixture(autouse=True)
def _needs_extension(require) -> None:
    require(native.extension(), "the compiled extension is missing: install a C++17 compiler")


def all_operators(graph: Graph, x: Tensor) -> tuple[Tensor, ...]:
    h = maxk(x, 5)
    y = spmm(graph, x)
    return (
        y,
        h.values,
        h.index,
        cbsr_spmm(graph, h),
        cbsr_sddmm(graph, y, h),
        sddmm(graph, y, x),
        sddmm(graph, y, h),
        h.to_dense(),
    )


def test_results_do_not_depend_on_the_number_of_threads(random_graph, features, threads) -> None:
    # One row is longer than a segment, and the work is enough for threads.
    hub = 70_000
    generator = torch.Generator().manual_seed(0)
    row = torch.cat(
        [torch.zeros(hub, dtype=torch.int64), torch.randint(1, 3000, (60_000,), generator=generator)]
    )
    column = torch.cat([torch.arange(hub), torch.randint(0, hub, (60_000,), generator=generator)])
    graph = Graph.from_coo(row, column, features(row.numel(), seed=1), (3000, hub))
    x = features(hub, 24, seed=2)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        assert kernel_info().threads == count
        results.append(all_operators(graph, x))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_memory_is_shared_not_copied(features) -> None:
    x = features(100, 32, seed=1)
    for tensor in (x, torch.arange(5), torch.zeros(3, dtype=torch.uint8)):
        (array,) = native_ops._arrays(tensor)
        assert native.extension().address(array) == tensor.data_ptr()


PEAK = """
import sys, torch
from tradeoff.engines.kernels import Graph, cbsr_spmm, maxk, spmm
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
def reset(): open("/proc/self/clear_refs", "w").write("5")
def now(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
torch.manual_seed(0)
n, d = 32_768, 64  # results of whole huge pages
graph = Graph.from_coo(torch.randint(0, n, (400_000,)), torch.randint(0, n, (400_000,)), shape=(n, n))
x = torch.randn(n, d)
spmm(graph, x[:, :1].contiguous())
h = maxk(x, 8)
for call in (lambda: spmm(graph, x), lambda: cbsr_spmm(graph, h)):
    reset()
    before = now()
    y = call()
    extra = peak() - before - y.nbytes
    assert extra <= 1 << 20, extra
    del y
print("ok")
"""


def test_a_call_takes_no_more_memory_than_its_result(require) -> None:
    require(os.access("/proc/self/clear_refs", os.W_OK), "no peak memory of a process here")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "ok\n", done.stderr


def test_large_results_come_from_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph.from_coo([0, 70_000], [0, 1], shape=(70_001, 2))
    x = torch.ones(2, 16)
    y = spmm(graph, x)
    assert y.nbytes > native_ops._HUGE_BYTES
    assert y.data_ptr() % (2 << 20) == 0
    assert y.sum() == 32
    assert kernel_info().huge_pages
    monkeypatch.setenv("TRADEOFF_HUGE_PAGES", "0")
    assert torch.equal(spmm(graph, x), y)
    assert not kernel_info().huge_pages


def test_other_threads_run_while_a_kernel_does(random_graph, features) -> None:
    """Nobody is made to give up the interpreter's lock here: another thread runs if the kernel gave it up."""
    graph, x = random_graph(600, 600, 0.5, 1), features(600, 1024, seed=2)
    operands = native_ops._arrays(graph.indptr, graph.indices, graph.values, x, torch.empty(600, 1024), None)
    before = sys.getswitchinterval()

    def seen_before_the_end(call: Callable[[], object]) -> bool:
        begun, ended = threading.Event(), []

        def work() -> None:
            begun.set()
            call()
            ended.append(True)

        worker = threading.Thread(target=work)
        worker.start()
        begun.wait()
        early = not ended
        worker.join()
        return early

    sys.setswitchinterval(1000)
    try:
        # More than once: the scheduler of a busy machine may let a whole product pass.
        assert any(
            seen_before_the_end(lambda: native.extension().sparse_spmm(*operands, 1)) for _ in range(50)
        )
        assert not any(seen_before_the_end(lambda: sum(range(10**6))) for _ in range(3))
    finally:
        sys.setswitchinterval(before)


def test_concurrent_calls_do_not_disturb_each_other(random_graph, features, threads) -> None:
    threads(2)
    graph, x = random_graph(200, 200, 0.3, 1), features(200, 64, seed=2)
    expected = all_operators(graph, x)
    equal: list[bool] = []

    def work() -> None:
        for _ in range(10):
            results = all_operators(graph, x)
            equal.append(all(torch.equal(a, b) for a, b in zip(expected, results, strict=True)))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert equal == [True] * 30


class Products:
    """A data set whose items are products."""

    def __init__(self, graph: Graph, x: Tensor) -> None:
        self.graph, self.x = graph, x

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> Tensor:
        return spmm(self.graph, self.x)


@pytest.mark.timeout(120)
def test_forked_loaders_do_not_hang(random_graph, features, threads) -> None:
    """PyTorch gives its workers one thread, so that no OpenMP region starts in a forked process."""
    threads(2)
    graph, x = random_graph(200, 200, 0.5, 1), features(200, 64, seed=2)
    expected = spmm(graph, x)  # a region with two threads before the fork
    loader = DataLoader(Products(graph, x), batch_size=None, num_workers=2, multiprocessing_context="fork")  # type: ignore[arg-type]
    assert all(torch.equal(y, expected) for y in loader)


def varied_results(backend: str) -> list[Tensor]:
    """Every operator at widths with and without a rest, and at few and many kept columns."""
    generator = torch.Generator().manual_seed(0)
    row, column = (torch.randint(0, size, (400,), generator=generator) for size in (50, 40))
    graph = Graph.from_coo(row, column, torch.rand(400, generator=generator), (50, 40))
    results = []
    for width in (1, 20, 64, 130, 256):
        x = torch.randn(40, width, generator=generator)
        y = spmm(graph, x, backend=backend)
        results += [y, sddmm(graph, y, x, backend=backend)]
        for k in sorted({1, width // 4 + 1, width}):
            h = maxk(x, k, backend=backend)
            results += [h.to_dense(backend=backend), cbsr_spmm(graph, h, backend=backend)]
            results += [cbsr_sddmm(graph, y, h, backend=backend), sddmm(graph, y, h, backend=backend)]
    return results


ISA = """
import runpy, sys, torch
from tradeoff.engines.kernels import kernel_info
torch.save(runpy.run_path(sys.argv[1])["varied_results"]("cpp"), sys.argv[2])
assert kernel_info().instruction_set == kernel_info().last.kernel.split("-")[1] == sys.argv[3], kernel_info()
"""


def test_all_instruction_sets_agree(tmp_path) -> None:
    best = native.instruction_set()
    order = ["portable", "avx2", "avx512"]
    expected = varied_results("torch")
    assert kernel_info().last.kernel == "torch"
    results = {best: varied_results("cpp")}
    for name in order[: order.index(best)]:
        file = tmp_path / f"{name}.pt"
        command = [sys.executable, "-c", ISA, __file__, str(file), name]
        subprocess.run(command, env={**os.environ, "TRADEOFF_ISA": name}, check=True)
        results[name] = torch.load(file)
    for name, ours in results.items():
        for result, exact in zip(ours, expected, strict=True):
            assert torch.allclose(result, exact, rtol=1e-5, atol=1e-5), name


def test_the_missing_extension_is_told_once() -> None:
    code = """
import sys, types, warnings, json
sys.modules["tradeoff._native"] = None
import torch
from tradeoff.engines.kernels import Graph, kernel_info, maxk, spmm
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    graph = Graph.from_coo([0, 1], [1, 0])
    for _ in range(3):
        spmm(graph, torch.ones(2, 2)), maxk(torch.ones(2, 2), 1)
print(json.dumps([[str(w.message) for w in caught], str(kernel_info())]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    messages, info = json.loads(done.stdout)
    assert len(messages) == 1
    assert "the compiled kernels are not usable" in messages[0]
    assert info.startswith("sparse kernels: CPU torch")


class TestMeter:
    def test_counts_are_those_of_the_shapes(self, random_graph, features) -> None:
        graph, x = random_graph(30, 20, 0.3, 1), features(20, 16, seed=2)
        nnz, n, m, d, k = graph.nnz, 30, 20, 16, 4
        with cost_meter() as meter:
            spmm(graph, x)
        assert meter.flops == 2 * nnz * d
        assert meter.bytes_read == 8 * (n + 1) + 8 * nnz + 4 * nnz * d
        assert meter.bytes_written == 4 * n * d
        assert meter.compulsory_bytes == 8 * (n + 1) + 8 * nnz + 4 * m * d + 4 * n * d
        assert meter.kernel == f"cpp-{native.instruction_set()}-rows" == kernel_info().last.kernel
        h = maxk(x, k)
        with cost_meter() as meter:
            cbsr_spmm(graph, h)
        assert meter.flops == 2 * nnz * k
        assert meter.bytes_read == 8 * (n + 1) + 8 * nnz + 5 * nnz * k
        with cost_meter() as meter:
            cbsr_sddmm(graph, features(n, d, seed=3), h)
        assert meter.bytes_read == 8 * (n + 1) + 8 * nnz + 4 * n * d + 5 * nnz * k
        assert meter.bytes_written == 4 * nnz * k

    def test_backward_passes_count_too(self, random_graph, features) -> None:
        graph, x = random_graph(30, 20, 0.3, 1), features(20, 16, seed=2).requires_grad_()
        with cost_meter() as outer:
            with cost_meter() as inner:
                y = cbsr_spmm(graph, maxk(x, 4))
            y.sum().backward()
        assert [call.operator for call in inner.calls] == ["maxk_select", "cbsr_spmm"]
        assert [call.operator for call in outer.calls][2:] == ["cbsr_sddmm", "cbsr_dense"]
        with cost_meter() as after:
            pass
        assert (after.calls, after.kernel, after.flops) == ([], "", 0)
        assert isinstance(maxk(x.detach(), 1), CBSR)
