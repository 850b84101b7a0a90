"""Linear layers on compressed and sparse features against dense float64 products; also under sanitizers."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tradeoff.core import native
from tradeoff.engines.kernels import Graph, OperandError, cbsr_linear, maxk, sparse_linear


@pytest.fixture(scope="module", autouse=True)
def _needs_extension(require) -> None:
    require(native.extension(), "the compiled extension is missing: install a C++17 compiler")


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(result: Tensor, exact: Tensor, scale: Tensor) -> None:
    assert result.dtype == torch.float32
    assert bool(((result.double() - exact).abs() <= 1e-5 * scale + 1e-30).all())


def check(rows: int, width: int, k: int, outputs: int, features) -> None:
    """Result and all gradients, within rounding of the sums of magnitudes."""
    h = maxk(features(rows, width, seed=1), k)
    weight, add, grad = (
        features(*shape, seed=seed)
        for seed, shape in enumerate(((outputs, width), (rows, outputs), (rows, outputs)))
    )
    leaves = [tensor.clone().requires_grad_() for tensor in (h.values, weight, add)]
    y = cbsr_linear(h.with_values(leaves[0]), leaves[1], leaves[2])
    y.backward(grad)
    kept, wide, back = h.to_dense().double(), weight.double(), grad.double()
    index = h.index.long()
    close(y, add.double() + kept @ wide.T, add.double().abs() + kept.abs() @ wide.abs().T)
    close(leaves[0].grad, (back @ wide).gather(1, index), (back.abs() @ wide.abs()).gather(1, index))
    close(leaves[1].grad, back.T @ kept, back.abs().T @ kept.abs())
    assert torch.equal(leaves[2].grad, grad)


@given(
    rows=st.integers(0, 40),
    width=st.sampled_from([1, 3, 17, 64, 256, 257, 300]),
    outputs=st.sampled_from([1, 7, 8, 9, 33, 64, 65, 136]),
    data=st.data(),
)
def test_equals_dense(features, rows, width, outputs, data) -> None:
    check(rows, width, data.draw(st.integers(1, width)), outputs, features)


def test_the_default_dtype_does_not_matter(double_by_default, features) -> None:
    check(20, 30, 4, 9, features)
    graph = Graph.from_coo([0, 1, 1, 1], [1, 0, 2, 2], shape=(2, 3))  # one entry twice
    weight, bias = features(5, 3, seed=1), features(5, seed=2)
    assert graph.values.dtype == torch.float32
    exact = graph.to_dense() @ weight.T + bias
    assert torch.allclose(sparse_linear(graph, weight, bias), exact)
    assert Graph.from_coo([0, 1], [1, 0]).normalize("row").values.dtype == torch.float32


def test_results_do_not_depend_on_the_number_of_threads(features, threads) -> None:
    h, weight, add = maxk(features(700, 64, seed=1), 9), features(40, 64, seed=2), features(700, 40, seed=3)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        leaves = [tensor.clone().requires_grad_() for tensor in (h.values, weight, add)]
        y = cbsr_linear(h.with_values(leaves[0]), leaves[1], leaves[2])
        y.square().sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_what_backward_reads_is_kept(features) -> None:
    h = maxk(features(5, 6, seed=1), 2)
    learned = {"values": (h.values.clone().requires_grad_(), features(4, 6, seed=2))}
    learned["weight"] = (h.values.clone(), features(4, 6, seed=2).requires_grad_())
    kept = {}
    for name, (values, weight) in learned.items():
        saved = kept[name] = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=saved: s.add((t.dtype, tuple(t.shape))) or t, lambda t: t
        ):
            cbsr_linear(h.with_values(values), weight, torch.zeros(5, 4))
    index, values, weight = (torch.uint8, (5, 2)), (torch.float32, (5, 2)), (torch.float32, (6, 4))
    assert kept == {"values": {index, weight}, "weight": {index, values}}


def test_shapes_that_do_not_fit_are_named(features) -> None:
    h = maxk(features(5, 6, seed=1), 2)
    with pytest.raises(OperandError, match="features have 6 columns"):
        cbsr_linear(h, torch.ones(4, 5), torch.ones(5, 4))
    with pytest.raises(OperandError, match="add_to has shape"):
        cbsr_linear(h, torch.ones(4, 6), torch.ones(5, 3))
