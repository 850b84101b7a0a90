"""Training: what is learned, how the epoch is taken apart, what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tradeoff.engines.kernels import Graph
from tradeoff.engines.kernels.device_timing import DeviceClock
from tradeoff.methods.graphs.maxk_gnn import (
    LabelError,
    MaxKGNN,
    NodeSplits,
    amdahl_limit,
    predict,
    timing,
    traffic,
    train,
)
from tradeoff.methods.graphs.maxk_gnn import breakdown as breakdown_module
from tradeoff.methods.graphs.maxk_gnn.breakdown import PARTS, Breakdown, profiled
from tradeoff.methods.graphs.maxk_gnn.model import Kind
from tradeoff.methods.graphs.maxk_gnn.nodes import load_nodes
from tradeoff.methods.graphs.maxk_gnn.scores import score
from tradeoff.methods.graphs.maxk_gnn.systems import SELECTING, build
from tradeoff.methods.graphs.maxk_gnn.timing import EpochTime, time_epochs
from tradeoff.methods.graphs.maxk_gnn.training import node_loss

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
    results, weights = [], []
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
        weights.append(model.state_dict())
    whole, interrupted = results
    assert whole.history.column("loss") == interrupted.history.column("loss")
    assert (whole.test_acc, whole.best_epoch) == (interrupted.test_acc, interrupted.best_epoch)
    assert whole.best_epoch <= 4  # so that its weights come from before the interruption
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("scoring", ["micro_f1", "roc_auc"])
def test_several_labels_a_node(graph: Graph, splits: NodeSplits, scoring: str) -> None:
    x = torch.randn(60, 12)
    y = (x[:, :4] > 0).float()
    result = train(MaxKGNN("gcn", 12, 32, 1, 4, 8), graph, x, y, splits, epochs=30, scoring=scoring)
    assert 0 < result.test_acc <= 1
    perfect = 2 * y - 1
    assert score(perfect, y, scoring) == pytest.approx(1)  # type: ignore[arg-type]
    assert score(-perfect, y, scoring) == pytest.approx(0)  # type: ignore[arg-type]


def test_breakdown_finds_all_parts_in_an_epoch(communities: Communities) -> None:
    model = build("maxk", FEATURES, 64, 2, CLASSES, 8)
    seconds = train(model, *communities, epochs=3).breakdown.seconds
    assert set(seconds) == set(PARTS)
    assert all(seconds[part] > 0 for part in PARTS)


@pytest.mark.parametrize("system", ["relu", "maxk", "maxk-sums", "simulated", "torch", "pyg"])
def test_breakdown_knows_the_operators_of_every_system(communities: Communities, system: str) -> None:
    if system == "pyg":
        pytest.importorskip("torch_geometric")
    graph, x, y, splits = communities
    model = build(system, FEATURES, 32, 2, CLASSES, 4)
    normalized = model.normalized(graph)
    for _ in range(2):  # the first pass makes the transpose, and may measure kernels
        with profiled() as breakdown:
            node_loss(model(normalized, x)[splits.train], y[splits.train]).backward()
    found = {part for part, seconds in breakdown.seconds.items() if seconds}
    selects = {"select"} if system in SELECTING else set()
    assert found == {"dropout", "spmm_fwd", "spmm_bwd", "own_gemm", "gemm", "norm", "other"} | selects


@pytest.mark.parametrize("kind", ["gcn", "gin"])
def test_only_sage_has_products_of_its_own_nodes(communities: Communities, kind: Kind) -> None:
    graph, x, *_ = communities
    model = MaxKGNN(kind, FEATURES, 32, 2, CLASSES, None)
    with profiled() as breakdown:
        model(model.normalized(graph), x).sum().backward()
    assert breakdown.seconds["own_gemm"] == 0
    assert breakdown.seconds["gemm"] > 0


@dataclass
class Event:
    """An operator as the profiler reports it, in microseconds; on a GPU it takes ten times less."""

    name: str
    cpu_time_total: float
    cpu_children: list["Event"] = field(default_factory=list)
    cpu_parent: "Event | None" = None

    @property
    def self_cpu_time_total(self) -> float:
        return self.cpu_time_total - sum(child.cpu_time_total for child in self.cpu_children)

    @property
    def device_time_total(self) -> float:
        return self.cpu_time_total / 10

    @property
    def self_device_time_total(self) -> float:
        return self.self_cpu_time_total / 10


@pytest.mark.parametrize(("device", "factor"), [("cpu", 1.0), ("cuda", 0.1)])
def test_breakdown_adds_up_what_the_device_did(
    monkeypatch: pytest.MonkeyPatch, device: str, factor: float
) -> None:
    """A GPU's operators by its own time, and its epoch once it has done all."""
    events = [
        Event("aten::linear", 8e6, [Event("aten::addmm", 7e6, [Event("aten::mm", 1e6)])]),
        Event("autograd::engine::evaluate_function: _AggregateBackward", 5e6, [Event("_Aggregate", 4e6)]),
        Event("_Aggregate", 2e6, [Event("tradeoff_kernels::cbsr_spmm", 2e6)]),
    ]
    done = []

    @contextmanager
    def profile(use_cuda: bool) -> Iterator[SimpleNamespace]:
        assert use_cuda is (device == "cuda")
        yield SimpleNamespace(function_events=events)

    monkeypatch.setattr(breakdown_module, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: done.append("synchronized"))
    with profiled(device) as breakdown:
        pass
    found = {part: seconds for part, seconds in breakdown.seconds.items() if seconds}
    assert found == pytest.approx(
        {"gemm": 7 * factor, "spmm_bwd": 4 * factor, "spmm_fwd": 2 * factor, "other": 2 * factor}
    )
    assert len(done) == (2 if device == "cuda" else 0)


def test_epochs_of_systems_are_timed_by_turns_on_the_clock_of_their_device(
    communities: Communities, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks, profiles = [], []

    class Clock(DeviceClock):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            clocks.append((self.device, torch.get_num_threads()))

    @contextmanager
    def counted(device: torch.device) -> Iterator[Breakdown]:
        with profiled(device) as breakdown:
            yield breakdown
        profiles.append(breakdown)

    monkeypatch.setattr(timing, "DeviceClock", Clock)
    monkeypatch.setattr(timing, "profiled", counted)
    rows = {"relu": None, "maxk": 4, "maxk-sums": 4, "simulated": 4, "torch": None}
    networks = {name: build(name, FEATURES, 32, 2, CLASSES, k) for name, k in rows.items()}
    *operands, splits = communities
    times = time_epochs(networks, *operands, splits.train, rounds=1)
    assert set(times) == set(rows)
    assert all(min(time.aggregation, time.own_product, time.activation) > 0 for time in times.values())
    assert clocks == [(torch.device("cpu"), 1)]
    assert len(profiles) >= 3 * len(rows)


def test_each_part_is_taken_from_the_epoch_that_disturbed_it_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of each epoch is outside of operators, or more."""
    undisturbed = dict.fromkeys(PARTS, 1.0)
    epochs = iter(
        Breakdown(undisturbed | {part: 1 + wait}, sum(undisturbed.values()) + wait + outside)
        for part, wait, outside in (("gemm", 3.0, 0.5), ("spmm_fwd", 5.0, 2.0), ("gemm", 0.0, 4.0))
    )

    @contextmanager
    def disturbed(device: torch.device) -> Iterator[Breakdown]:
        yield next(epochs)

    monkeypatch.setattr(timing, "profiled", disturbed)
    breakdown = timing._breakdown(lambda: None, torch.device("cpu"))
    assert breakdown.seconds == undisturbed
    assert breakdown.epoch == pytest.approx(len(PARTS) + 0.5)


def test_parts_are_scaled_to_the_epoch_without_the_profiler() -> None:
    seconds = dict.fromkeys(PARTS, 0.0) | {"spmm_fwd": 1.0, "spmm_bwd": 2.0, "own_gemm": 0.5, "dropout": 0.25}
    time = EpochTime(2.0, Breakdown(seconds, 4.0))
    assert (time.aggregation, time.own_product, time.activation) == (1.5, 0.25, 0.125)


def test_systems_compute_the_same(communities: Communities) -> None:
    """The peers must not be slower because they do something else, or faster because they do less."""
    pytest.importorskip("torch_geometric")
    graph, x, y, _ = communities
    results = {}
    rows = {"relu": None, "torch": None, "pyg": None, "maxk": 8, "maxk-sums": 8, "simulated": 8}
    for name, k in rows.items():
        torch.manual_seed(0)
        model = build(name, FEATURES, 32, 2, CLASSES, k).eval()
        logits = model(model.normalized(graph), x)
        (gradient,) = torch.autograd.grad(node_loss(logits, y), model.first.weight)
        results[name] = logits.detach(), gradient
    pairs = [("relu", "torch"), ("relu", "pyg"), ("maxk", "maxk-sums"), ("maxk", "simulated")]
    for first, second in pairs:
        torch.testing.assert_close(results[first], results[second], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results["relu"][0], results["maxk"][0], atol=1e-2)


def test_sparse_matrices_of_torch_are_made_once(
    communities: Communities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 32-bit indices, which MKL reads as they are."""
    graph, x, *_ = communities
    model = build("torch", FEATURES, 32, 2, CLASSES, None)
    normalized = model.normalized(graph)
    assert normalized.matrix.col_indices().dtype == torch.int32

    def made_again(*_: object, **__: object) -> None:
        raise AssertionError("a pass made a sparse matrix")

    monkeypatch.setattr(torch, "sparse_csr_tensor", made_again)
    model(normalized, x).sum().backward()


def test_amdahl_limit_and_traffic() -> None:
    assert amdahl_limit(0.75) == 4
    assert amdahl_limit(0) == 1
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="share"):
            amdahl_limit(share)
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
