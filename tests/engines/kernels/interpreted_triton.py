"""Every Triton kernel beside the reference, under Triton's interpreter; run by test_triton.py in its own
process.

The interpreter takes milliseconds a program and step, so that matrices are small.
"""

import os
import random

import pytest
import torch

from tradeoff.engines.kernels import (
    CBSR,
    BlockPartition,
    Graph,
    NanError,
    cbsr_sddmm,
    cbsr_spmm,
    cost_meter,
    kernel_info,
    maxk,
    reference,
    sddmm,
    spmm,
    triton_cbsr,
    triton_ops,
    triton_spmm,
)
from tradeoff.engines.kernels.layout import BucketLayout

assert os.environ.get("TRITON_INTERPRET") == "1", "the interpreter is chosen before triton is imported"

WIDTHS = [1, 7, 16, 31, 32, 33, 60, 64, 96, 100, 128, 160, 200]
# Degrees on both sides of the borders between kinds of blocks; some rows are empty, one is cut into segments.
BORDERS = [0, 32, 33, 1, 0, 64, 65, 97, 3, 3, 3, 129, 192, 193, 385, 2, 0]
SOME = [0, 3, 17, 1, 0, 33, 2]


def matrix(
    degrees: list[int], columns: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row pointers, columns and weights of a random matrix with rows of these degrees."""
    generator = torch.Generator().manual_seed(seed)
    indptr = torch.tensor([0, *degrees]).cumsum(0)
    rows = [torch.randperm(columns, generator=generator)[:degree].sort().values for degree in degrees]
    indices = torch.cat([*rows, torch.zeros(0, dtype=torch.int64)]).int()
    return indptr, indices, torch.randn(len(indices), generator=generator, dtype=dtype)


def assert_near(y: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor, rtol: float = 1e-5) -> None:
    """Within ``rtol`` of the sums of absolute values that went into each element."""
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= rtol * scale + 1e-12).all())


def exact_product(
    indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor | None, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A X and |A| |X| in float64."""
    weights = torch.ones(len(indices), dtype=torch.float64) if values is None else values.double()
    x = x.double()
    return (
        reference.spmm(indptr, indices, weights, x),
        reference.spmm(indptr, indices, weights.abs(), x.abs()),
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_buckets_equal_float64_at_every_width(width: int) -> None:
    """At 160 a port of the published kernel, whose lanes end early, leaves columns out."""
    indptr, indices, values = matrix(BORDERS, 400)
    x = torch.randn(400, width)
    layout = BucketLayout.of(BlockPartition.from_indptr(indptr), indptr, indices)
    y = torch.full((len(BORDERS), width), torch.nan)
    triton_ops.spmm_buckets(layout, layout.sort(values), x, y)
    assert_near(y, *exact_product(indptr, indices, values, x))


@pytest.mark.parametrize("width", [1, 33, 100])
@pytest.mark.parametrize("weighted", [True, False])
def test_rows_equal_float64(width: int, weighted: bool) -> None:
    indptr, indices, values = matrix(SOME, 50)
    x = torch.randn(50, width)
    weights = values if weighted else None
    assert_near(triton_ops.spmm(indptr, indices, weights, x), *exact_product(indptr, indices, weights, x))
    layout = BucketLayout.of(BlockPartition.from_indptr(indptr), indptr, indices)
    y = torch.full((len(SOME), width), torch.nan)
    triton_ops.spmm_buckets(layout, None if weights is None else layout.sort(weights), x, y)
    assert_near(y, *exact_product(indptr, indices, weights, x))


@pytest.mark.parametrize(
    ("warps", "nnz_per_warp", "compat"), [(12, 4, True), (8, 4, False), (5, 1, False), (1, 3, False)]
)
def test_blocks_of_other_shapes(warps: int, nnz_per_warp: int, compat: bool) -> None:
    indptr, indices, values = matrix([0, 1, 2, 2, 5, 30, 31, 9, 48, 49, 24], 60)
    x = torch.randn(60, 20)
    partition = BlockPartition.from_indptr(indptr, warps=warps, nnz_per_warp=nnz_per_warp, compat=compat)
    layout = BucketLayout.of(partition, indptr, indices)
    y = torch.full((11, 20), torch.nan)
    triton_ops.spmm_buckets(layout, layout.sort(values), x, y)
    assert_near(y, *exact_product(indptr, indices, values, x))


def test_segments_are_joined_in_order_or_added_atomically() -> None:
    indptr, indices, values = matrix([2, 700, 0, 450], 800)
    x = torch.randn(800, 20)
    layout = BucketLayout.of(BlockPartition.from_indptr(indptr), indptr, indices)
    assert layout.partition.segments == 4
    results = []
    for _ in range(5):
        y = torch.full((4, 20), torch.nan)
        triton_spmm.spmm_buckets(layout, layout.sort(values), x, y)
        results.append(y)
    assert all(torch.equal(y, results[0]) for y in results)
    assert_near(results[0], *exact_product(indptr, indices, values, x))
    for dtype in (torch.float32, torch.float16):
        y = torch.full((4, 20), torch.nan, dtype=dtype)
        triton_spmm.spmm_buckets(layout, layout.sort(values), x.to(dtype), y, atomic=True)
        exact = exact_product(indptr, indices, values, x.to(dtype))
        assert_near(y, *exact, rtol=1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
def test_other_types(dtype: torch.dtype, rtol: float) -> None:
    indptr, indices, values = matrix(SOME, 50, torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(50, 17).to(dtype)
    for strategy in ("rows", "buckets"):
        graph = Graph.from_csr(indptr, indices, values, 50)
        y = spmm(graph, x, backend="triton", strategy=strategy)
        assert y.dtype == dtype
        assert_near(y, *exact_product(indptr, indices, values, x), rtol=rtol)
    selected, index, _ = triton_ops.maxk_select(x, 5, False, "raise")
    expected, positions, _ = reference.maxk_select(x, 5, False, "raise")
    assert torch.equal(selected, expected)
    assert torch.equal(index, positions)
    exact = exact_product(indptr, indices, values, reference.cbsr_dense(selected, index, None, 17))
    grad = torch.randn(len(SOME), 17).to(dtype)
    exact_back = reference.cbsr_sddmm(
        indptr, indices, values.double(), grad.double(), index, None, None, True
    )
    for deterministic in (True, False):
        y = triton_ops.cbsr_spmm(indptr, indices, values, selected, index, None, 17, deterministic)
        assert y.dtype == dtype
        assert_near(y, *exact, rtol=rtol)
        back = triton_ops.cbsr_sddmm(indptr, indices, values, grad, index, None, None, deterministic)
        assert back.dtype == dtype
        torch.testing.assert_close(back.double(), exact_back, rtol=rtol, atol=20 * rtol)


@pytest.mark.parametrize("width", [0, 1, 5])
@pytest.mark.parametrize(("degrees", "columns"), [([], 0), ([], 3), ([0, 0], 0), ([0, 0], 3), ([1], 1)])
def test_smallest_shapes(width: int, degrees: list[int], columns: int) -> None:
    graph = Graph.from_csr(*matrix(degrees, columns), columns)
    x = torch.ones(columns, width)
    expected = spmm(graph, x, backend="torch")
    for strategy in ("rows", "buckets"):
        assert torch.equal(spmm(graph, x, backend="triton", strategy=strategy), expected)
    y = torch.ones(len(degrees), width)
    assert torch.equal(sddmm(graph, y, x, backend="triton"), sddmm(graph, y, x, backend="torch"))
    if not width:
        return
    compressed = maxk(x, 1, backend="triton")
    for deterministic in (True, False):
        z = cbsr_spmm(graph, compressed, backend="triton", deterministic=deterministic)
        assert torch.equal(z, cbsr_spmm(graph, compressed, backend="torch"))
        back = cbsr_sddmm(graph, y, compressed, backend="triton", deterministic=deterministic)
        assert torch.equal(back, cbsr_sddmm(graph, y, compressed, backend="torch"))


def test_nan_and_infinity_reach_only_rows_that_have_that_neighbor() -> None:
    indptr, indices, values = matrix(SOME, 50, seed=1)
    x = torch.randn(50, 9)
    x[int(indices[0]), 2], x[int(indices[-1]), 3] = torch.nan, torch.inf
    expected = reference.spmm(indptr, indices, values, x)
    graph = Graph.from_csr(indptr, indices, values, 50)
    for strategy in ("rows", "buckets"):
        y = spmm(graph, x, backend="triton", strategy=strategy)
        torch.testing.assert_close(y, expected, equal_nan=True)
    features = maxk(x, 9, nan_policy="largest", backend="triton")
    for deterministic in (True, False):
        y = cbsr_spmm(graph, features, backend="triton", deterministic=deterministic)
        torch.testing.assert_close(y, expected, equal_nan=True)


def hard_rows(width: int) -> torch.Tensor:
    """Rows that a selection by approximate values or with loose ties gets wrong."""
    generator = torch.Generator().manual_seed(width)
    rows = [
        torch.randn(width, generator=generator),
        torch.zeros(width),
        torch.full((width,), -3.5),
        torch.randint(3, (width,), generator=generator).float() - 1,
        torch.where(torch.arange(width) % 2 == 0, 0.0, -0.0),
        torch.randn(width, generator=generator) * 1e-42,
        torch.where(torch.arange(width) % 3 == 0, -torch.inf, torch.inf),
        torch.arange(width).float(),
        -torch.arange(width).float(),
        torch.full((width,), torch.finfo().max),
    ]
    return torch.stack(rows)


def slow_selection(row: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(row)), key=lambda column: (-row[column], column))[:k])


@pytest.mark.parametrize(("width", "ks"), [(1, [1]), (7, [1, 7]), (33, [5]), (256, [32]), (300, [40])])
def test_selection_is_exact(width: int, ks: list[int]) -> None:
    x = hard_rows(width)
    for k in ks:
        values, index, count = triton_ops.maxk_select(x, k, False, "raise")
        assert index.dtype == (torch.uint8 if width <= 256 else torch.int16)
        assert index.tolist() == [slow_selection(row, k) for row in x.tolist()]
        assert torch.equal(values, x.gather(1, index.long()))
        assert not count.numel()
        clipped = triton_ops.maxk_select(x, k, True, "raise")
        for ours, theirs in zip(clipped, reference.maxk_select(x, k, True, "raise"), strict=True):
            assert torch.equal(ours, theirs)


def test_selection_of_nan() -> None:
    x = torch.tensor([[1.0, torch.nan, torch.inf], [0.0, 2.0, -1.0]])
    with pytest.raises(NanError, match="row 0"):
        maxk(x, 2, backend="triton")
    for ours, theirs in zip(
        triton_ops.maxk_select(x, 2, False, "largest"),
        reference.maxk_select(x, 2, False, "largest"),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(("width", "k"), [(1, 1), (7, 3), (33, 8), (64, 64), (300, 20)])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("weighted", [True, False])
def test_compressed_products(width: int, k: int, clip: bool, weighted: bool) -> None:
    """Forward, backward and the gradient of weights, with and without atomics; padded rows, too."""
    indptr, indices, values = matrix(SOME, 50)
    weights = values if weighted else None
    x = torch.randn(50, width) - 0.5
    x[:2], x[1, width // 2], x[2] = -1, 1, 1  # rows with none, one and all of their entries
    features, index, counts = reference.maxk_select(x, k, clip, "raise")
    count = counts if clip else None
    if count is not None:
        assert count[:3].tolist() == [0, 1, k]
    grad = torch.randn(len(SOME), width)
    exact = exact_product(indptr, indices, weights, reference.cbsr_dense(features, index, count, width))
    wide = None if weights is None else weights.double()
    back = reference.cbsr_sddmm(indptr, indices, wide, grad.double(), index, count, None, True)
    for deterministic in (True, False):
        y = triton_ops.cbsr_spmm(indptr, indices, weights, features, index, count, width, deterministic)
        assert_near(y, *exact)
        ours = triton_ops.cbsr_sddmm(indptr, indices, weights, grad, index, count, None, deterministic)
        torch.testing.assert_close(ours.double(), back, rtol=1e-5, atol=1e-5)
    dots = triton_ops.cbsr_edge_dots(indptr, indices, grad, features, index, count)
    torch.testing.assert_close(dots, reference.cbsr_edge_dots(indptr, indices, grad, features, index, count))


def test_deterministic_products_repeat_bit_by_bit() -> None:
    indptr, indices, values = matrix([20, 1, 0, 17], 30)
    features, index, _ = reference.maxk_select(torch.randn(30, 64), 9, False, "raise")
    grad = torch.randn(4, 64)
    forward = [
        triton_ops.cbsr_spmm(indptr, indices, values, features, index, None, 64, True) for _ in range(5)
    ]
    backward = [
        triton_ops.cbsr_sddmm(indptr, indices, values, grad, index, None, None, True) for _ in range(5)
    ]
    assert all(torch.equal(y, forward[0]) for y in forward)
    assert all(torch.equal(y, backward[0]) for y in backward)


def test_bitmaps() -> None:
    index = torch.tensor([[0, 31, 32, 64], [5, 6, 7, 99]], dtype=torch.uint8)
    words, before = triton_cbsr.bitmap(index, None, 100)
    assert words.tolist() == [[1 - 2**31, 1, 1, 0], [0b11100000, 0, 0, 8]]
    assert before.tolist() == [[0, 2, 3, 4], [0, 3, 3, 3]]
    padded = torch.tensor([[3, 40, 40, 40], [0, 0, 0, 0]], dtype=torch.uint8)
    words, before = triton_cbsr.bitmap(padded, torch.tensor([2, 0], dtype=torch.int32), 64)
    assert words.tolist() == [[8, 256], [0, 0]]
    assert before.tolist() == [[0, 1], [0, 0]]
    every = torch.arange(256, dtype=torch.uint8)[None]
    words, before = triton_cbsr.bitmap(every, None, 256)
    assert (words == -1).all()
    assert before.tolist() == [list(range(0, 256, 32))]
    assert before.dtype == torch.int16  # 256 entries may all lie before a word


@pytest.mark.parametrize("width", [1, 33, 130])
def test_inner_products(width: int) -> None:
    indptr, indices, _ = matrix(SOME, 50)
    y, x = torch.randn(len(SOME), width), torch.randn(50, width)
    expected = reference.sddmm(indptr, indices, y.double(), x.double())
    torch.testing.assert_close(
        triton_ops.sddmm(indptr, indices, y, x).double(), expected, rtol=1e-5, atol=1e-5
    )


def asymmetric_graph(seed: int = 0) -> tuple[Graph, torch.Tensor]:
    indptr, indices, values = matrix([2, 0, 3, 1], 5, torch.float64, seed)
    return Graph.from_csr(indptr, indices, values, 5), values


@pytest.mark.parametrize("strategy", ["rows", "buckets"])
def test_gradients_of_the_product(strategy: str) -> None:
    graph, values = asymmetric_graph()
    partition = BlockPartition.from_graph(graph, warps=2, nnz_per_warp=1)
    chosen = partition if strategy == "buckets" else None
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def product(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        weighted = graph.with_values(values)
        return spmm(weighted, x, backend="triton", strategy=strategy, partition=chosen)

    assert torch.autograd.gradcheck(product, (values.requires_grad_(), x))


@pytest.mark.parametrize("deterministic", [True, False])
def test_gradients_of_compressed_products(deterministic: bool) -> None:
    graph, values = asymmetric_graph()
    x = torch.randn(5, 4, dtype=torch.float64)
    pattern = maxk(x, 2)

    def product(values: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
        features = CBSR(entries, pattern.index, 4)
        options = {"deterministic": deterministic, "backend": "triton"}
        return cbsr_spmm(graph.with_values(values), features, **options)

    entries = pattern.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(product, (values.requires_grad_(), entries))


def test_gradient_through_the_selection_is_that_of_the_reference() -> None:
    graph, _ = asymmetric_graph()
    gradients = []
    for backend in ("triton", "torch"):
        x = torch.linspace(-1, 1, 30, dtype=torch.float64).sin().view(5, 6).requires_grad_()
        cbsr_spmm(graph, maxk(x, 3, backend=backend), backend=backend).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_the_transpose_of_a_graph_is_made_once() -> None:
    graph, _ = asymmetric_graph()
    grad = torch.randn(4, 6, dtype=torch.float64)
    pattern = maxk(torch.randn(5, 6, dtype=torch.float64), 2)
    before = len(triton_ops._transposes)
    for _ in range(3):
        cbsr_sddmm(graph, grad, pattern, backend="triton", deterministic=True)
    assert len(triton_ops._transposes) == before + 1
    del graph
    assert len(triton_ops._transposes) == before


def test_the_kernels_that_ran_are_named() -> None:
    graph, _ = asymmetric_graph()
    x = torch.randn(5, 3, dtype=torch.float64)
    with cost_meter() as meter:
        spmm(graph, x, backend="triton")
    assert meter.kernel == "triton-buckets"
    last = kernel_info().last
    assert last is not None
    assert last.kernel == "triton-buckets"
    with cost_meter() as meter:
        spmm(graph, x, backend="triton", strategy="rows")
        maxk(x, 1, backend="triton")
    assert [call.kernel for call in meter.calls] == ["triton-rows", "triton"]


def test_random_matrices_agree_with_the_reference() -> None:
    """Small ones of any shape, all operators."""
    generator = random.Random(0)
    for case in range(6):
        rows, columns, width = generator.randint(1, 8), generator.randint(1, 20), generator.randint(1, 40)
        degrees = [generator.choice([0, 1, 2, columns]) for _ in range(rows)]
        degrees = [min(degree, columns) for degree in degrees]
        indptr, indices, values = matrix(degrees, columns, seed=case)
        graph = Graph.from_csr(indptr, indices, values, columns)
        x = torch.randn(columns, width)
        exact = exact_product(indptr, indices, values, x)
        for strategy in ("rows", "buckets"):
            assert_near(spmm(graph, x, backend="triton", strategy=strategy), *exact)
        features = maxk(x, generator.randint(1, width), backend="triton", clip=case % 2 == 0)
        exact = exact_product(indptr, indices, values, features.to_dense(backend="torch"))
        y = cbsr_spmm(graph, features, backend="triton", deterministic=case % 3 == 0)
        assert_near(y, *exact)
