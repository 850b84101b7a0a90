"""MaxK networks against the same functions written with dense masks."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tradeoff.engines.kernels import CBSR, Graph
from tradeoff.engines.kernels.linear import cbsr_linear, reference
from tradeoff.methods.graphs.maxk_gnn import (
    KMismatch,
    MaxK,
    MaxKGNN,
    ModelError,
    NanActivation,
    aggregate,
    maxk,
    relu_by_maxk,
    square_error,
)
from tradeoff.methods.graphs.maxk_gnn.dropout import dropout
from tradeoff.methods.graphs.maxk_gnn.model import Kind, sparse_if_worth
from tradeoff.methods.graphs.maxk_gnn.systems import build
from tradeoff.methods.graphs.maxk_gnn.timing import saved_bytes

sys.path.insert(0, str(Path(__file__).parent))
from conftest import random_graph, simulated, slow_select

KINDS: tuple[Kind, ...] = ("sage", "gcn", "gin")


def adversarial(columns: int) -> Tensor:
    """Ties, zeros of both signs, infinities, denormal numbers, constants, and plain random rows."""
    generator = torch.Generator().manual_seed(columns)
    rows = torch.randn(12, columns, generator=generator)
    rows[0] = 0.0
    rows[1] = torch.where(torch.arange(columns) % 2 == 0, 0.0, -0.0)
    rows[2] = rows[2].round()
    rows[3, ::3] = float("inf")
    rows[4, ::3] = -float("inf")
    rows[5] = rows[5] * 1e-42
    rows[6] = -1.5
    rows[7] = rows[7].abs().neg()
    rows[8, -1] = float("inf")
    rows[9] = torch.arange(columns)
    rows[10] = -torch.arange(columns)
    return rows


@pytest.mark.parametrize("columns", [16, 64, 100, 256, 384])
def test_maxk_keeps_what_sorting_keeps(columns: int) -> None:
    x = adversarial(columns)
    for k in {1, 2, 7, columns // 4, columns - 1, columns}:
        mask = slow_select(x, k)
        assert torch.equal(MaxK(k)(x), torch.where(mask, x, 0.0))
        kept = MaxK(k).compressed(x)
        assert torch.equal(kept.index.long(), mask.nonzero()[:, 1].reshape(len(x), k))


def test_maxk_passes_gradients_at_kept_positions_only() -> None:
    x = torch.randn(9, 32, requires_grad=True)
    MaxK(5)(x).pow(2).sum().backward()
    assert torch.equal(x.grad, torch.where(slow_select(x.detach(), 5), 2 * x.detach(), 0.0))
    assert torch.equal(MaxK(32)(x), x)


@pytest.mark.parametrize("aggregation", ["auto", "cbsr", "dense"])
@pytest.mark.parametrize("how", ["row", "sym", "none"])
def test_aggregation_equals_the_dense_masked_product(graph: Graph, how: str, aggregation: str) -> None:
    """The graph is directed, so that A and its transpose differ; scaling must reach the transpose, too."""
    graph = graph.normalize(how)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        scaled = graph.with_values(None if graph.values is None else graph.values.to(dtype))
        x = torch.randn(60, 48, dtype=dtype, requires_grad=True)
        weights = torch.randn(60, 48, dtype=dtype)
        (aggregate(scaled, maxk(x, 9), aggregation) * weights).sum().backward()
        dense = x.detach().clone().requires_grad_()
        expected = graph.to_dense(dtype) @ (dense * slow_select(dense.detach(), 9))
        torch.testing.assert_close(
            aggregate(scaled, maxk(x, 9), aggregation), expected, rtol=tolerance, atol=tolerance
        )
        (expected * weights).sum().backward()
        torch.testing.assert_close(x.grad, dense.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("aggregation", ["cbsr", "dense"])
def test_gradcheck_through_selection_and_aggregation(aggregation: str) -> None:
    graph = random_graph(7, 3).normalize("row").to(dtype=torch.float64)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: aggregate(graph, maxk(x, 2), aggregation), x)


@pytest.mark.parametrize("columns", [10, 64, 256, 300])
def test_compressed_linear_equals_the_dense_product(columns: int) -> None:
    for outputs in (1, 7, 64, 150):
        x = torch.randn(70, columns)
        operands = [
            part.requires_grad_()
            for part in (torch.randn(70, 9), torch.randn(outputs, columns), torch.randn(70, outputs))
        ]
        kept = maxk(x, 9)
        results = []
        for function in (cbsr_linear, reference):
            values, weight, add_to = operands
            result = function(kept.with_values(values), weight, add_to)
            results.append((result, *torch.autograd.grad(result.sin().sum(), operands)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rectify", [False, True])
def test_dropout_is_fair_scaled_and_reuses_its_mask(rectify: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(501, 203, requires_grad=True)
    for p in (0.1, 0.5, 0.9):
        y = dropout(x, p, True, rectify)
        passed = x.detach().relu() if rectify else x.detach()
        kept = y.detach() != 0
        torch.testing.assert_close(y.detach()[kept], passed[kept] / (1 - p))
        assert float(kept.sum() / (passed != 0).sum()) == pytest.approx(1 - p, abs=0.01)
        (grad,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(grad, kept / (1 - p))
    assert torch.equal(dropout(x, 0.5, False, rectify), passed)


def test_sparse_features_give_the_same_logits_and_gradients(graph: Graph) -> None:
    words = (torch.rand(60, 100) < 0.03).float()
    sparse = sparse_if_worth(words)
    assert isinstance(sparse, Graph)
    assert isinstance(sparse_if_worth(torch.rand(60, 100)), Tensor)
    model = MaxKGNN("sage", 100, 32, 1, 5, 8).eval()
    results = []
    for x in (words, sparse):
        logits = model(model.normalized(graph), x)
        results.append((logits, *torch.autograd.grad(logits.sin().sum(), tuple(model.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [6, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_simulated_model(graph: Graph, kind: Kind, k: int) -> None:
    """Dense masks, and the same dropout: dropped values stay stored, the mask is reused in backward."""
    torch.manual_seed(1)
    model = MaxKGNN(kind, 12, 32, 2, 5, [k, k + 1], dropout=0.4)
    normalized, x = model.normalized(graph), torch.randn(60, 12)
    gradients = []
    for forward in (
        lambda: model(normalized, x),
        lambda: simulated(model)(normalized.to_dense(), x, 0.4),
    ):
        torch.manual_seed(2)
        logits = forward()
        gradients.append((logits, *torch.autograd.grad(logits.sin().sum(), tuple(model.parameters()))))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_k_equal_to_hidden_is_the_linear_network(graph: Graph, kind: Kind) -> None:
    model = MaxKGNN(kind, 12, 16, 2, 5, 16, dropout=0.0, aggregation="dense").eval()
    normalized, x = model.normalized(graph), torch.randn(60, 12)
    linear = MaxKGNN(kind, 12, 16, 2, 5, None, dropout=0.0).eval()
    linear.load_state_dict(
        {key: v for key, v in model.state_dict().items() if key != "_extra_state"}, strict=False
    )
    for block in linear.blocks:
        block.activation = lambda x: x
    assert torch.equal(model(normalized, x), linear(normalized, x))


def test_pairs_make_a_relu_network_of_a_maxk_network() -> None:
    torch.manual_seed(0)
    hidden, output = nn.Linear(3, 40), nn.Linear(40, 2)
    x = torch.randn(1000, 3)
    difference = relu_by_maxk(hidden, output)(x) - output(hidden(x).relu())
    assert float(difference.detach().abs().max()) <= 1e-6


def test_wider_networks_approximate_better() -> None:
    """Shortened; the study has the full fits, where 64 units reach a twentieth of the error of 4."""
    assert square_error(64, steps=300, seeds=[0]) < square_error(4, steps=300, seeds=[0]) / 5


def test_selection_and_aggregation_do_not_depend_on_the_number_of_threads() -> None:
    graph = random_graph(3000, 20).normalize("row")
    x = torch.randn(3000, 96)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            part = x.clone().requires_grad_()
            kept = maxk(part, 12)
            y = aggregate(graph, kept, "cbsr")
            own = cbsr_linear(kept, x[:64], torch.zeros(3000, 64))
            gradients = torch.autograd.grad(
                (y.sum(1) * own.sum(1)).sum(), (part, kept.values), allow_unused=True
            )
            results.append((kept.values, kept.index, y, own, *gradients))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class Sums(nn.Module):
    """A block of nothing but selection and sums over neighbors."""

    def forward(self, graph: Graph, x: Tensor) -> Tensor:
        return aggregate(graph, maxk(x, 8), "cbsr")


def test_aggregation_keeps_the_columns_only(graph: Graph) -> None:
    assert saved_bytes(Sums(), graph.normalize("row"), torch.randn(60, 64)) == 8 * 60


def test_a_block_keeps_what_its_backward_pass_reads(graph: Graph) -> None:
    """n = 60, d = 64, k = 8: both blocks keep A h and what layer normalization reads.

    Beside that MaxK keeps values, columns and dropout's mask, and a copy of the weights turned around;
    with products of dense features, and with ReLU, the dense features.
    """
    kept = {}
    for system in ("relu", "maxk", "maxk-sums"):
        model = build(system, 1, 64, 1, 1, 8, aggregation="cbsr")
        kept[system] = saved_bytes(model.blocks[0], model.normalized(graph), torch.randn(60, 64))
    both = 60 * (4 * 64 + 4 * 64 + 8)
    assert kept["relu"] == both + 60 * (4 + 1) * 64
    assert kept["maxk"] == both + 60 * (4 + 1 + 1) * 8 + 4 * 64 * 64
    assert kept["maxk-sums"] >= both + 60 * 4 * 64


def test_isolated_nodes_get_the_mean_of_nothing(graph: Graph) -> None:
    model = MaxKGNN("sage", 12, 16, 1, 5, 4)
    kept = maxk(torch.randn(60, 16), 4)
    assert not aggregate(model.normalized(graph), kept)[59].any()


def test_compressed_dropout_changes_no_layout() -> None:
    model = MaxKGNN("sage", 12, 64, 1, 5, 8, dropout=0.5)
    kept = model.blocks[0].activation(torch.randn(60, 64))
    assert isinstance(kept, CBSR)
    assert kept.values.shape == (60, 8)
    assert 0 < int((kept.values == 0).sum()) < 480
    assert bool((kept.index.long().diff(dim=1) > 0).all())


def test_k_goes_with_the_weights() -> None:
    model = MaxKGNN("sage", 12, 64, 2, 5, [8, 16])
    MaxKGNN("sage", 12, 64, 2, 5, [8, 16]).load_state_dict(model.state_dict())
    with pytest.raises(KMismatch, match="k = 8, 16, this network has k = 16"):
        MaxKGNN("sage", 12, 64, 2, 5, 16).load_state_dict(model.state_dict())
    with pytest.raises(KMismatch, match="ReLU"):
        MaxKGNN("sage", 12, 64, 2, 5, None).load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "from 1 to hidden=64, not 0"),
        ({"k": 65}, "from 1 to hidden=64, not 65"),
        ({"k": 2.5}, "not 2.5"),
        ({"k": True}, "not True"),
        ({"k": [8, 8, 8]}, "k has 3 numbers for 2 layers"),
        ({"hidden": 40_000}, "at most 32,768"),
        ({"layers": 0}, "layers is a whole number of at least 1"),
        ({"kind": "gat"}, "kind is one of sage, gcn, gin"),
        ({"dropout": 1.0}, "dropout"),
        ({"aggregation": "fast"}, "aggregation is one of auto, cbsr, dense"),
    ],
)
def test_impossible_networks_are_refused(change: dict[str, object], message: str) -> None:
    sizes = {"kind": "sage", "in_dim": 12, "hidden": 64, "layers": 2, "out_dim": 5, "k": 8}
    with pytest.raises(ModelError, match=message):
        MaxKGNN(**(sizes | change))


def test_maxk_module_refuses_what_is_no_count() -> None:
    for k in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="k is a whole number"):
            MaxK(k)


def test_nan_names_the_layer(graph: Graph) -> None:
    model = MaxKGNN("sage", 12, 64, 2, 5, 8)
    x = torch.randn(60, 12)
    x[3, 0] = float("nan")
    with pytest.raises(NanActivation, match="block 0: node 3"):
        model(model.normalized(graph), x)
