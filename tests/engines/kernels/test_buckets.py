"""The product by blocks of equal degree on the CPU: equal to that by rows, with gradients."""

import gc

import pytest
import torch

from tradeoff.engines.kernels import BlockPartition, Graph, PartitionMismatch, backends, cost_meter, spmm

DEGREES = [0, 3, 33, 1, 0, 65, 3, 130, 200, 2, 385, 1, 1, 3, 800, 0]
COLUMNS = 820


def random_graph(
    dtype: torch.dtype = torch.float32, degrees: list[int] = DEGREES, columns: int = COLUMNS
) -> Graph:
    """A weighted matrix with rows of these degrees; neither square nor symmetric."""
    generator = torch.Generator().manual_seed(len(degrees))
    indptr = torch.tensor([0, *degrees]).cumsum(0)
    indices = [torch.randperm(columns, generator=generator)[:g].sort().values for g in degrees]
    values = torch.randn(int(indptr[-1]), generator=generator, dtype=dtype)
    return Graph.from_csr(indptr, torch.cat(indices), values, columns)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("width", [1, 16, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_buckets_equal_rows(backend: str, width: int, dtype: torch.dtype) -> None:
    graph = random_graph(torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(COLUMNS, width).to(dtype)
    partition = BlockPartition.from_graph(graph)
    with cost_meter() as meter:
        y = spmm(graph, x, backend=backend, strategy="buckets", partition=partition)
    assert meter.kernel.endswith("-buckets")
    torch.testing.assert_close(y, spmm(graph, x, backend=backend, strategy="rows"))
    out = torch.full_like(y, torch.nan)
    assert spmm(graph, x, backend=backend, strategy="buckets", out=out) is out
    assert torch.equal(out, y)


def test_unweighted_and_empty_graphs() -> None:
    graph = Graph.from_csr([0, 0, 2, 2], [0, 1], num_columns=4)
    x = torch.randn(4, 3)
    expected = torch.stack([torch.zeros(3), x[0] + x[1], torch.zeros(3)])
    torch.testing.assert_close(spmm(graph, x, strategy="buckets"), expected)
    for empty in (Graph.from_csr([0], []), Graph.from_csr([0, 0, 0], [], num_columns=4)):
        y = spmm(empty, torch.ones(empty.num_columns, 5), strategy="buckets")
        assert torch.equal(y, torch.zeros(empty.num_rows, 5))
    assert spmm(graph, torch.ones(4, 0), strategy="buckets").shape == (3, 0)


def test_gradients_of_features_and_weights() -> None:
    """By finite differences, on an asymmetric matrix whose rows and columns are cut into blocks."""
    base = random_graph(torch.float64, [0, 2, 5, 1, 3, 9, 0], 11)
    partition = BlockPartition.from_graph(base, warps=2, nnz_per_warp=2)
    values = base.values.clone().requires_grad_()
    x = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)

    def product(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return spmm(base.with_values(values), x, strategy="buckets", partition=partition)

    assert torch.autograd.gradcheck(product, (values, x))
    assert torch.autograd.gradgradcheck(product, (values, x))
    assert torch.autograd.gradcheck(lambda x: product(base.values, x), (x,))


def test_backward_goes_by_blocks_of_the_transpose_and_sorts_once() -> None:
    graph = random_graph()
    partition = BlockPartition.from_graph(graph)
    x = torch.randn(COLUMNS, 8, requires_grad=True)
    kernels = set()
    for _ in range(3):
        with cost_meter() as meter:
            spmm(graph, x, strategy="buckets", partition=partition).sum().backward()
        kernels |= {call.kernel for call in meter.calls}
    assert all(kernel.endswith("-buckets") for kernel in kernels)
    structure = graph.structure
    assert partition.layout(structure) is partition.layout(structure)
    assert partition.transposed(structure) is partition.transposed(structure)
    layout = partition.layout(structure)
    assert layout.sorted_once(graph.values) is layout.sorted_once(graph.values)
    other = graph.values * 2
    assert torch.equal(layout.sorted_once(other), other[layout.entries])
    other.add_(1)
    assert torch.equal(layout.sorted_once(other), other[layout.entries])


def test_symmetric_graphs_need_one_partition() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), num_nodes=3)
    partition = BlockPartition.from_graph(graph)
    assert partition.transposed(graph.structure) is partition
    x = torch.randn(3, 2, requires_grad=True)
    spmm(graph, x, strategy="buckets", partition=partition).sum().backward()
    torch.testing.assert_close(x.grad, graph.to_dense().T @ torch.ones(3, 2))


def test_partition_of_another_graph_is_refused() -> None:
    partition = BlockPartition.from_graph(random_graph())
    other = random_graph(degrees=[*DEGREES[1:], DEGREES[0]])
    with pytest.raises(PartitionMismatch, match="made for another graph"):
        spmm(other, torch.randn(COLUMNS, 4), strategy="buckets", partition=partition)


def test_auto_takes_rows_on_the_cpu_and_buckets_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = random_graph(), torch.randn(COLUMNS, 4)
    with cost_meter() as meter:
        spmm(graph, x)
    assert meter.kernel.endswith("-rows")
    assert not backends.takes_buckets("auto", "auto", torch.device("cpu"))
    assert not backends.takes_buckets("rows", "auto", torch.device("cuda"))
    monkeypatch.setattr(backends, "_triton_version", lambda: "3.6.0")
    assert backends.takes_buckets("auto", "auto", torch.device("cuda"))
    monkeypatch.setattr(backends, "_triton_version", lambda: None)
    assert not backends.takes_buckets("auto", "auto", torch.device("cuda"))


def test_compilers_trace_through() -> None:
    graph = random_graph()
    partition = BlockPartition.from_graph(graph)
    x = torch.randn(COLUMNS, 4, requires_grad=True)

    def product(x: torch.Tensor) -> torch.Tensor:
        return spmm(graph, x, strategy="buckets", partition=partition).relu()

    expected = product(x)  # blocks are made at the first call
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def test_gradients_outlive_the_partition() -> None:
    graph, x = random_graph(), torch.randn(COLUMNS, 4, requires_grad=True)
    y = spmm(graph, x, strategy="buckets", partition=BlockPartition.from_graph(graph))
    gc.collect()
    y.sum().backward()
    torch.testing.assert_close(x.grad, graph.to_dense().T @ torch.ones(graph.num_rows, 4))
