"""The study around MaxK-GNN: claims, recipes and the command."""

import json
from pathlib import Path

import pytest

from tradeoff.cli import main
from tradeoff.core import Outcome, Outcomes, Trial, Verdict, counted, measured
from tradeoff.core.errors import MissingOutcome, RecipeError
from tradeoff.methods.graphs.maxk_gnn import MaxKGNN, claims
from tradeoff.methods.graphs.maxk_gnn.study import MaxKGNNStudy
from tradeoff.nn.models import load_weights

Cell = tuple[str, str, int, int | None]


def outcomes(table: dict[Cell, list[dict[str, float]]]) -> Outcomes:
    """Made-up outcomes: metrics by (variant, graph, hidden, k), one mapping for each seed."""
    made = []
    for (variant, graph, hidden, k), seeds in table.items():
        setting = {"graph": graph, "hidden": hidden} | ({} if k is None else {"k": k})
        for seed, metrics in enumerate(seeds):
            kind = {name: counted if name == "activation_bytes" else measured for name in metrics}
            values = {name: kind[name](value) for name, value in metrics.items()}
            made.append(Outcome(trial=Trial(variant=variant, setting=setting, seed=seed), metrics=values))
    return Outcomes(made)


def accuracies(*values: float) -> list[dict[str, float]]:
    return [{"accuracy": value} for value in values]


def epochs(seconds: float, aggregation: float) -> list[dict[str, float]]:
    factors = (0.99, 1.0, 1.01)
    return [{"epoch_seconds": seconds * f, "aggregation_seconds": aggregation * f} for f in factors]


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
        ("relu", "debian", 256, None): accuracies(0.69, 0.70, 0.71),
        ("maxk", "debian", 256, 16): accuracies(0.1, 0.1, 0.1),
        ("maxk", "debian", 256, 32): accuracies(*ours),
    }
    finding = claims.as_accurate_as_relu(outcomes(table))
    assert finding.verdict is verdict
    assert finding.numbers["maxk"] == pytest.approx(sum(ours) / 3)


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


def test_speed_claims_compare_epochs_and_the_limit() -> None:
    """Aggregation is 60 % of the dense epoch, so the limit is 2.5."""
    table = {
        ("relu", "reddit23k", 256, None): epochs(10, 6),
        ("torch", "reddit23k", 256, None): epochs(20, 16),
        ("simulated", "reddit23k", 256, 16): epochs(12, 6),
        ("maxk", "reddit23k", 256, 16): epochs(5, 1),
        ("maxk", "reddit23k", 256, 32): epochs(6, 2),
    }
    made = outcomes(table)
    assert claims.faster_than_dense(made).verdict is Verdict.HOLDS
    assert claims.faster_than_torch(made).numbers["k=32"] == pytest.approx(20 / 6)
    assert claims.masks_save_nothing(made).verdict is Verdict.HOLDS
    finding = claims.approaches_the_limit(made)
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["limit"] == pytest.approx(2.5)
    assert finding.numbers["k=32 of limit"] == pytest.approx(10 / 6 / 2.5)
    assert claims.within_the_limit(made).verdict is Verdict.HOLDS
    broken = outcomes(table | {("maxk", "reddit23k", 256, 16): epochs(3, 1)})
    assert claims.within_the_limit(broken).verdict is Verdict.FAILS
    slow = outcomes(table | {("maxk", "reddit23k", 256, 32): epochs(9.5, 5)})
    assert claims.faster_than_dense(slow).verdict is Verdict.FAILS
    assert claims.approaches_the_limit(slow).verdict is Verdict.FAILS


def test_claims_of_memory_and_approximation() -> None:
    bytes_kept = {
        ("relu", "reddit23k", 256, None): [{"activation_bytes": 4 * 256 * 1000.0}],
        ("maxk", "reddit23k", 256, 32): [{"activation_bytes": 32 * 1000.0}],
    }
    assert claims.keeps_fewer_bytes(outcomes(bytes_kept)).verdict is Verdict.HOLDS
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


def test_recipes_list_the_cells_that_the_claims_need() -> None:
    method = MaxKGNNStudy()
    recipe = method.load_recipe("default")
    trials = method.trials(recipe)
    cells = {(t.variant, t.setting.get("graph"), t.setting["hidden"], t.setting.get("k")) for t in trials}
    assert len(trials) == 3 * len(cells)
    assert {
        ("mlp", "debian-small", 64, None),
        ("maxk", "debian-small", 256, 32),
        ("torch", "reddit23k", 256, None),
        ("simulated", "reddit23k", 256, 8),
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
    assert "Amdahl's limit" in capsys.readouterr().out
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
        (("--k", "many"), "whole numbers"),
        (("--k", "", "--baseline", "none"), "no network to train"),
        (("--peers", "dgl"), "not dgl"),
        (("--peers", "torch", "--model", "gcn"), "for sage"),
        (("--data", "debain"), "did you mean 'debian"),
        (("--data", "community:x"), "community:x"),
    ],
)
def test_command_names_what_is_wrong(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
