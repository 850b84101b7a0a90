"""The study around the routes: claims, recipes, tasks, and the verb for a graph of one's own."""

import json
import logging
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.cli import main
from tradeoff.core import Context, Outcome, Outcomes, Trial, Verdict, counted, measured
from tradeoff.core.errors import DataError, MissingOutcome, RecipeError
from tradeoff.data.graphs import load, load_events, split_links
from tradeoff.methods.graphs.gnn_sparsification import DenseTrainer, Report, claims, study
from tradeoff.methods.graphs.gnn_sparsification.study import GNNSparsification
from tradeoff.methods.graphs.gnn_sparsification.tasks import (
    LinkSource,
    NodeSource,
    auc_error,
    link_task,
    node_features,
    node_task,
    read_nodes,
)

Cells = dict[tuple[str, str, float], tuple[list[float], float]]


def outcomes(cells: Cells, error: float = 0.007) -> Outcomes:
    """Made-up outcomes: quality for each seed, and training FLOPs, by variant, task and density."""
    made = []
    for (variant, task, density), (values, flops) in cells.items():
        for seed, value in enumerate(values):
            metrics = {
                "accuracy" if task == "node" else "auc": measured(value),
                "training_flops": counted(flops),
            }
            if task == "link":
                metrics["auc_error"] = measured(error)
            trial = Trial(variant=variant, setting={"task": task, "density": density}, seed=seed)
            made.append(Outcome(trial=trial, metrics=metrics))
    return Outcomes(made)


def near(value: float) -> list[float]:
    return [value - 0.002, value, value + 0.002]


def test_link_claims_want_both_routes_near_dense_and_a_third_of_the_operations() -> None:
    cells: Cells = {("dense", "link", 1.0): (near(0.74), 100)}
    routes = {"rigl": 30, "admm": 150, "slr": 150, "prune-retrain": 110, "prune-retrain-longer": 120}
    for variant, flops in routes.items():
        cells[variant, "link", 0.05] = (near(0.735), flops)
    assert claims.comparable_links(outcomes(cells)).verdict is Verdict.HOLDS
    finding = claims.fewer_operations_for_links(outcomes(cells))
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["factor of prune-retrain"] == pytest.approx(110 / 30)
    cells["slr", "link", 0.05] = (near(0.70), 150)
    assert claims.comparable_links(outcomes(cells)).verdict is Verdict.FAILS
    assert claims.comparable_links(outcomes(cells, error=0.04)).verdict is Verdict.HOLDS  # 1.5 errors: 0.06
    assert claims.comparable_links(outcomes(cells, error=0.04)).numbers["margin"] == pytest.approx(-0.06)
    cells["rigl", "link", 0.05] = (near(0.735), 40)
    assert claims.fewer_operations_for_links(outcomes(cells)).verdict is Verdict.FAILS


def node_cells(rigl: dict[float, float], flops: float = 10) -> Cells:
    cells: Cells = {}
    for density, accuracy in rigl.items():
        cells["rigl", "node", density] = (near(accuracy), flops)
        cells["static", "node", density] = (near(0.45), flops)
        cells["rigl-uniform", "node", density] = (near(accuracy - 0.02), flops)
        cells["static-uniform", "node", density] = (near(0.43), flops)
        cells["admm", "node", density] = (near({0.1: 0.67, 0.03: 0.58, 0.01: 0.435}[density]), 155)
        cells["slr", "node", density] = (near({0.1: 0.67, 0.03: 0.56, 0.01: 0.43}[density]), 155)
        retrained = near({0.1: 0.67, 0.03: 0.55, 0.01: 0.28}[density])
        cells["prune-retrain", "node", density] = (retrained, 110)
        cells["prune-retrain-longer", "node", density] = (retrained, 120)
    return cells


def test_node_claims_at_the_values_that_are_expected() -> None:
    made = outcomes(node_cells({0.1: 0.667, 0.03: 0.6, 0.01: 0.45}))
    for check in (
        claims.fewer_operations_for_nodes,
        claims.better_under_extreme_sparsity,
        claims.better_than_the_best_pruning,
        claims.not_below_admm,
        claims.growth_beats_a_static_mask,
        claims.growth_beats_a_uniform_static_mask,
    ):
        assert check(made).verdict is Verdict.HOLDS, check
    assert claims.better_than_the_best_pruning(made).numbers["best pruning"] == "admm"


def test_node_claims_fail_where_they_should() -> None:
    weak = outcomes(node_cells({0.1: 0.6, 0.03: 0.5, 0.01: 0.3}, flops=20))
    for check in (
        claims.fewer_operations_for_nodes,
        claims.better_under_extreme_sparsity,
        claims.better_than_the_best_pruning,
        claims.not_below_admm,
        claims.growth_beats_a_static_mask,
        claims.growth_beats_a_uniform_static_mask,
    ):
        assert check(weak).verdict is Verdict.FAILS, check
    with pytest.raises(MissingOutcome, match=r"density 0\.03"):
        claims.growth_beats_a_static_mask(outcomes({}))
    with pytest.raises(MissingOutcome, match="prune-retrain has no outcome on the task link"):
        claims.fewer_operations_for_links(outcomes({("rigl", "link", 0.05): (near(0.7), 1)}))
    with pytest.raises(MissingOutcome, match="at most"):
        claims.fewer_operations_for_nodes(outcomes({("rigl", "node", 0.1): (near(0.7), 1)}))


ROUTES = {"prune", *claims.PRUNING, "static", "set", "rigl"}
NODE_ROUTES = ROUTES | {"static-uniform", "rigl-uniform"}


@pytest.mark.parametrize(("recipe", "tasks"), [("default", ["node", "link"]), ("debian", ["node"])])
def test_recipes_list_the_cells_that_the_claims_need(recipe: str, tasks: list[str]) -> None:
    method = GNNSparsification()
    trials = method.trials(method.load_recipe(recipe))
    cells = {(t.variant, t.setting["task"], t.setting["density"]) for t in trials}
    assert len(trials) == 3 * len(cells)
    needed = {"node": set(claims.NODE_MARGINS), "link": {claims.LINK_DENSITY}}
    for task in tasks:
        densities = {density for _, kind, density in cells if kind == task} - {1.0}
        assert needed[task] <= densities
        assert len(densities) >= 3
        assert {("dense", task, 1.0)} <= cells
        routes = NODE_ROUTES if task == "node" else ROUTES
        assert {(route, task, density) for route in routes for density in densities} <= cells
    assert {kind for _, kind, _ in cells} == set(tasks)


def test_the_card_names_the_routes_of_the_study() -> None:
    page = GNNSparsification.card.body
    assert all(f"`{route}`" in page for route in NODE_ROUTES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("node.densities=[0]", "above 0 and at most 1"),
        ("node.variants=[rigl2]", "rigl"),
        ("node.growth.update_every=0", "greater than or equal to 1"),
        ("node.slr.rho=0", "greater than 0"),
        ("node.source.network=gat", "gcn"),
        ("link.sparse={}", "exactly one of epochs and steps"),
    ],
)
def test_bad_recipes_are_refused_by_name(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        GNNSparsification().load_recipe("smoke", [change])
    with pytest.raises(RecipeError, match="node, link or both"):
        GNNSparsification().load_recipe("smoke", ["node=null", "link=null"])


def test_features_of_nodes_hold_the_mean_of_their_neighbors() -> None:
    graph = load("debian-small")
    x = node_features(graph, 16)
    seen = x[graph.train]
    assert seen.mean(0).abs().max() < 1e-3
    assert (seen.std(0) - 1).abs().max() < 1e-3
    directions = np.random.default_rng(0).normal(size=(1024, 16)).astype(np.float32) / 4
    own = graph.x.numpy() @ directions
    bounds = pairwise(graph.graph.indptr)
    means = np.array([own[graph.graph.indices[a:b]].mean(0) if b > a else np.zeros(16) for a, b in bounds])
    raw = torch.from_numpy(np.hstack([own, means]).astype(np.float32))
    torch.testing.assert_close(
        x, (raw - raw[graph.train].mean(0)) / raw[graph.train].std(0), atol=1e-3, rtol=1e-3
    )
    assert node_task(graph, 16, (8,), 0.0).build()(x[:3]).shape == (3, graph.num_classes)


def test_links_are_embedded_by_the_history_and_chosen_on_the_end_of_the_training_window(
    tmp_path: Path,
) -> None:
    source = LinkSource(data="community-messages", walks=2, epochs=1, dimension=4)
    splits = source.splits()
    source.embed(splits.history, seed=0, folder=tmp_path)
    task = source.task(splits, tmp_path)
    assert task.train.tensors[0].shape[1] == 8
    assert len(task.train) + len(task.validation) == len(splits.train)
    assert len(task.validation) == pytest.approx(0.2 * len(splits.train), abs=4)
    assert task.train.tensors[1].float().mean() == pytest.approx(0.5, abs=0.02)
    quality = task.test(task.build())
    assert set(quality) == {"auc", "auc_error", "auc_new"}
    # Events after the history change nothing of what its embeddings are learned from.
    again = link_task(splits, torch.ones(splits.history.num_nodes, 4), 8)
    assert set(again.test(again.build())) == set(quality)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 8), st.integers(0, 10**6))
def test_the_error_of_an_auc_is_that_of_its_definition(
    linked: int, apart: int, levels: int, seed: int
) -> None:
    """Every pair of one class against every pair of the other, ties counted half."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat([1, 0], [linked, apart]))
    scores = generator.integers(0, levels, len(labels)).astype(np.float32)
    ours, theirs = scores[labels == 1, None], scores[None, labels == 0]
    wins = (ours > theirs) + 0.5 * (ours == theirs)
    variance = wins.mean(1).var(ddof=1) / linked + wins.mean(0).var(ddof=1) / apart
    assert auc_error(labels, scores) == pytest.approx(variance**0.5, abs=1e-9)


def context(folder: Path, seed: int = 0) -> Context:
    work = folder / "run" / "artifacts" / f"{len(list(folder.rglob('*')))}"
    work.mkdir(parents=True)
    return Context(seed, "cpu", work, folder / "cache", logging.getLogger("test"))


def dense_accuracy(graph: Path, folder: Path) -> float:
    """Of the dense network on a graph, a trial of the smoke recipe with the same cache for all."""
    method = GNNSparsification()
    recipe = method.load_recipe("smoke", [f"node.source.data={graph}", "link=null"])
    study._nodes.cache_clear()
    trial = Trial(variant="dense", setting={"task": "node", "density": 1.0}, seed=0)
    return method.run(trial, recipe, context(folder)).metrics["accuracy"].value


def test_the_dense_network_is_trained_anew_for_other_data_or_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    class Counted(DenseTrainer):
        def fit(self, *args: Any, **settings: Any) -> Report:
            trained.append("dense")
            return super().fit(*args, **settings)

    monkeypatch.setattr(study, "DenseTrainer", Counted)
    graph = write_graph(tmp_path / "graph.npz")
    first = dense_accuracy(graph, tmp_path)
    assert dense_accuracy(graph, tmp_path) == first
    assert len(trained) == 1
    write_graph(graph, x=np.random.default_rng(1).normal(size=(120, 3)))
    assert dense_accuracy(graph, tmp_path) != first
    assert len(trained) == 2
    monkeypatch.setattr(study, "source_digest", lambda *names: "another version")
    dense_accuracy(graph, tmp_path)
    assert len(trained) == 3


def test_a_trial_leaves_the_number_of_threads_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        dense_accuracy(write_graph(tmp_path / "graph.npz"), tmp_path)
        assert torch.get_num_threads() == 2
        with pytest.raises(DataError):
            dense_accuracy(tmp_path / "absent.npz", tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def write_graph(path: Path, **changes: np.ndarray) -> Path:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 120)
    arrays = {
        "x": np.eye(3)[y] + generator.normal(size=(120, 3)) / 4,
        "y": y,
        "edge_index": generator.integers(0, 120, (2, 300)),
        "train": np.arange(60),
        "validation": np.arange(60, 90),
        "test": np.arange(90, 120),
    }
    np.savez(path, **(arrays | changes))
    return path


def features(odd: float) -> np.ndarray:
    """Zeros, and one that is odd."""
    x = np.zeros((120, 3))
    x[7, 1] = odd
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.arange(3)}, "integers"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, np.int64)}, "numbers"),
        ({"edge_index": np.zeros((3, 2), np.int64)}, "edge_index must be"),
        ({"edge_index": np.full((2, 2), 120)}, "names a node"),
        ({"y": np.full(120, -1)}, "count from 0"),
        ({"test": np.arange(59, 61)}, "two parts"),
        ({"train": np.array([200])}, "200|none of a node|node"),
        ({"y": np.arange(120) + 10**9}, "class 1000000119, of 120 nodes"),
        ({"y": np.full(120, 2**63, np.uint64)}, "class 9223372036854775808, of 120 nodes"),
        ({"x": features(np.nan)}, r"x\[7, 1\] is nan"),
        ({"x": features(-np.inf)}, r"x\[7, 1\] is -inf"),
        ({"x": features(1e39)}, r"x\[7, 1\] is 1e\+39"),
    ],
)
def test_graphs_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_nodes(write_graph(tmp_path / "graph.npz", **change))


@pytest.mark.parametrize("network", ["fnn", "gcn"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_splits_are_named(tmp_path: Path, split: str, network: str) -> None:
    graph = write_graph(tmp_path / "graph.npz", **{split: np.zeros(0, np.int64)})
    with pytest.raises(DataError, match=f"split {split} is empty"):
        NodeSource(data=str(graph), network=network).task()


def test_features_of_few_or_large_numbers(tmp_path: Path) -> None:
    one = read_nodes(write_graph(tmp_path / "graph.npz", train=np.array([5])))
    assert bool(node_features(one, 4).isfinite().all())
    large = read_nodes(write_graph(tmp_path / "graph.npz", x=np.full((120, 3), 3e38)))
    with pytest.raises(DataError, match="too large"):
        node_features(large, 4)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def test_train_compares_routes_on_a_graph_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "gnn-sparsification",
        "train",
        "--task",
        "node",
        "--data",
        str(write_graph(tmp_path / "graph.npz")),
    ]
    words += ["--method", "dense,prune-retrain,rigl", "--density", "0.2", "--seeds", "1"]
    report = tmp_path / "out" / "report.json"
    assert run(*words, "--runs", str(tmp_path / "runs"), "--report", str(report)) == 0
    printed = capsys.readouterr().out
    assert "RigL paper's average" in printed
    assert "prune-retrain" in printed
    document = json.loads(report.read_text())
    metrics = {o["trial"]["variant"]: o["metrics"] for o in document["outcomes"]}
    assert metrics["rigl"]["training_flops"]["value"] < metrics["prune-retrain"]["training_flops"]["value"]
    assert metrics["rigl"]["sparsity"]["value"] == pytest.approx(0.8, abs=1e-3)
    assert metrics["dense"]["accuracy"]["value"] > 0.5
    assert report.with_suffix(".png").read_bytes()[1:4] == b"PNG"


def test_train_on_links_draws_their_auc(tmp_path: Path) -> None:
    events = tmp_path / "events.txt"
    generator = np.random.default_rng(0)
    events.write_text(
        "\n".join(f"{a} {b} {t}" for t, (a, b) in enumerate(generator.integers(0, 30, (400, 2))))
    )
    words = ["gnn-sparsification", "train", "--task", "link", "--data", str(events), "--method", "set"]
    report = tmp_path / "report.json"
    words += ["--density", "0.1", "--seeds", "1", "--runs", str(tmp_path / "runs"), "--report", str(report)]
    assert run(*words) == 0
    document = json.loads(report.read_text())
    assert document["frontier"]
    assert "auc" in document["outcomes"][0]["metrics"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--method", "rigle"), "did you mean 'rigl'"),
        (("--density", "a,b"), "write numbers with commas"),
        (("--density", "1.5"), "above 0 and at most 1"),
        (("--data", "debain"), "did you mean"),
        (("--data", "absent.npz"), "absent.npz"),
    ],
)
def test_train_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    options = {"--task": "node", "--data": "debian-small", "--method": "dense", "--seeds": "1"}
    options |= {"--runs": str(tmp_path / "runs")} | dict([change])
    ended = run("gnn-sparsification", "train", *(word for pair in options.items() for word in pair))
    assert ended in (1, 2)
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())


def test_college_messages_split_without_leakage(require: Callable[[object, str], None]) -> None:
    require(os.environ.get("TRADEOFF_DATA"), "CollegeMsg needs TRADEOFF_DATA")
    splits = split_links(load_events("college-msg"))
    assert len(splits.history) == pytest.approx(0.6 * 59_835, abs=5)
    assert splits.history.time.max() < splits.train.time.min()
    assert splits.train.time.max() < splits.test.time.min()
