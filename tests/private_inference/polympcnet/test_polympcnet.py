"""PolyMPCNet: the start of quadratics, the study's claims and recipes, verbs, and the two-party result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.cli import main
from tradeoff.core import Outcome, Outcomes, Trial, Verdict, measured
from tradeoff.core.errors import RecipeError
from tradeoff.data.devices import fpga_latency
from tradeoff.data.images import ImageData, load
from tradeoff.engines import two_party
from tradeoff.methods.private_inference.polympcnet import PolyMPCNet, claims, pareto, swap_magnitude
from tradeoff.methods.private_inference.polympcnet.study import PolyMPCNetStudy
from tradeoff.nn.compressed import load_compressed, save_compressed
from tradeoff.nn.fit import FitConfig, evaluate, fit
from tradeoff.nn.models import ArchMismatch, build, save_weights
from tradeoff.nn.search import Architecture, ArchitectureConfig, GateConfig, discretize, gates

SHAPE = (1, 8, 16)
RATES = {
    "exchange": 3e-4,
    "linear": 7e-10,
    "comparison": 2e-7,
    "polynomial": 3e-7,
    "truncation": 7e-8,
    "local": 4e-9,
}


@pytest.fixture(scope="module")
def pairs() -> ImageData:
    return load("digit-pairs")


@pytest.fixture(scope="module")
def pooled(pairs: ImageData) -> nn.Module:
    """The network of the study, trained far enough for what replaces its activations to matter."""
    torch.manual_seed(0)
    network = build("pair_pool_cnn", 10, SHAPE)
    fit(
        network,
        pairs.train,
        None,
        FitConfig(steps=400, batch_size=128, optimizer="adam", learning_rate=0.008),
    )
    return network.eval()


FINETUNING = FitConfig(
    steps=300, batch_size=64, optimizer="adam", learning_rate=0.003, final_learning_rate=1e-5, clip_norm=5
)


def swapped(network: nn.Module, pairs: ImageData, start: tuple[float, float, float]) -> tuple[float, float]:
    """Accuracy after all sites were swapped at once, and the logits' magnitude just after."""
    config = GateConfig(start=start, learning_rate_multiplier=10)
    method = PolyMPCNet(network, fpga_latency(), SHAPE, 0.0, config)
    chosen = Architecture.uniform(method.network, "poly", "average")
    magnitude = swap_magnitude(discretize(method.network, chosen), pairs.validation.x[:200])
    final = method.finish(pairs.train, None, FINETUNING, architecture=chosen)
    assert method.relu_count(chosen) == 0
    return evaluate(final, pairs.validation), magnitude


@pytest.mark.slow
def test_straight_through_start_beats_naive_ones(pooled: nn.Module, pairs: ImageData) -> None:
    """At least 20 points, and logits that stay below 10^4 where those of x^2 exceed 10^10."""
    ours, calm = swapped(pooled, pairs, (0.005, 1.0, 0.0))
    naive, wild = swapped(pooled, pairs, (1.0, 0.0, 0.0))
    assert ours - naive >= 0.20
    assert calm < 4
    assert wild > 10


@pytest.mark.slow
def test_searched_network_runs_in_private_with_the_labels_of_the_plaintext(
    pooled: nn.Module, pairs: ImageData
) -> None:
    """A mixed network and one without comparisons, on 256 test images, by the gap rule of the engine."""
    for penalty in (2.0, 1e4):
        method = PolyMPCNet(
            pooled,
            fpga_latency(),
            SHAPE,
            penalty,
            GateConfig(learning_rate_multiplier=10),
            ArchitectureConfig(learning_rate=0.1),
        )
        steps = FitConfig(steps=30, batch_size=64, optimizer="adam", learning_rate=0.002, clip_norm=5)
        method.search(pairs.train, steps)
        network = method.finish(pairs.train, None, steps)
        program = two_party.compile(network, SHAPE, calibration=pairs.train.x[:64].numpy())
        x = pairs.test.x[:256].numpy()
        with two_party.Session.simulated() as session:
            logits = session.infer(program, x)
            report = session.report()
        agreement = two_party.agreement(program, x, logits)
        assert agreement.decided == 1.0
        assert report.total.sent == two_party.cost(program, len(x)).total.sent
        kinds = {row.kind for row in report.rows}
        assert ("relu" in kinds or "max_pool" in kinds) == (penalty < 1e4)
        assert method.relu_count() == program.plan.relu_count


def test_front_has_a_point_for_each_penalty_and_resumes(
    pooled: nn.Module, pairs: ImageData, tmp_path: Path
) -> None:
    steps = FitConfig(steps=3, batch_size=32, optimizer="adam", learning_rate=0.002, clip_norm=5)

    def front() -> list[Any]:
        return pareto(
            pooled,
            fpga_latency(),
            SHAPE,
            [0.0, 1e4],
            pairs.train.take(256),
            pairs.validation.take(200),
            steps,
            steps,
            architecture=ArchitectureConfig(learning_rate=0.3),
            checkpoint=tmp_path,
        )

    first = front()
    again = front()
    assert [point.penalty for point in first] == [0.0, 1e4]
    assert first[1].relu_count == 0
    assert first[0].latency.seconds > first[1].latency.seconds
    for mine, theirs in zip(first, again, strict=True):
        assert mine.architecture == theirs.architecture
        for a, b in zip(
            mine.network.state_dict().values(), theirs.network.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match="at least one penalty"):
        pareto(pooled, fpga_latency(), SHAPE, [], pairs.train, pairs.validation, steps, steps)


def test_saved_network_computes_the_same(pooled: nn.Module, pairs: ImageData, tmp_path: Path) -> None:
    method = PolyMPCNet(pooled, fpga_latency(), SHAPE, 0.0)
    chosen = Architecture.uniform(method.network, "poly", "max").with_choice("pool2", "average")
    chosen = chosen.with_choice("relu3", "relu")
    steps = FitConfig(steps=1, batch_size=32, optimizer="adam", learning_rate=0.002)
    network = method.finish(pairs.train, None, steps, architecture=chosen)
    save_compressed(tmp_path, network, arch="pair_pool_cnn", num_classes=10, input_shape=SHAPE)
    x = torch.randn(4, *SHAPE)
    assert torch.equal(load_compressed(tmp_path)(x), network(x))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["poolings"] == {"pool1": "max", "pool2": "average"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"poolings": {"pool9": "average"}}))
    with pytest.raises(ArchMismatch, match="pool9"):
        load_compressed(tmp_path)


# --- claims ----------------------------------------------------------------------------------------------


def outcomes(table: dict[tuple[str, str | None, float | None], dict[str, list[float]]]) -> Outcomes:
    """Made-up outcomes by variant, link and penalty: values of each quantity by seed."""
    made = []
    for (variant, link, penalty), columns in table.items():
        setting: dict[str, Any] = {} if link is None else {"link": link, "penalty": penalty}
        for seed in range(3):
            metrics = {name: measured(column[seed]) for name, column in columns.items()}
            made.append(Outcome(trial=Trial(variant=variant, setting=setting, seed=seed), metrics=metrics))
    return Outcomes(made)


def test_published_latencies_hold() -> None:
    finding = claims.published_latencies(Outcomes())
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["ResNet-18 modelled"] == pytest.approx(0.063, rel=0.05)


@pytest.mark.parametrize(
    ("naive", "wild", "verdict"), [(0.3, 20.0, "holds"), (0.75, 20.0, "fails"), (0.3, 5.0, "fails")]
)
def test_claim_of_the_start(naive: float, wild: float, verdict: str) -> None:
    spread = [0.0, 0.01, 0.02]
    made = outcomes(
        {
            ("poly", None, None): {"accuracy": [0.8 + s for s in spread], "swap_logit": [2.0] * 3},
            ("naive-square", None, None): {"accuracy": [naive + s for s in spread], "swap_logit": [wild] * 3},
            ("naive-random", None, None): {"accuracy": [0.2 + s for s in spread], "swap_logit": [9.0] * 3},
        }
    )
    assert claims.straight_through_start(made).verdict == verdict


def test_claims_about_the_two_links() -> None:
    def cells(wan: list[float], narrow: list[float], name: str) -> Outcomes:
        table: dict[Any, Any] = {}
        for link, counts in (("wan", wan), ("narrow", narrow)):
            for penalty in (0.001, 0.004):
                table["search", link, penalty] = {name: counts, "relu_sites": counts}
        return outcomes(table)

    assert claims.fewer_sites_when_far(cells([1, 2, 1], [4, 5, 4], "relu_sites")).verdict is Verdict.HOLDS
    assert claims.fewer_sites_when_far(cells([5, 5, 5], [3, 4, 3], "relu_sites")).verdict is Verdict.FAILS
    assert (
        claims.fewer_elements_when_narrow(cells([900, 990, 950], [99, 98, 90], "relu_count")).verdict
        is Verdict.HOLDS
    )
    falling = outcomes(
        {
            ("search", "wan", 0.0): {"predicted_latency_wan": [1.0, 1.1, 1.2]},
            ("search", "wan", 0.1): {"predicted_latency_wan": [1.0, 0.5, 0.7]},
        }
    )
    assert claims.latency_falls_with_penalty(falling).verdict is Verdict.HOLDS
    rising = outcomes(
        {
            ("search", "wan", 0.0): {"predicted_latency_wan": [1.0, 1.1, 1.2]},
            ("search", "wan", 0.1): {"predicted_latency_wan": [1.3, 1.3, 1.3]},
        }
    )
    assert claims.latency_falls_with_penalty(rising).verdict is Verdict.FAILS


def test_claim_of_the_ranks() -> None:
    def made(measured_values: list[list[float]]) -> Outcomes:
        return outcomes(
            {
                ("search", "wan", float(i)): {
                    "predicted_latency_wan": [i + 1.0, i + 1.1, i + 1.2],
                    "latency_wan": column,
                }
                for i, column in enumerate(measured_values)
            }
        )

    good = made([[1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [3.0, 3.1, 3.2]])
    assert claims.measured_follows_predicted(good).verdict is Verdict.HOLDS
    bad = made([[3.0, 3.1, 3.2], [2.0, 2.1, 2.2], [1.0, 1.1, 1.2]])
    assert claims.measured_follows_predicted(bad).verdict is Verdict.FAILS


def test_recipes() -> None:
    method = PolyMPCNetStudy()
    recipe = method.load_recipe("default")
    cells = {(t.variant, t.setting.get("link"), t.setting.get("penalty")) for t in method.trials(recipe)}
    assert len(method.trials(recipe)) == 3 * len(cells)
    assert {("relu", None, None), ("poly", None, None), ("naive-square", None, None)} <= cells
    measured_cells = [cell for cell in cells if not cell[0].startswith("naive")]
    assert len(measured_cells) >= 8, "the Pareto page needs eight networks"
    for change, message in (
        ("penalties.wan=[-1]", "greater than or equal to 0"),
        ("penalties.wan=[1, 1]", r"penalties\.wan lists a penalty twice"),
        ("data=digit-pair", "did you mean 'digit-pairs'"),
        ("arch=resnet81", "'resnet81' is none of resnet18"),
        ("finetuning={epochs: 3}", "both have steps, or both epochs"),
        ("gates.start=[1, 2]", "start"),
        ("calibration.linear=-1", "linear"),
    ):
        with pytest.raises(RecipeError, match=message):
            method.load_recipe("default", [change])


# --- verbs -----------------------------------------------------------------------------------------------


def run(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["polympcnet", *words])
    assert ended.value.code == code


def test_latency_of_a_published_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run("latency", "--arch", "resnet18", "--input-shape", "3,224,224", "--all", "poly")
    printed = capsys.readouterr().out
    assert "modelled on two zcu104" in printed
    milliseconds = float(printed.rsplit("zcu104: ", 1)[1].split(" ms")[0])
    assert milliseconds == pytest.approx(63, rel=0.05)
    run("latency", "--arch", "resnet18", code=2)
    assert "either --architecture or --all" in capsys.readouterr().err
    run("latency", "--arch", "resnet18", "--all", "poly", "--board", "zcu140", code=2)
    assert "did you mean 'zcu104'" in capsys.readouterr().err


def test_schedule_of_a_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (
        "schedule",
        "--arch",
        "pair_pool_cnn",
        "--input-shape",
        "1,8,16",
        "--classes",
        "10",
        "--all",
        "relu",
    )
    for name in ("chart.json", "chart.csv"):
        run(*words, "--images", "2", "--watts", "20", "--chart", str(tmp_path / name))
    printed = capsys.readouterr().out
    assert "energy" in printed
    document = json.loads((tmp_path / "chart.json").read_text())
    assert document["makespan"] <= document["sequential"]
    assert len((tmp_path / "chart.csv").read_text().splitlines()) == len(document["bars"]) + 1


def test_search_writes_what_the_two_party_engine_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    save_weights(build("small_cnn", 10, (1, 8, 8)), tmp_path / "m.safetensors")
    (tmp_path / "host.json").write_text(json.dumps(RATES))
    words = ["search", "--model", str(tmp_path / "m.safetensors"), "--arch", "small_cnn", "--data", "digits"]
    words += ["--epochs", "1", "--finetuning", "1", "--alpha-rate", "0.3", "--no-run"]
    words += ["--latency", "wan", "--calibration", str(tmp_path / "host.json")]
    run(*words, "--penalty", "0", "--penalty", "100", "--out", str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "penalty 0 " in printed
    assert "        0 ReLUs" in printed
    network = load_compressed(tmp_path / "out" / "penalty-100")
    owner = two_party.Program.load(tmp_path / "out" / "penalty-100" / "program")
    assert owner.plan.relu_count == 0
    x = load("digits").test.x[:8]
    np.testing.assert_allclose(owner.plan.evaluate(x.numpy()), network(x).detach().numpy(), atol=1e-3)
    chosen = Architecture.load(tmp_path / "out" / "penalty-100" / "architecture.json")
    assert chosen.relu_sites == 0
    run(
        "latency",
        "--arch",
        "small_cnn",
        "--input-shape",
        "1,8,8",
        "--classes",
        "10",
        "--architecture",
        str(tmp_path / "out" / "penalty-100" / "architecture.json"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--penalty", "-1"), "--penalty"),
        (("--data", "didgits"), "did you mean 'digits'"),
        (("--model", "absent.safetensors"), "absent.safetensors"),
        (("--latency", "zcu1"), "UnknownName"),
        (("--calibration", "absent.json"), "absent.json"),
    ],
)
def test_search_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    save_weights(build("small_cnn", 10, (1, 8, 8)), tmp_path / "m.safetensors")
    options = {"--model": str(tmp_path / "m.safetensors"), "--arch": "small_cnn", "--data": "digits"}
    options |= {"--penalty": "1", "--out": str(tmp_path / "out")}
    options[change[0]] = change[1]
    run("search", *(word for pair in options.items() for word in pair), code=2)
    assert message in capsys.readouterr().err


def test_gates_of_the_published_search_are_reproduced() -> None:
    """The released gates: softmax of two zeros, w1 = 0.005, w2 = 1, b = 0."""
    method = PolyMPCNet(build("pair_pool_cnn", 10, SHAPE), fpga_latency(), SHAPE, 0.0)
    for gate in gates(method.network).values():
        assert gate.parts().tolist() == [[0.5, 0.5]]
    first = next(iter(gates(method.network).values()))
    assert first.quadratic.weights.flatten().tolist() == pytest.approx([0.0, 1.0, 0.005])  # type: ignore[union-attr]
