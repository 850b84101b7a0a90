"""Every operator against dense float64 arithmetic, over shapes, dtypes and degrees; also under sanitizers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tradeoff.engines.kernels import CBSR, Graph, cbsr_sddmm, cbsr_spmm, kernel_info, maxk, sddmm, spmm

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}

shapes = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 150))
widths = st.sampled_from([0, 1, 7, 8, 16, 17, 31, 48, 63, 64, 65, 100, 128, 144, 200, 256, 257, 300])


def close(result: Tensor, exact: Tensor, scale: Tensor) -> None:
    """Within the tolerance of the sum of magnitudes that went into each element."""
    assert result.shape == exact.shape
    bound = TOLERANCE[result.dtype] * scale.double() + 1e-30
    assert bool(((result.double() - exact).abs() <= bound).all())


def dense(graph: Graph) -> Tensor:
    return graph.to_dense(torch.float64)


def slice_of_rows(graph: Graph, begin: int, end: int) -> Graph:
    indptr = graph.indptr[begin : end + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    return Graph.from_csr(
        indptr - indptr[0], graph.indices[entries], graph.values[entries], graph.num_columns
    )


def slow_select(x: Tensor, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """Columns by (value falling, column rising), of Python floats."""
    columns, kept = [], []
    for row in x.tolist():
        best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        columns.append(sorted(best))
        kept.append([row[c] for c in sorted(best)])
    return columns, kept


class TestSpmm:
    @given(
        shape=shapes,
        width=widths,
        weighted=st.booleans(),
        density=st.floats(0, 1),
        seed=st.integers(0, 10**6),
    )
    def test_equals_dense(
        self, backend, random_graph, features, shape, width, weighted, density, seed
    ) -> None:
        graph = random_graph(shape[0], shape[1], density, seed, weighted)
        x = features(shape[1], width, seed=seed)
        y = spmm(graph, x, backend=backend)
        close(y, dense(graph) @ x.double(), dense(graph).abs() @ x.double().abs())
        assert kernel_info().last.kernel.startswith(backend)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, backend, random_graph, features, dtype) -> None:
        weights = torch.float64 if dtype == torch.float64 else torch.float32
        graph = random_graph(30, 25, 0.3, 1, dtype=weights)
        x = features(25, 70, seed=2, dtype=dtype)
        y = spmm(graph, x, backend=backend)
        assert y.dtype == dtype
        close(y, dense(graph) @ x.double(), dense(graph).abs() @ x.double().abs())

    def test_out_is_written_and_returned(self, backend, random_graph, features) -> None:
        graph, x = random_graph(30, 25, 0.3, 1), features(25, 40, seed=2)
        for dtype in (torch.float32, torch.bfloat16):
            out = torch.full((30, 40), torch.nan, dtype=dtype)
            assert spmm(graph, x.to(dtype), backend=backend, out=out) is out
            assert torch.equal(out, spmm(graph, x.to(dtype), backend=backend))

    def test_nan_and_inf_stay_in_rows_that_have_them(self, backend) -> None:
        graph = Graph.from_coo([0, 0, 1, 3], [0, 1, 1, 2], torch.tensor([1.0, 2, 3, 4]), (4, 3))
        for width in (1, 16, 20, 64):
            x = torch.ones(3, width)
            x[0], x[2] = torch.nan, torch.inf
            y = spmm(graph, x, backend=backend)
            assert bool(y[0].isnan().all())
            assert bool((y[1] == 3).all())
            assert bool((y[2] == 0).all())
            assert bool((y[3] == torch.inf).all())

    def test_long_rows_are_cut(self, backend, features) -> None:
        hub, other = 70_001, 140_002
        row = torch.cat([torch.full((hub,), 1), torch.full((other,), 3), torch.tensor([0, 2, 4])])
        column = torch.cat([torch.arange(hub), torch.arange(other), torch.tensor([5, 6, 7])])
        graph = Graph.from_coo(row, column, features(row.numel(), seed=3), (5, other))
        x = features(other, 20, seed=4)
        exact = graph.to_scipy().astype("float64") @ x.double().numpy()
        scale = abs(graph.to_scipy()).astype("float64") @ x.double().abs().numpy()
        close(spmm(graph, x, backend=backend), torch.from_numpy(exact), torch.from_numpy(scale))

    @pytest.mark.parametrize("width", [16, 80, 144, 272, 24, 17])
    def test_results_larger_than_caches(self, backend, features, width) -> None:
        """They are written past the caches, in whole lines; and that changes no bit of them."""
        rows, columns = (32 << 20) // (4 * width) + 9, 500
        indptr = torch.arange(rows + 1) * 3 // 2  # one or two entries a row
        indptr[rows // 2 :] = indptr[rows // 2].clone()  # and none
        column = torch.randint(columns, (int(indptr[-1]),), generator=torch.Generator().manual_seed(0))
        graph = Graph.from_csr(indptr, column, features(column.numel(), seed=1), columns)
        x = features(columns, width, seed=2)
        y = spmm(graph, x, backend=backend)
        assert y.nbytes > 32 << 20
        step = rows // 3
        for begin in range(0, rows, step):
            part, y_part = slice_of_rows(graph, begin, begin + step), y[begin : begin + step]
            assert torch.equal(spmm(part, x, backend=backend), y_part)
            matrix = part.to_scipy().astype("float64")
            exact, scale = matrix @ x.double().numpy(), abs(matrix) @ x.double().abs().numpy()
            close(y_part, torch.from_numpy(exact), torch.from_numpy(scale))
        out = torch.full((rows * width + 1,), torch.nan)[1:].view(
            rows, width
        )  # no line of the result is whole
        assert torch.equal(spmm(graph, x, backend=backend, out=out), y)

    def test_not_contiguous_is_copied(self, backend, random_graph, features) -> None:
        graph, x = random_graph(30, 25, 0.3, 1), features(40, 25, seed=2).T
        assert torch.equal(spmm(graph, x, backend=backend), spmm(graph, x.contiguous(), backend=backend))


class TestSelection:
    @given(rows=st.integers(0, 20), width=st.integers(1, 300), seed=st.integers(0, 10**6), data=st.data())
    def test_equals_a_sort(self, backend, features, rows, width, seed, data) -> None:
        k = data.draw(st.integers(1, width))
        kind = data.draw(st.sampled_from(["normal", "ties", "heavy"]))
        x = features(rows, width, seed=seed)
        x = {"normal": x, "ties": x.round(), "heavy": (3 * x) ** 9}[kind]
        h = maxk(x, k, backend=backend)
        columns, kept = slow_select(x, k)
        assert h.index.tolist() == columns
        assert h.values.tolist() == kept
        assert h.index.dtype == (torch.uint8 if width <= 256 else torch.int16)

    @pytest.mark.parametrize("width", [5, 16, 37, 64, 256, 300])
    def test_adversarial_rows(self, backend, width) -> None:
        denormal, most = 1e-44, 3.4e38
        rows = [
            [0.0] * width,
            [-0.0, 0.0] * (width // 2) + [-0.0] * (width % 2),
            [torch.inf, -torch.inf] * (width // 2) + [1.0] * (width % 2),
            [-torch.inf] * width,
            [denormal * (c % 3 - 1) for c in range(width)],
            [most * (-1) ** c for c in range(width)],
            [float(c) for c in range(width)],
            [float(-c) for c in range(width)],
            [1.0] + [0.0] * (width - 1),
            [-1.0] * (width - 1) + [2.0],
            [1.0 + 1.2e-7 * (c % 2) for c in range(width)],
            [1e30] + [1e-30 * c for c in range(width - 1)],
        ]
        x = torch.tensor(rows)
        for k in sorted({1, 2, 3, width // 4 + 1, width // 2, width - 1, width}):
            for dtype in (torch.float32, torch.float64):
                h = maxk(x.to(dtype), k, backend=backend)
                columns, _ = slow_select(x, k)
                assert h.index.tolist() == columns
                assert torch.equal(h.values, x.to(dtype).gather(1, h.index.long()))

    def test_all_columns_are_the_identity(self, backend, features) -> None:
        x = features(9, 33, seed=1)
        assert torch.equal(maxk(x, 33, backend=backend).to_dense(backend=backend), x)

    def test_halves_are_ranked_as_they_are(self, backend, features) -> None:
        x = features(9, 33, seed=1, dtype=torch.bfloat16)
        h = maxk(x, 5, backend=backend)
        assert h.values.dtype == torch.bfloat16
        assert h.index.tolist() == slow_select(x, 5)[0]

    def test_nan_can_rank_first(self, backend) -> None:
        x = torch.tensor([[0.0, torch.nan, 9.0, -torch.nan], [1.0, 2, 3, 4]])
        h = maxk(x, 2, nan_policy="largest", backend=backend)
        assert h.index.tolist() == [[1, 3], [2, 3]]

    def test_clip_keeps_positive_values_in_front(self, backend) -> None:
        x = torch.tensor(
            [[-1.0, 3, 0, 2, -5, 1], [-1, -2, -3, -4, -5, -6], [1, 2, 3, 4, 5, 6], [0, 7, 0, 0, 0, 0]]
        )
        h = maxk(x, 4, clip=True, backend=backend)
        assert h.count.tolist() == [3, 0, 4, 1]
        assert h.index.tolist() == [[1, 3, 5, 5], [0, 0, 0, 0], [2, 3, 4, 5], [1, 1, 1, 1]]
        assert h.values.tolist() == [[3, 2, 1, 0], [0, 0, 0, 0], [3, 4, 5, 6], [7, 0, 0, 0]]
        assert torch.equal(h.to_dense(backend=backend), maxk(x, 4).to_dense().relu())


class TestCompressed:
    @given(
        shape=shapes, weighted=st.booleans(), clip=st.booleans(), seed=st.integers(0, 10**6), data=st.data()
    )
    def test_products_equal_dense(
        self, backend, random_graph, features, shape, weighted, clip, seed, data
    ) -> None:
        width = data.draw(st.sampled_from([1, 3, 16, 33, 64, 96, 128, 200, 256, 257, 384]))
        k = data.draw(st.integers(1, width))
        graph = random_graph(shape[0], shape[1], 0.3, seed, weighted)
        x, grad = features(shape[1], width, seed=seed), features(shape[0], width, seed=seed + 1)
        h = maxk(x, k, clip=clip)
        kept = h.to_dense().double()
        y = cbsr_spmm(graph, h, backend=backend)
        close(y, dense(graph) @ kept, dense(graph).abs() @ kept.abs())
        back = cbsr_sddmm(graph, grad, h, backend=backend)
        exact, scale = dense(graph).T @ grad.double(), dense(graph).T.abs() @ grad.double().abs()
        index = h.index.long()
        valid = torch.ones_like(index, dtype=torch.bool)
        if clip:
            valid = torch.arange(k)[None] < h.count[:, None]
        close(back, exact.gather(1, index) * valid, scale.gather(1, index))
        row, column = dense(graph.with_values(torch.ones(graph.nnz))).nonzero(as_tuple=True)
        dots = sddmm(graph, grad, h, backend=backend)
        close(
            dots, (grad.double()[row] * kept[column]).sum(1), (grad.double()[row] * kept[column]).abs().sum(1)
        )

    @given(shape=shapes, width=widths, seed=st.integers(0, 10**6))
    def test_sampled_products_equal_dense(self, backend, random_graph, features, shape, width, seed) -> None:
        graph = random_graph(shape[0], shape[1], 0.3, seed)
        y, x = features(shape[0], width, seed=seed), features(shape[1], width, seed=seed + 1)
        row, column = dense(graph).nonzero(as_tuple=True)
        products = y.double()[row] * x.double()[column]
        close(sddmm(graph, y, x, backend=backend), products.sum(1), products.abs().sum(1))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, backend, random_graph, features, dtype) -> None:
        weights = torch.float64 if dtype == torch.float64 else torch.float32
        graph = random_graph(30, 25, 0.3, 1, dtype=weights)
        h, grad = maxk(features(25, 70, seed=2, dtype=dtype), 9), features(30, 70, seed=3, dtype=dtype)
        y, back = cbsr_spmm(graph, h, backend=backend), cbsr_sddmm(graph, grad, h, backend=backend)
        assert y.dtype == back.dtype == dtype
        kept = h.to_dense().double()
        close(y, dense(graph) @ kept, dense(graph).abs() @ kept.abs())
        index = h.index.long()
        scale = dense(graph).T.abs() @ grad.double().abs()
        close(back, (dense(graph).T @ grad.double()).gather(1, index), scale.gather(1, index))

    def test_padding_takes_nothing_from_infinite_weights(self, backend) -> None:
        graph = Graph.from_coo([0], [0], torch.tensor([torch.inf]), (1, 1))
        h = maxk(torch.tensor([[2.0, -1.0, -3.0]]), 3, clip=True)
        assert cbsr_spmm(graph, h, backend=backend).tolist()[0][0] == torch.inf

    def test_gathered_rows_survive_dropout(self, backend, random_graph, features) -> None:
        graph, h = random_graph(12, 10, 0.4, 1), maxk(features(10, 20, seed=2), 6)
        dropped = h.with_values(torch.where(torch.rand(10, 6) < 0.5, 0, h.values))
        assert isinstance(dropped, CBSR)
        close(
            cbsr_spmm(graph, dropped, backend=backend),
            dense(graph) @ dropped.to_dense().double(),
            dense(graph).abs() @ dropped.to_dense().double().abs(),
        )
