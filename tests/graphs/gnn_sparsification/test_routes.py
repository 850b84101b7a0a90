"""The two routes: effect at small scale, costs, selection, resume, and what density 1 must give."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import TensorDataset

from tradeoff.core.errors import DataError
from tradeoff.data.graphs import load
from tradeoff.methods.graphs.gnn_sparsification import (
    GCN,
    DenseTrainer,
    LinkFNN,
    NodeFNN,
    Objective,
    PruneTrainer,
    RigL,
    SparseTrainer,
    Splitting,
    Static,
    link_loss,
)
from tradeoff.methods.graphs.gnn_sparsification.tasks import NodeSource, Task, auc, gcn_task
from tradeoff.methods.graphs.gnn_sparsification.training import PeriodicDecay
from tradeoff.nn.checkpoint import CheckpointMismatch
from tradeoff.nn.fit import Callback, FitConfig, FitState, fit
from tradeoff.nn.masks import (
    InfeasibleDensity,
    MaskSet,
    active_counts,
    forward_flops,
    layer_rows,
    maskable_weights,
    training_flops,
)


@pytest.fixture(scope="module")
def task() -> Task:
    return NodeSource(data="debian-small").task()


SPARSE = FitConfig(epochs=30, batch_size=64, learning_rate=0.1)
RIGL = RigL(density=0.03, init="uniform", rescale=True, update_every=20, drop=0.5, allow_regrow=False)


def test_growth_by_the_gradient_beats_a_static_mask_unless_the_gradient_is_masked_first(task: Task) -> None:
    """Measured: static 0.66, RigL 0.76, RigL whose gradient was masked before growth 0.55."""

    def accuracy(rule: Any, broken: bool = False) -> float:
        torch.manual_seed(0)
        network = task.build()
        trainer = SparseTrainer(network, rule)
        if broken:
            for name, weight in trainer.training.weights.items():
                mask = trainer.training.masks[name]
                weight.register_hook(lambda gradient, mask=mask: gradient * mask)
        trainer.fit(task.train, task.validation, SPARSE)
        return task.test(network)["accuracy"]

    static = accuracy(Static(density=0.03, init="uniform", rescale=True))
    assert accuracy(RIGL) >= static + 0.05
    assert accuracy(RIGL, broken=True) < static + 0.05


def small(seed: int = 0) -> NodeFNN:
    torch.manual_seed(seed)
    return NodeFNN(12, 4, (20, 16))


def data(count: int = 320) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=generator)
    return TensorDataset(x, x[:, :4].argmax(1))


CONFIG = FitConfig(
    epochs=3, batch_size=32, learning_rate=0.1, nesterov=True, weight_decay=5e-4, checkpoint_seconds=0
)
COUNTS = active_counts({n: w.shape for n, w in maskable_weights(small()).items()}, 0.1, "uniform")


@pytest.mark.parametrize("kind", [None, "admm", "slr"])
def test_pruned_networks_keep_exact_counts_and_cost_what_the_closed_form_says(kind: Any) -> None:
    network = small()
    splitting = Splitting(kind=kind, period=3) if kind else None
    trainer = PruneTrainer(network, 0.1, splitting)
    report = trainer.fit(data(), data(64), CONFIG if kind else None, CONFIG)
    assert report.masks is not None
    assert report.masks.counts() == COUNTS
    for name, weight in report.masks.weights(network).items():
        assert not weight[~report.masks[name]].any()
    steps = 30
    rows = layer_rows(network, torch.zeros(32, 12))
    dense, sparse = forward_flops(network, rows), forward_flops(network, rows, report.masks)
    reweighting = training_flops(dense, dense, steps) if kind else 0
    assert report.train_flops == reweighting + training_flops(dense, sparse, steps)
    assert report.steps == steps * (2 if kind else 1)
    assert report.training_sparsity == pytest.approx((1 - sum(COUNTS.values()) / 624) / (2 if kind else 1))
    assert len(report.history.epochs) == (6 if kind else 3)


def test_sparse_training_costs_what_the_closed_form_says() -> None:
    network = small()
    rule = RIGL.model_copy(update={"density": 0.1, "update_every": 4})
    report = SparseTrainer(network, rule).fit(data(), data(64), CONFIG, epochs=4)
    rows = layer_rows(network, torch.zeros(32, 12))
    dense, sparse = forward_flops(network, rows), forward_flops(network, rows, report.masks)
    assert report.steps == 40
    assert report.growth_steps == 6  # 4, 8, ..., 24; the update after 28 of 30 moves no weight any more
    assert report.train_flops == training_flops(dense, sparse, 40, 6)
    assert report.density == pytest.approx(0.1, abs=1e-3)
    assert report.itop_rate > report.density
    best = max(report.history.column("validation"))
    assert report.accuracy == best


def test_masked_retraining_equals_that_of_torch_bit_for_bit() -> None:
    """torch.nn.utils.prune multiplies by the mask in the forward pass instead."""
    ours, theirs = small(), small()
    PruneTrainer(ours, 0.1).fit(data(), None, retraining=CONFIG.model_copy(update={"weight_decay": 0.0}))
    for name, count in COUNTS.items():
        layer = theirs.get_submodule(name.removesuffix(".weight"))
        prune.l1_unstructured(layer, "weight", amount=int(layer.weight.numel()) - count)  # type: ignore[union-attr,operator]
    fit(theirs, data(), None, CONFIG.model_copy(update={"weight_decay": 0.0}))
    for name in COUNTS:
        mine = ours.get_parameter(name)
        layer = theirs.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(mine, layer.weight_orig * layer.weight_mask)  # type: ignore[operator]


def test_density_one_is_dense_training_bit_for_bit() -> None:
    """All routes: the same phases with the same settings, but without any mask."""
    expected = small()
    for _ in range(2):
        fit(expected, data(), None, CONFIG)
    for kind in ("admm", "slr"):
        network = small()
        PruneTrainer(network, 1.0, Splitting(kind=kind)).fit(data(), None, CONFIG, CONFIG)  # type: ignore[arg-type]
        assert same(network, expected)
    once = small()
    DenseTrainer(once).fit(data(), None, CONFIG)
    for rule in (
        Static(density=1, rescale=True),
        RIGL.model_copy(update={"density": 1.0, "update_every": 2}),
    ):
        network = small()
        SparseTrainer(network, rule).fit(data(), None, CONFIG)
        assert same(network, once)
    PruneTrainer(once, 1.0).fit(data(), None, retraining=CONFIG)
    assert same(once, expected)


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


class StopAt(Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["rigl", "slr"])
def test_an_interrupted_training_ends_with_the_same_masks_and_weights(tmp_path: Path, kind: str) -> None:
    def train(folder: Path | None, stop_at: int | None) -> Any:
        if kind == "slr":
            trainer = PruneTrainer(small(), 0.1, Splitting(kind="slr"))
            return trainer.fit(
                data(), data(64), CONFIG, CONFIG, checkpoint=folder, callbacks=[StopAt(stop_at)]
            )
        rule = RIGL.model_copy(update={"density": 0.1, "update_every": 3})
        return SparseTrainer(small(), rule).fit(
            data(), data(64), CONFIG, checkpoint=folder, callbacks=[StopAt(stop_at)]
        )

    whole = train(None, None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 17)
    resumed = train(tmp_path, None)
    assert same(resumed.model, whole.model)
    assert all(torch.equal(resumed.masks[name], whole.masks[name]) for name in whole.masks)
    assert (resumed.train_flops, resumed.accuracy, resumed.itop_rate) == (
        whole.train_flops,
        whole.accuracy,
        whole.itop_rate,
    )


def test_the_epoch_is_chosen_on_the_validation_split_with_its_masks() -> None:
    scores = iter([0.3, 0.9, 0.5])
    kept: list[dict[str, torch.Tensor]] = []

    def score(model: nn.Module, split: Any) -> float:
        kept.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    network = small()
    rule = RIGL.model_copy(update={"density": 0.2, "update_every": 2})
    report = SparseTrainer(network, rule, Objective(score=score)).fit(data(), data(64), CONFIG)
    assert report.accuracy == 0.9
    assert report.masks is not None
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[1][name])
    for name, mask in report.masks.items():
        assert torch.equal(mask, kept[1][f"{name.replace('.', ':')}_mask"])


def test_layers_that_are_exempt_stay_dense() -> None:
    network = small()
    report = PruneTrainer(network, 0.1, exempt=["layers.2.weight"]).fit(data(), None)
    assert report.masks is not None
    assert list(report.masks) == ["layers.0.weight", "layers.1.weight"]
    assert network.layers[2].weight.all()
    assert report.accuracy is None
    assert report.train_flops == 0


def test_learning_rate_of_reweighting_falls_in_thirds_of_a_period() -> None:
    rates: list[float] = []

    class Note(Callback):
        def on_epoch_end(self, state: FitState) -> None:
            rates.append(state.logs["learning_rate"])

    config = CONFIG.model_copy(update={"epochs": 8, "schedule": "constant"})
    fit(small(), data(), None, config, callbacks=[PeriodicDecay(6), Note()])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.1, 0.1])


def test_links_are_trained_by_their_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=generator)
    pairs = TensorDataset(x, (x[:, :8] * x[:, 8:]).sum(1).gt(0).long())
    torch.manual_seed(0)
    network = LinkFNN()
    report = SparseTrainer(network, RIGL.model_copy(update={"density": 0.3}), Objective(link_loss, auc)).fit(
        pairs, pairs, CONFIG, epochs=20
    )
    assert report.accuracy is not None
    assert report.accuracy > 0.9
    assert sorted(maskable_weights(network)) == ["hidden.weight", "output.weight"]


def test_a_gcn_is_pruned_in_its_first_layer_and_matches_dense_at_density_one() -> None:
    graph = load("debian-small")
    task = gcn_task(graph, hidden=8, dropout=0.0)
    config = FitConfig(epochs=3, batch_size=10**6, optimizer="adam", learning_rate=0.01)
    torch.manual_seed(0)
    network = task.build()
    assert isinstance(network, GCN)
    weights = maskable_weights(network)
    assert list(weights) == ["first.lin.weight", "second.lin.weight"]
    assert layer_rows(network, task.example) == dict.fromkeys(weights, len(graph.x))
    start = copy.deepcopy(network)
    report = PruneTrainer(network, 0.1, task_splitting(), task.objective, exempt=["second.lin.weight"]).fit(
        task.train, task.validation, config, config
    )
    assert report.masks is not None
    assert report.masks.counts() == {"first.lin.weight": round(0.1 * 1024 * 8)}
    twin = copy.deepcopy(start)
    DenseTrainer(start, task.objective).fit(task.train, None, config)
    SparseTrainer(twin, RigL(density=1), task.objective).fit(task.train, None, config)
    assert same(start, twin)


def task_splitting() -> Splitting:
    return Splitting(kind="slr", rho=0.01, sigma=0.001)


def test_the_published_head_clips_logits_and_embeddings_stand_for_nodes() -> None:
    torch.manual_seed(0)
    plain, clipped = NodeFNN(12, 4, (20,)).eval(), NodeFNN(12, 4, (20,), paper_head=True).eval()
    clipped.load_state_dict(plain.state_dict())
    x = torch.randn(50, 12)
    assert torch.equal(clipped(x), plain(x).relu())
    assert plain(x).min() < 0
    embedded = NodeFNN(6, 3, (8,), nodes=10)
    assert embedded(torch.arange(5)).shape == (5, 3)
    assert [name for name in maskable_weights(embedded) if "embedding" in name] == []


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleDensity, match=r"layers\.0\.weight would keep none of its 240"):
        PruneTrainer(small(), 0.001)
    with pytest.raises(InfeasibleDensity):
        SparseTrainer(small(), Static(density=0.001, init="uniform"))
    with pytest.raises(ValueError, match="go together"):
        PruneTrainer(small(), 0.1).fit(data(), None, CONFIG)
    PruneTrainer(small(), 0.1).fit(data(), None, retraining=CONFIG, checkpoint=tmp_path)
    with pytest.raises(CheckpointMismatch, match="counts"):
        PruneTrainer(small(), 0.2).fit(data(), None, retraining=CONFIG, checkpoint=tmp_path)
    graph = load("debian-small")
    several = torch.nn.functional.one_hot(graph.y, graph.num_classes).float()
    with pytest.raises(DataError, match="several classes"):
        gcn_task(replace(graph, y=several, multi_label=True), 8, 0.5)


def test_one_shot_masks_are_the_largest_magnitudes() -> None:
    network = small()
    masks = MaskSet.project(maskable_weights(network), COUNTS)
    report = PruneTrainer(network, 0.1).fit(data(), None)
    assert report.masks is not None
    assert all(torch.equal(masks[name], report.masks[name]) for name in masks)
