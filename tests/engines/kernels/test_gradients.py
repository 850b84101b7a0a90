"""First and second derivatives against finite differences; compilation; operators that PyTorch accepts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tradeoff.engines.kernels import Graph, OperandError, cbsr_sddmm, cbsr_spmm, maxk, sddmm, spmm


@pytest.fixture
def graph(random_graph) -> Graph:
    """Asymmetric and not square, so that A cannot stand for its transpose."""
    return random_graph(5, 4, 0.5, 3, dtype=torch.float64)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def both(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_spmm(backend, graph, features) -> None:
    x, weights = leaf(features(4, 3, seed=1, dtype=torch.float64)), leaf(graph.values)
    both(lambda x, w: spmm(graph.with_values(w), x, backend=backend), x, weights)


def test_spmm_of_constant_weights(backend, graph, features) -> None:
    x = leaf(features(4, 3, seed=1, dtype=torch.float64))
    both(lambda x: spmm(graph, x, backend=backend), x)
    both(lambda x: spmm(graph.with_values(None), x, backend=backend), x)


@pytest.mark.parametrize("clip", [False, True])
def test_maxk_and_compressed_product(backend, graph, features, clip) -> None:
    x, weights = leaf(features(4, 6, seed=1, dtype=torch.float64)), leaf(graph.values)
    both(lambda x: maxk(x, 3, clip=clip, backend=backend).to_dense(backend=backend), x)

    def function(x: Tensor, w: Tensor) -> Tensor:
        return cbsr_spmm(graph.with_values(w), maxk(x, 3, clip=clip, backend=backend), backend=backend)

    both(function, x, weights)


def test_padded_rows_get_no_gradient_beyond_their_count(backend, graph) -> None:
    k = 4
    x = torch.tensor(
        [[-1.0, -2, -3, -4, -5], [1, -2, -3, -4, -5], [1, 2, 3, -4, -5], [1, 2, 3, 4, 5]], dtype=torch.float64
    )
    h = maxk(x, k, clip=True, backend=backend)
    assert h.count.tolist() == [0, 1, k - 1, k]
    both(lambda v: cbsr_spmm(graph, h.with_values(v * (v != 0)), backend=backend), leaf(h.values))
    values = leaf(h.values)
    cbsr_spmm(graph, h.with_values(values), backend=backend).sum().backward()
    beyond = torch.arange(k)[None] >= h.count[:, None]
    assert bool((values.grad[beyond] == 0).all())
    assert bool((values.grad[~beyond] != 0).any())


def test_cbsr_sddmm(backend, graph, features) -> None:
    grad, weights = leaf(features(5, 6, seed=1, dtype=torch.float64)), leaf(graph.values)
    for clip in (False, True):
        pattern = maxk(features(4, 6, seed=2), 4, clip=clip)
        both(lambda g, w, h=pattern: cbsr_sddmm(graph.with_values(w), g, h, backend=backend), grad, weights)


def test_sddmm(backend, graph, features) -> None:
    y, x = (leaf(features(rows, 6, seed=rows, dtype=torch.float64)) for rows in (5, 4))
    both(lambda y, x: sddmm(graph, y, x, backend=backend), y, x)
    both(lambda y, x: sddmm(graph, y, maxk(x, 3), backend=backend), y, x)


def saved(call: Callable[[], Tensor]) -> set[int]:
    """Addresses of the tensors that a call keeps for its backward pass."""
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.data_ptr()) or t, lambda t: t):
        result = call()
    assert result.requires_grad
    return kept


def test_only_what_backward_reads_is_kept(backend, graph, features) -> None:
    """Features of constant weights need not stay in memory: their gradient is the transpose's product."""
    x, y = (
        leaf(features(4, 6, seed=1, dtype=torch.float64)),
        leaf(features(5, 6, seed=2, dtype=torch.float64)),
    )
    learned = graph.with_values(leaf(graph.values))
    pattern = maxk(x.detach(), 3)
    kept = pattern.with_values(leaf(pattern.values))
    buckets = {"strategy": "buckets", "backend": backend}
    of_x, of_y, of_values = x.data_ptr(), y.data_ptr(), kept.values.data_ptr()
    assert of_x not in saved(lambda: spmm(graph, x, backend=backend))
    assert of_x in saved(lambda: spmm(learned, x, backend=backend))
    assert of_x not in saved(lambda: spmm(graph, x, **buckets))
    assert of_x in saved(lambda: spmm(learned, x, **buckets))
    assert of_y not in saved(lambda: sddmm(graph, y, x.detach(), backend=backend))
    assert of_y in saved(lambda: sddmm(graph, y.detach(), x, backend=backend))
    assert of_x not in saved(lambda: sddmm(graph, y.detach(), x, backend=backend))
    assert of_x in saved(lambda: sddmm(graph, y, x.detach(), backend=backend))
    assert of_values not in saved(lambda: cbsr_spmm(graph, kept, backend=backend))
    assert of_values in saved(lambda: cbsr_spmm(learned, kept, backend=backend))
    assert of_values not in saved(lambda: sddmm(graph, y.detach(), kept, backend=backend))
    assert of_values in saved(lambda: sddmm(graph, y, kept, backend=backend))
    assert of_y not in saved(lambda: cbsr_sddmm(graph, y, pattern, backend=backend))
    assert of_y in saved(lambda: cbsr_sddmm(learned, y, pattern, backend=backend))
    assert of_x not in saved(lambda: maxk(x, 3, backend=backend).values)


def test_a_transpose_confused_with_its_graph_would_fail(features) -> None:
    square = Graph.from_coo([0, 1], [1, 2], torch.tensor([2.0, 3.0]), (3, 3))
    x = leaf(features(3, 2, seed=1))
    spmm(square, x).backward(features(3, 2, seed=2))
    grad = features(3, 2, seed=2)
    assert torch.allclose(x.grad, square.to_dense().T @ grad)
    assert not torch.allclose(x.grad, square.to_dense() @ grad)


def test_the_transpose_follows_weights_that_learn(features) -> None:
    graph = Graph.from_coo([0, 0, 1], [0, 1, 0], shape=(2, 2))
    weights = leaf(torch.tensor([1.0, 2.0, 3.0]))
    learned = graph.with_values(weights)
    for _ in range(2):
        x = leaf(features(2, 3, seed=1))
        spmm(learned, x).sum().backward()
        assert torch.allclose(x.grad, learned.to_dense().detach().T @ torch.ones(2, 3))
        with torch.no_grad():
            weights.mul_(2)


def test_compiled_models_have_no_graph_break(graph, features) -> None:
    single = graph.to(dtype=torch.float32)

    def model(x: Tensor) -> Tensor:
        return spmm(single, x).sum() + cbsr_spmm(single, maxk(x * 2, 3)).square().sum()

    x, same = leaf(features(4, 6, seed=1)), leaf(features(4, 6, seed=1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x).backward()
    model(same).backward()
    assert torch.allclose(x.grad, same.grad)


def test_operators_pass_the_checks_of_pytorch(graph, features) -> None:
    operators = torch.ops.tradeoff_kernels
    structure, perm = graph.structure.transposed()
    base, back = (graph.indptr, graph.indices), (structure.indptr, structure.indices, perm)
    weights, x = leaf(graph.values), leaf(features(4, 6, seed=1, dtype=torch.float64))
    y = leaf(features(5, 6, seed=2, dtype=torch.float64))
    h = maxk(x.detach(), 3)
    v, offsets = leaf(h.values), graph.structure.column_offsets
    calls = {
        operators.spmm: (*base, weights, x, *back, None, "auto"),
        operators.spmm_out: (*base, graph.values, x.detach(), torch.empty_like(y), "auto"),
        operators.sddmm: (*base, y, x, *back, "auto"),
        operators.maxk_select: (x, 3, False, "raise", "auto"),
        operators.cbsr_dense: (v, h.index, None, 6, "auto"),
        operators.cbsr_gather: (x, h.index, None, "auto"),
        operators.cbsr_spmm: (*base, weights, v, h.index, None, 6, offsets, False, "auto"),
        operators.cbsr_sddmm: (*base, weights, y, h.index, None, offsets, False, "auto"),
        operators.cbsr_edge_dots: (*base, y, v, h.index, None, offsets, "auto"),
        operators.transpose: (*base, 4),
        operators.order_entries: (torch.tensor([1, 0]), torch.tensor([0, 1]), 2, 2),
    }
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, arguments in calls.items():
        torch.library.opcheck(operator, arguments, test_utils=tests)


@pytest.fixture
def functions(graph, features, backend) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Every operator as a function of its matrices, and operands."""
    x, y = (features(rows, 3, seed=rows, dtype=torch.float64) for rows in (4, 5))
    pattern = maxk(x, 2)
    here = {"backend": backend}
    return {
        "spmm": (lambda x, w: spmm(graph.with_values(w), x, **here), (x, graph.values)),
        "constant": (lambda x: spmm(graph, x, **here), (x,)),
        "buckets": (
            lambda x, w: spmm(graph.with_values(w), x, strategy="buckets", **here),
            (x, graph.values),
        ),
        "sddmm": (lambda y, x: sddmm(graph, y, x, **here), (y, x)),
        "maxk": (lambda x: maxk(x, 2, clip=True, **here).to_dense(**here), (x,)),
        "cbsr_spmm": (
            lambda x, w: cbsr_spmm(graph.with_values(w), maxk(x, 2, **here), **here),
            (x, graph.values),
        ),
        "cbsr_sddmm": (lambda y, w: cbsr_sddmm(graph.with_values(w), y, pattern, **here), (y, graph.values)),
        "cbsr_sddmm of x": (lambda y, x: sddmm(graph, y, maxk(x, 2, **here), **here), (y, x)),
    }


def test_forward_mode(functions) -> None:
    for name, (function, operands) in functions.items():
        assert gradcheck(function, tuple(map(leaf, operands)), check_forward_ad=True), name
        directions = tuple(torch.randn_like(each) for each in operands)
        _, tangent = torch.func.jvp(function, operands, directions)
        _, expected = torch.autograd.functional.jvp(function, operands, directions)
        assert torch.allclose(tangent, expected), name
        assert bool((tangent != 0).any())


def test_transforms_of_functions(functions) -> None:
    transforms = {
        "forward over reverse": torch.func.hessian,
        "reverse twice": lambda f, places: torch.func.jacrev(torch.func.jacrev(f, places), places),
        "forward twice": lambda f, places: torch.func.jacfwd(torch.func.jacfwd(f, places), places),
        "reverse over forward": lambda f, places: torch.func.jacrev(torch.func.jacfwd(f, places), places),
    }
    for name, (function, operands) in functions.items():
        places = tuple(range(len(operands)))

        def loss(*operands: Tensor, function: Callable[..., Tensor] = function) -> Tensor:
            return function(*operands).sin().sum()

        leaves = tuple(map(leaf, operands))
        expected = torch.autograd.grad(loss(*leaves), leaves)
        for ours, theirs in zip(torch.func.grad(loss, places)(*operands), expected, strict=True):
            assert torch.allclose(ours, theirs), name
        second = torch.autograd.functional.hessian(loss, operands)
        for how, transform in transforms.items():
            if how != "forward over reverse" and name != "cbsr_spmm":
                continue  # one product of three operators stands for them all
            for row, expected_row in zip(transform(loss, places)(*operands), second, strict=True):
                for ours, theirs in zip(row, expected_row, strict=True):
                    assert torch.allclose(ours, theirs), f"{name}, {how}"


def test_a_written_result_has_no_tangent(graph, features) -> None:
    x = features(4, 3, seed=1, dtype=torch.float64)
    with pytest.raises(OperandError, match="out= has no gradient"):
        torch.func.jvp(lambda x: spmm(graph, x, out=torch.empty(5, 3, dtype=x.dtype)), (x,), (x,))


@pytest.mark.parametrize("strategy", ["rows", "buckets"])
def test_the_transpose_follows_weights_that_are_written(features, strategy) -> None:
    graph = Graph.from_coo([0, 0, 1], [0, 1, 0], torch.tensor([1.0, 2, 3]), (2, 2))
    symmetric = Graph.from_coo([0, 1], [1, 0], torch.tensor([1.0, 1]), (2, 2))
    assert symmetric.is_symmetric
    for _ in range(2):
        x = leaf(features(2, 3, seed=1))
        spmm(graph, x, strategy=strategy).sum().backward()
        assert torch.allclose(x.grad, graph.to_dense().T @ torch.ones(2, 3))
        assert torch.equal(graph.transpose().to_dense(), graph.to_dense().T)
        graph.values.mul_(10)
    symmetric.values[0] = 5
    assert not symmetric.is_symmetric
