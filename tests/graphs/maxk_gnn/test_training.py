"""Training: what is learned, how the epoch is taken apart, what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tradeoff.engines.kernels import Graph
from tradeoff.methods.graphs.maxk_gnn import (
    LabelError,
    MaxKGNN,
    NodeSplits,
    amdahl_limit,
    predict,
    traffic,
    train,
)
from tradeoff.methods.graphs.maxk_gnn.breakdown import PARTS, Breakdown
from tradeoff.methods.graphs.maxk_gnn.nodes import load_nodes
from tradeoff.methods.graphs.maxk_gnn.scores import score
from tradeoff.methods.graphs.maxk_gnn.systems import build
from tradeoff.methods.graphs.maxk_gnn.timing import time_epochs

Communities = tuple[Graph, Tensor, Tensor, NodeSplits]
FEATURES, CLASSES = 64, 8


@pytest.fixture(scope="module")
def communities() -> Communities:
    """Graph, features, labels, splits."""
    data, graph = load_nodes("community:1500:16:8:1.0:0.7")
    assert (data.num_features, data.num_classes) == (FEATURES, CLASSES)
    return graph, data.x, data.y, NodeSplits(data.train, data.validation, data.test)


def trained(operands: Communities, system: str, k: int | None, epochs: int = 20, seed: int = 0) -> float:
    torch.manual_seed(seed)
    model = build(system, FEATURES, 64, 2, CLASSES, k, aggregation="cbsr")
    return train(model, *operands, epochs=epochs, lr=0.01, seed=seed).test_acc


def test_quarter_of_the_features_suffices_and_one_does_not(communities: Communities) -> None:
    relu, few, one = (trained(communities, *row) for row in (("relu", None), ("maxk", 16), ("maxk", 1)))
    assert abs(few - relu) <= 0.04
    assert one <= relu - 0.1
    assert relu >= trained(communities, "mlp", None) + 0.08


def test_training_is_repeatable_and_nearly_the_same_for_any_number_of_threads(
    communities: Communities,
) -> None:
    threads, histories = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            model = build("maxk", FEATURES, 64, 2, CLASSES, 8, aggregation="cbsr")
            histories.append(train(model, *communities, epochs=5).history.column("loss"))
    finally:
        torch.set_num_threads(threads)
    assert histories[0] == histories[1]
    assert histories[0] == pytest.approx(histories[2], abs=1e-4)


def test_best_validation_epoch_decides_and_its_weights_are_kept(graph: Graph, splits: NodeSplits) -> None:
    x, y = torch.randn(60, 12), torch.arange(60) % 3
    model = MaxKGNN("sage", 12, 32, 2, 3, 8)
    result = train(model, graph, x, y, splits, epochs=12)
    validation = result.history.column("validation_accuracy")
    assert result.validation_acc == max(validation)
    assert result.best_epoch == 1 + validation.index(max(validation))
    assert result.test_acc == result.history.column("test_accuracy")[result.best_epoch - 1]
    logits = predict(model, model.normalized(graph), x)
    assert score(logits[splits.test], y[splits.test], "accuracy") == result.test_acc
    assert model.training  # as it was before
    assert torch.equal(logits, predict(model, model.normalized(graph), x))  # without dropout


def test_interrupted_training_ends_with_the_same_scores(
    graph: Graph, splits: NodeSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.randn(60, 12), torch.arange(60) % 3
    results = []
    for name in ("whole", "interrupted"):
        torch.manual_seed(0)
        model = MaxKGNN("sage", 12, 32, 2, 3, 8)
        path = tmp_path / name
        if name == "interrupted":
            from tradeoff.nn import fit as loop

            original = loop._Fit._end_epoch

            def stop_later(self: loop._Fit, seconds: float, original=original) -> None:  # type: ignore[no-untyped-def]
                self.last_saved = -1e9
                original(self, seconds)
                if self.state.epoch == 4:
                    raise KeyboardInterrupt

            monkeypatch.setattr(loop._Fit, "_end_epoch", stop_later)
            with pytest.raises(KeyboardInterrupt):
                train(model, graph, x, y, splits, epochs=8, checkpoint=path)
            monkeypatch.undo()
            torch.manual_seed(5)
            model = MaxKGNN("sage", 12, 32, 2, 3, 8)
        results.append(train(model, graph, x, y, splits, epochs=8, checkpoint=path))
    whole, interrupted = results
    assert whole.history.column("loss") == interrupted.history.column("loss")
    assert (whole.test_acc, whole.best_epoch) == (interrupted.test_acc, interrupted.best_epoch)


@pytest.mark.parametrize("scoring", ["micro_f1", "roc_auc"])
def test_several_labels_a_node(graph: Graph, splits: NodeSplits, scoring: str) -> None:
    x = torch.randn(60, 12)
    y = (x[:, :4] > 0).float()
    result = train(MaxKGNN("gcn", 12, 32, 1, 4, 8), graph, x, y, splits, epochs=30, scoring=scoring)
    assert 0 < result.test_acc <= 1
    perfect = 2 * y - 1
    assert score(perfect, y, scoring) == pytest.approx(1)  # type: ignore[arg-type]
    assert score(-perfect, y, scoring) == pytest.approx(0)  # type: ignore[arg-type]


def test_breakdown_explains_the_epoch(communities: Communities) -> None:
    """Another program may take the processor between two operators, so the best of several counts."""
    covered = []
    for _ in range(8):
        model = build("maxk", FEATURES, 256, 2, CLASSES, 32)
        breakdown = train(model, *communities, epochs=3).breakdown
        assert set(breakdown.seconds) == set(PARTS)
        busy = ("select", "spmm_fwd", "spmm_bwd", "gemm", "norm_dropout", "optimizer")
        assert all(breakdown.seconds[part] > 0 for part in busy)
        covered.append(breakdown.covered)
        if covered[-1] >= 0.95:
            break
    assert 0.95 <= max(covered) <= 1.01


def test_epochs_of_systems_are_timed_side_by_side(communities: Communities) -> None:
    sizes = (FEATURES, 32, 2, CLASSES)
    rows = {"relu": None, "maxk": 4, "simulated": 4, "torch": None}
    networks = {name: build(name, *sizes, k) for name, k in rows.items()}
    *operands, splits = communities
    times = time_epochs(networks, *operands, splits.train, rounds=1)
    assert set(times) == set(rows)
    assert all(0 < time.aggregation < time.seconds for time in times.values())


def test_systems_compute_the_same(communities: Communities) -> None:
    """The peers must not be slower because they do something else, or faster because they do less."""
    pytest.importorskip("torch_geometric")
    graph, x, _, _ = communities
    logits = {}
    for name, k in {"relu": None, "torch": None, "pyg": None, "maxk": 8, "simulated": 8}.items():
        torch.manual_seed(0)
        model = build(name, FEATURES, 32, 2, CLASSES, k).eval()
        logits[name] = predict(model, model.normalized(graph), x)
    for first, second in (("relu", "torch"), ("relu", "pyg"), ("maxk", "simulated")):
        torch.testing.assert_close(logits[first], logits[second], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits["relu"], logits["maxk"], atol=1e-2)


def test_amdahl_limit_and_traffic() -> None:
    assert amdahl_limit(0.75) == 4
    assert amdahl_limit(0) == 1
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="share"):
            amdahl_limit(share)
    assert Breakdown({"spmm_fwd": 1.0, "spmm_bwd": 2.0}, 4.0).share == 0.75
    model = traffic(num_nodes=10, nnz=1000, hidden=256, k=32)
    assert model.forward == 1000 * (5 * 32 + 8) + 10 * 4 * 256
    assert model.backward == 10 * 4 * 256 + 1000 * (9 * 32 + 8)
    assert model.dense == 1000 * (4 * 256 + 8) + 10 * 4 * 256
    assert model.ratio == 2 * model.dense / (model.forward + model.backward)
    assert traffic(10, 1000, 384, 32).forward == 1000 * (6 * 32 + 8) + 10 * 4 * 384


def test_operands_that_do_not_fit_are_named(graph: Graph, splits: NodeSplits) -> None:
    x, y = torch.randn(60, 12), torch.arange(60) % 3

    def attempt(x=x, y=y, splits=splits, **settings: object) -> None:  # type: ignore[no-untyped-def]
        train(MaxKGNN("sage", 12, 32, 1, 3, 8), graph, x, y, splits, epochs=1, **settings)

    nobody = torch.zeros(60, dtype=torch.bool)
    for message, change in {
        "x has 59 rows, the graph has 60 nodes": {"x": x[:59]},
        "y has 61 rows": {"y": torch.arange(61) % 3},
        "split test is empty": {"splits": NodeSplits(splits.train, splits.validation, nobody)},
        "split train is a mask of": {"splits": NodeSplits(nobody[:5], splits.validation, splits.test)},
        "nodes without a class": {"y": y - 1},
        "scoring='roc_auc' is for several labels": {"scoring": "roc_auc"},
        "scoring='accuracy' is for classes": {"y": torch.rand(60, 3)},
    }.items():
        with pytest.raises(LabelError, match=message):
            attempt(**change)
    with pytest.raises(ValueError, match="epochs"):
        train(MaxKGNN("sage", 12, 32, 1, 3, 8), graph, x, y, splits, epochs=0)
