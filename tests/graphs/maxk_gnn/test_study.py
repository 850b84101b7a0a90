"""The study around MaxK-GNN: claims, recipes and the command."""

import json
import logging
from pathlib import Path

import pytest
import torch

from tradeoff.cli import main
from tradeoff.core import Context, Outcome, Outcomes, Trial, Verdict, counted, measured
from tradeoff.core.errors import MissingOutcome, RecipeError
from tradeoff.methods.graphs.maxk_gnn import Breakdown, MaxKGNN, claims, study
from tradeoff.methods.graphs.maxk_gnn.nodes import load_nodes
from tradeoff.methods.graphs.maxk_gnn.study import MaxKGNNStudy
from tradeoff.methods.graphs.maxk_gnn.timing import EpochTime
from tradeoff.nn.models import load_weights

Cell = tuple[str, str, int | None, int | None]


def outcomes(table: dict[Cell, list[dict[str, float]]]) -> Outcomes:
    """Made-up outcomes: metrics by (variant, graph, hidden, k), one mapping for each seed."""
    made = []
    for (variant, graph, hidden, k), seeds in table.items():
        setting: dict[str, str | int] = {"graph": graph}
        setting |= {name: value for name, value in (("hidden", hidden), ("k", k)) if value is not None}
        for seed, metrics in enumerate(seeds):
            kind = {name: counted if name == "activation_bytes" else measured for name in metrics}
            values = {name: kind[name](value) for name, value in metrics.items()}
            made.append(Outcome(trial=Trial(variant=variant, setting=setting, seed=seed), metrics=values))
    return Outcomes(made)


def accuracies(*values: float) -> list[dict[str, float]]:
    return [{"accuracy": value} for value in values]


def epochs(
    seconds: float, aggregation: float, own_product: float = 0, activation: float = 0
) -> list[dict[str, float]]:
    parts = {
        "epoch_seconds": seconds,
        "aggregation_seconds": aggregation,
        "own_product_seconds": own_product,
        "activation_seconds": activation,
    }
    return [{name: value * f for name, value in parts.items()} for f in (0.99, 1.0, 1.01)]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.69, 0.70, 0.71), Verdict.HOLDS),
        ((0.65, 0.66, 0.67), Verdict.FAILS),
        ((0.60, 0.70, 0.75), Verdict.UNDECIDED),
    ],
)
def test_accuracy_claim_is_at_an_eighth_of_the_width(ours: tuple[float, ...], verdict: Verdict) -> None:
    table = {
        ("majority", "debian", None, None): accuracies(0.1, 0.1, 0.1),
        ("mlp", "debian", 64, None): accuracies(0.5, 0.5, 0.5),
        ("relu", "debian", 64, None): accuracies(0.69, 0.70, 0.71),
        ("relu", "debian", 256, None): accuracies(0.69, 0.70, 0.71),
        ("maxk", "debian", 256, 16): accuracies(0.1, 0.1, 0.1),
        ("maxk", "debian", 256, 32): accuracies(*ours),
    }
    finding = claims.as_accurate_as_relu(outcomes(table))
    assert finding.verdict is verdict
    assert finding.numbers["maxk"] == pytest.approx(sum(ours) / 3)


def test_accuracy_is_undecided_beside_a_dense_network_that_was_not_trained() -> None:
    """A ReLU network worse than a narrower one, on one seed of three, says nothing of MaxK."""
    table: dict[Cell, list[dict[str, float]]] = {
        ("majority", "debian", None, None): accuracies(0.1, 0.1, 0.1),
        ("mlp", "debian", 64, None): accuracies(0.5, 0.5, 0.5),
        ("relu", "debian", 64, None): accuracies(0.70, 0.70, 0.70),
        ("relu", "debian", 256, None): accuracies(0.70, 0.70, 0.62),
        ("maxk", "debian", 256, 32): accuracies(0.71, 0.71, 0.63),
    }
    finding = claims.as_accurate_as_relu(outcomes(table))
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.numbers["narrow relu"] == pytest.approx(0.70)
    assert "narrower" in str(finding.numbers["reason"])
    table["relu", "debian", 256, None] = accuracies(0.70, 0.70, 0.68)
    table["maxk", "debian", 256, 32] = accuracies(0.71, 0.71, 0.69)
    assert claims.as_accurate_as_relu(outcomes(table)).verdict is Verdict.HOLDS
    # Both widths as good as the largest class.
    for hidden in (64, 256):
        table["relu", "debian", hidden, None] = accuracies(0.1, 0.11, 0.1)
    finding = claims.as_accurate_as_relu(outcomes(table))
    assert finding.verdict is Verdict.UNDECIDED
    assert "largest class" in str(finding.numbers["reason"])


def test_claims_of_the_narrow_network() -> None:
    table = {
        ("mlp", "debian", 64, None): accuracies(0.50, 0.51, 0.52),
        ("relu", "debian", 64, None): accuracies(0.68, 0.69, 0.70),
        ("maxk", "debian", 64, 4): accuracies(0.58, 0.59, 0.60),
        ("maxk", "debian", 64, 16): accuracies(0.68, 0.69, 0.70),
    }
    assert claims.neighbors_matter(outcomes(table)).verdict is Verdict.HOLDS
    assert claims.too_few_features_cost_accuracy(outcomes(table)).verdict is Verdict.HOLDS
    table[("maxk", "debian", 64, 4)] = accuracies(0.70, 0.71, 0.72)
    assert claims.too_few_features_cost_accuracy(outcomes(table)).verdict is Verdict.FAILS
    with pytest.raises(MissingOutcome, match="relu on debian"):
        claims.neighbors_matter(outcomes({("mlp", "debian", 64, None): accuracies(0.5)}))


SPEED: dict[Cell, list[dict[str, float]]] = {
    ("relu", "reddit23k", 256, None): epochs(10, 5, own_product=2, activation=1),
    ("torch", "reddit23k", 256, None): epochs(20, 16),
    ("simulated", "reddit23k", 256, 16): epochs(12, 6),
    ("maxk", "reddit23k", 256, 16): epochs(4, 1),
    ("maxk", "reddit23k", 256, 32): epochs(5, 2),
    ("maxk-sums", "reddit23k", 256, 16): epochs(6, 1, own_product=2),
    ("maxk-sums", "reddit23k", 256, 32): epochs(7, 2, own_product=2),
}
"""Shorter sums and activations (60 % of the dense epoch) allow 2.5 times, shorter products (80 %) 5 times."""


def test_speed_claims_compare_epochs() -> None:
    made = outcomes(SPEED)
    assert claims.faster_than_dense(made).verdict is Verdict.HOLDS
    assert claims.faster_than_torch(made).numbers["k=32"] == pytest.approx(4)
    assert claims.masks_save_nothing(made).verdict is Verdict.HOLDS
    slow = outcomes(SPEED | {("maxk", "reddit23k", 256, 32): epochs(9.5, 5)})
    assert claims.faster_than_dense(slow).verdict is Verdict.FAILS


def test_the_limit_counts_all_that_gets_shorter() -> None:
    """4 of 10 seconds stay with shorter sums, 2 of 10 with shorter products, too."""
    finding = claims.approaches_the_limit(outcomes(SPEED))
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["limit"] == pytest.approx(2.5)
    assert finding.numbers["limit of the sums alone"] == pytest.approx(2)
    assert finding.numbers["k=16 of limit"] == pytest.approx(10 / 6 / 2.5)
    assert finding.numbers["k=32 of limit high"] == pytest.approx(10 / 7 / 2.5)
    slow = outcomes(SPEED | {("maxk-sums", "reddit23k", 256, 16): epochs(7.5, 3, own_product=2)})
    assert claims.approaches_the_limit(slow).verdict is Verdict.FAILS

    finding = claims.within_the_limit(outcomes(SPEED))
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["limit (maxk)"] == pytest.approx(5)
    assert finding.numbers["k=16 of limit (maxk)"] == pytest.approx(10 / 4 / 5)


@pytest.mark.parametrize(("variant", "left"), [("maxk", 2), ("maxk-sums", 4)])
def test_epochs_shorter_than_what_stays_accuse_the_baseline(variant: str, left: float) -> None:
    for seconds, verdict in ((0.9 * left, Verdict.FAILS), (1.1 * left, Verdict.HOLDS)):
        table = SPEED | {(variant, "reddit23k", 256, 16): epochs(seconds, 0.1)}
        assert claims.within_the_limit(outcomes(table)).verdict is verdict
    one = {cell: seeds[:1] for cell, seeds in SPEED.items()}
    assert claims.within_the_limit(outcomes(one)).verdict is Verdict.UNDECIDED


def test_few_neighbors_show_where_time_is_saved() -> None:
    table = {
        ("relu", "debian-small", 256, None): epochs(10, 2, own_product=3, activation=1),
        ("maxk", "debian-small", 256, 16): epochs(8, 2.5, own_product=1, activation=0.5),
        ("maxk-sums", "debian-small", 256, 16): epochs(11, 2.5, own_product=3.5, activation=0.5),
    }
    finding = claims.faster_on_a_sparse_graph(outcomes(table))
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["k=16 saved in aggregation"] == pytest.approx(-0.5)
    assert finding.numbers["k=16 saved in own_product"] == pytest.approx(2)
    assert claims.sums_suffice_on_a_sparse_graph(outcomes(table)).verdict is Verdict.FAILS


def test_claims_of_memory_and_approximation() -> None:
    bytes_kept = {
        ("relu", "reddit23k", 256, None): [{"activation_bytes": 4 * 256 * 1000.0}],
        ("maxk", "reddit23k", 256, 32): [{"activation_bytes": 3 * 256 * 1000.0}],
    }
    assert claims.keeps_fewer_bytes(outcomes(bytes_kept)).verdict is Verdict.HOLDS
    bytes_kept["maxk", "reddit23k", 256, 32] = [{"activation_bytes": 3.2 * 256 * 1000.0}]
    assert claims.keeps_fewer_bytes(outcomes(bytes_kept)).verdict is Verdict.FAILS
    errors = {
        ("square-maxk", 4): 1e-2,
        ("square-maxk", 64): 1e-4,
        ("square-relu", 4): 1e-3,
        ("square-relu", 64): 1e-6,
    }
    made = Outcomes(
        Outcome(
            trial=Trial(variant=name, setting={"hidden": width}, seed=seed),
            metrics={"loss": measured(error * (1 + seed))},
        )
        for (name, width), error in errors.items()
        for seed in range(3)
    )
    finding = claims.approximates_functions(made)
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["maxk 64"] == 1e-4  # the best start


def test_times_are_measured_anew_by_other_code_and_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_times: list[int] = []

    def times(networks: dict[str, object], *_: object, rounds: int) -> dict[str, EpochTime]:
        measured_times.append(rounds)
        return dict.fromkeys(networks, EpochTime(1.0, Breakdown(epoch=1.0)))

    monkeypatch.setattr(study, "time_epochs", times)
    method = MaxKGNNStudy()
    network = "{graph: community:300:12:5, hidden: 32, layers: 1, ks: [4], timed: true}"
    recipe = method.load_recipe("smoke", [f"networks=[{network}]"])
    cells = [trial for trial in method.trials(recipe) if trial.setting.get("k") == 4]

    def run() -> int:
        for trial in cells:
            work = tmp_path / "work" / trial.variant
            context = Context(0, "cpu", work, tmp_path / "cache", logging.getLogger())
            method.run(trial, recipe, context)
        return len(measured_times)

    assert len(cells) == 3
    assert (run(), run()) == (1, 1)
    monkeypatch.setattr(study, "source_digest", lambda *names: "another version")
    assert run() == 2
    monkeypatch.setattr(study.platform, "node", lambda: "another machine")
    assert (run(), run()) == (3, 3)


def test_naming_one_class_is_right_for_the_largest_one(tmp_path: Path) -> None:
    data, _ = load_nodes("debian-small")
    counts = torch.bincount(data.y[data.test])
    trial = Trial(variant="majority", setting={"graph": "debian-small"}, seed=0)
    method = MaxKGNNStudy()
    context = Context(0, "cpu", tmp_path, tmp_path / "cache", logging.getLogger())
    outcome = method.run(trial, method.load_recipe("default"), context)
    assert outcome.metrics["accuracy"].value == pytest.approx(float(counts.max() / counts.sum()))


def test_recipes_list_the_cells_that_the_claims_need() -> None:
    method = MaxKGNNStudy()
    recipe = method.load_recipe("default")
    trials = method.trials(recipe)
    cells = {(t.variant, *(t.setting.get(name) for name in ("graph", "hidden", "k"))) for t in trials}
    assert len(trials) == 3 * len(cells)
    assert recipe.rounds >= 3
    assert {
        ("majority", "debian-small", None, None),
        ("mlp", "debian-small", 64, None),
        ("maxk", "debian-small", 256, 32),
        ("torch", "reddit23k", 256, None),
        ("simulated", "reddit23k", 256, 8),
        ("maxk-sums", "reddit23k", 256, 16),
        ("maxk-sums", "debian-small", 256, 16),
        ("square-relu", None, 64, None),
    } <= cells
    network = "networks=[{graph: debian, hidden: 64, ks: [%s], epochs: 3}]"
    for change, message in (
        (network % 65, "must not exceed hidden=64"),
        (network % 0, "greater than or equal to 1"),
        ("networks=[{graph: debian, hidden: 64, ks: [8]}]", "give epochs, or timed"),
        ("networks=[]", "at least 1"),
        ("peers=[dgl]", "not dgl"),
    ):
        with pytest.raises(RecipeError, match=message):
            method.load_recipe("default", [change])
    twice = "{graph: debian, hidden: 64, ks: [8], epochs: 3}"
    with pytest.raises(RecipeError, match="same graph and width"):
        method.load_recipe("default", [f"networks=[{twice}, {twice}]"])


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["maxk-gnn", "train", *words])
    return int(str(ended.value.code))


SMALL = ("--data", "community:300:12:5", "--hidden", "32", "--layers", "2", "--epochs", "3")


def test_command_trains_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--k", "4,8", "--seeds", "2", "--peers", "torch", "--out", str(tmp_path / "out")]
    assert run(*words, "--json", str(tmp_path / "out.json")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Amdahl's limit is" in printed
    assert "own_gemm" in printed
    document = json.loads((tmp_path / "out.json").read_text())
    rows = {row["network"]: row for row in document["rows"]}
    assert list(rows) == ["relu", "maxk 4", "maxk 8", "torch"]
    assert rows["relu"]["speed_up"] == 1
    assert rows["torch"]["score"] is None
    assert rows["maxk 4"]["traffic_ratio"] > rows["maxk 8"]["traffic_ratio"]
    model = MaxKGNN("sage", 64, 32, 2, 5, 4)
    load_weights(model, tmp_path / "out" / "maxk4.safetensors")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--k", "33"), "ModelError"),
        (("--k", "0"), "ModelError"),
        (("--k", "8,-3"), "not -3"),
        (("--out", "/dev/null"), "cannot write into /dev/null"),
        (("--json", "/tmp"), "/tmp: it is a folder"),
        (("--device", "foo"), "DeviceError"),
        (("--device", "meta"), "DeviceError"),
        (("--k", "many"), "whole numbers"),
        (("--k", "", "--baseline", "none"), "no network to train"),
        (("--peers", "dgl"), "not dgl"),
        (("--peers", "torch", "--model", "gcn"), "for sage"),
        (("--data", "debain"), "did you mean 'debian"),
        (("--data", "community:x"), "community:x"),
    ],
)
def test_command_names_what_is_wrong(
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("a network was trained before the mistake was named")

    monkeypatch.setattr("tradeoff.methods.graphs.maxk_gnn.report.train", too_late)
    assert run(*SMALL, *words) == (1 if words[0] in ("--out", "--json") else 2)
    assert message in " ".join(capsys.readouterr().err.split())
