"""RRNet: budgets and their repair, fronts that resume, sensitivity, claims, recipes and verbs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tradeoff.cli import main
from tradeoff.core import Outcome, Outcomes, Trial, Verdict, measured
from tradeoff.core.errors import RecipeError
from tradeoff.data.devices import fpga_latency
from tradeoff.engines import two_party
from tradeoff.engines.transport import PROFILES
from tradeoff.engines.two_party.latency import Calibration, EngineLatency
from tradeoff.methods.private_inference.rrnet import (
    BudgetConfig,
    BudgetController,
    Front,
    InfeasibleBudget,
    ReLUReduction,
    claims,
    reduction,
    repair,
    sensitivity,
)
from tradeoff.methods.private_inference.rrnet.study import RRNet
from tradeoff.nn.compressed import load_compressed
from tradeoff.nn.fit import Callback, FitConfig, FitState
from tradeoff.nn.latency import FPGALatency, LatencyModel, ReLUCount
from tradeoff.nn.models import ArchMismatch, build, save_weights
from tradeoff.nn.search import (
    Architecture,
    ArchitectureConfig,
    GateConfig,
    LatencySearch,
    costliest_first,
    every_second,
    finalize,
    gates,
    largest_first,
    latest_first,
    random_order,
    reduced,
)

SHAPE = (1, 8, 16)
RATES = Calibration(
    exchange=3e-4, linear=7e-10, comparison=2e-7, polynomial=3e-7, truncation=7e-8, local=4e-9
)
STEPS = FitConfig(steps=3, batch_size=16, optimizer="adam", learning_rate=0.002, checkpoint_seconds=0)
EAGER = ArchitectureConfig(learning_rate=0.3, batch_size=16)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return build("pair_pool_cnn", 10, SHAPE).eval()


@pytest.fixture
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(96, *SHAPE, generator=generator), torch.arange(96) % 10)


def bounds(search: LatencySearch) -> tuple[float, float]:
    floor, full = (
        search.hard_latency(Architecture.uniform(search.network, *kinds)).seconds
        for kinds in (("poly", "average"), ("relu", "max"))
    )
    return floor, full


def random_alphas(search: LatencySearch, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in gates(search.network).values():
            gate.alpha.copy_(torch.randn(gate.alpha.shape, generator=generator))


# --- budgets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "groups", "identity", "pairs"),
    [
        (FPGALatency(base_latency=1e-4), 1, False, 60),
        (FPGALatency(base_latency=1e-4), 3, True, 8),
        (FPGALatency(), 2, False, 12),
        (ReLUCount(), 1, False, 116),
        (EngineLatency(RATES, "wan", 4), 1, False, 4),
    ],
    ids=["boards", "boards-3-groups", "boards-2-groups", "count", "engine"],
)
def test_repair_meets_the_budget_and_nothing_more_fits(
    network: nn.Module, model: LatencyModel, groups: int, identity: bool, pairs: int
) -> None:
    """Random choices and budgets: 200 pairs over five models."""
    search = LatencySearch(network, model, SHAPE, 0.0, GateConfig(groups=groups, identity=identity))
    floor, full = bounds(search)
    generator = np.random.default_rng(0)
    for seed in range(pairs):
        random_alphas(search, seed)
        budget = floor + float(generator.uniform(0, 1)) * (full - floor)
        chosen = repair(search, budget)
        assert search.hard_latency(chosen).seconds <= budget
        for site, choice in chosen.choices.items():
            for group, kind in enumerate(choice):
                if kind in ("relu", "max"):
                    continue
                back = list(choice)
                back[group] = gates(search.network)[site].choices[0]
                tried = chosen.with_choice(site, *back)
                assert search.hard_latency(tried).seconds > budget, f"{site} still fits"


def test_repair_drops_the_smallest_margin_for_the_second_saved(network: nn.Module) -> None:
    search = LatencySearch(network, FPGALatency(base_latency=1e-3), SHAPE, 0.0)
    margins = {"relu1": 3.0, "relu2": 0.1, "relu5": 2.0, "pool1": 5.0}
    with torch.no_grad():
        for name, gate in gates(search.network).items():
            gate.alpha[0, 1 if name not in margins else 0] = margins.get(name, 1.0)
    before = search.hard_latency().seconds
    chosen = repair(search, before * 0.999)
    assert chosen.choices["relu2"] == ("poly",)
    assert all(chosen.choices[name][0] in ("relu", "max") for name in ("relu1", "relu5", "pool1"))


def test_infeasible_and_needless_budgets(network: nn.Module, data: TensorDataset) -> None:
    method = ReLUReduction(network, fpga_latency(), SHAPE, architecture=EAGER)
    search = LatencySearch(network, fpga_latency(), SHAPE, 0.0)
    floor, full = bounds(search)
    with pytest.raises(InfeasibleBudget) as refused:
        method.to_budget(data, data, STEPS, STEPS, seconds=floor / 2)
    assert refused.value.floor_ms == pytest.approx(1e3 * floor)
    assert refused.value.requested_ms == pytest.approx(500 * floor)
    with pytest.raises(InfeasibleBudget):
        repair(search, floor / 2)
    with pytest.warns(UserWarning, match="nothing will be replaced"):
        point = method.to_budget(data, data, STEPS, STEPS, seconds=2 * full)
    assert point.relus == 3328
    assert point.network is not None
    x = torch.randn(2, *SHAPE)
    assert torch.equal(point.network(x), network(x))
    for bad in (
        {},
        {"seconds": 1.0, "relus": 3},
        {"seconds": -1.0},
        {"relus": -1},
        {"seconds": float("nan")},
    ):
        with pytest.raises(ValueError, match="budget"):
            method.to_budget(data, data, STEPS, STEPS, **bad)


@pytest.mark.parametrize("groups", [1, 2])
def test_trained_budgets_are_met(network: nn.Module, data: TensorDataset, groups: int) -> None:
    method = ReLUReduction(network, fpga_latency(), SHAPE, GateConfig(groups=groups), EAGER)
    search = LatencySearch(network, fpga_latency(), SHAPE, 0.0)
    floor, full = bounds(search)
    budget = BudgetConfig(interval=1)
    point = method.to_budget(data, data, STEPS, STEPS, seconds=floor + 0.4 * (full - floor), budget=budget)
    assert floor < point.seconds <= floor + 0.4 * (full - floor)
    point = method.to_budget(data, data, STEPS, STEPS, relus=1000, budget=budget)
    assert 500 < point.relus <= 1000


def test_penalty_follows_the_budget_and_never_leaps(network: nn.Module) -> None:
    search = LatencySearch(network, fpga_latency(), SHAPE, 2.0)
    controller = BudgetController(search, 1.0, BudgetConfig(rate=0.1))
    controller.update(2.0)
    assert search.penalty == pytest.approx(2.2)
    controller.update(0.99)
    assert search.penalty == pytest.approx(2.2), "within 2 % below the budget it rests"
    controller.update(0.5)
    assert search.penalty == pytest.approx(2.1)
    controller.update(1e6)
    assert search.penalty == pytest.approx(4.2), "at most twice as much at once"
    search.penalty = 0.01
    controller.update(0.1)
    assert search.penalty == pytest.approx(0.005)
    saved = json.loads(json.dumps(controller.state_dict()))
    other = BudgetController(LatencySearch(network, fpga_latency(), SHAPE, 7.0), 1.0)
    other.load_state_dict(saved)
    assert (other.search.penalty, other.initial) == (pytest.approx(0.005), 2.0)


def test_a_far_link_keeps_fewer_sites_than_a_count_at_the_same_relus(network: nn.Module) -> None:
    """Without training: every ReLU is as useful as any other, so that cost alone decides."""
    by_latency = LatencySearch(network, EngineLatency(RATES, "wan", 8), SHAPE, 0.0)
    by_count = LatencySearch(network, ReLUCount(), SHAPE, 0.0)
    for search in (by_latency, by_count):
        for site, gate in gates(search.network).items():
            useful = search.plan.operator(site).shape if gate.choices[0] == "relu" else (0,)
            with torch.no_grad():
                gate.alpha[0, 0] = float(np.prod(useful)) / 1000
    floor, full = bounds(by_latency)
    fewer = 0
    for part in (0.15, 0.3, 0.45):
        ours = without_max(repair(by_latency, floor + part * (full - floor)))
        relus = by_latency.hard_plan(ours).relu_count
        theirs = without_max(repair(by_count, ReLUCount().seconds(relus)))
        assert by_count.hard_plan(theirs).relu_count <= relus
        programs = [
            two_party.compile(finalize(by_latency.discretize(each), SHAPE), SHAPE) for each in (ours, theirs)
        ]
        totals = [two_party.cost(program, 8).total for program in programs]
        seconds = [PROFILES["wan"].seconds(t.rounds, max(t.sent, t.received)) for t in totals]
        assert ours.relu_sites <= theirs.relu_sites
        if ours.relu_sites < theirs.relu_sites:
            fewer += 1
            assert seconds[0] < seconds[1]
    assert fewer >= 2


def without_max(architecture: Architecture) -> Architecture:
    """The same with average poolings."""
    return Architecture(
        {
            site: ("average",) if choice == ("max",) else choice
            for site, choice in architecture.choices.items()
        }
    )


def test_a_count_that_spreads_over_sites_is_slower_over_a_far_link(network: nn.Module) -> None:
    """One site of 512 ReLUs against six smaller ones with fewer: the model and the engine's rounds tell."""
    search = LatencySearch(network, EngineLatency(RATES, "wan", 8), SHAPE, 0.0)
    poly = Architecture.uniform(search.network, "poly", "average")
    one = poly.with_choice("relu3", "relu")
    four = poly
    for site in ("relu5", "relu6", "relu7", "relu8"):
        four = four.with_choice(site, "relu")
    assert search.hard_plan(four).relu_count < search.hard_plan(one).relu_count
    costs = []
    for chosen in (one, four):
        program = two_party.compile(finalize(search.discretize(chosen), SHAPE), SHAPE)
        with two_party.Session.simulated() as session:
            session.infer(program, np.zeros((8, *SHAPE)))
            total = session.report().total
        costs.append((search.hard_latency(chosen).seconds, total.rounds))
        assert search.hard_latency(chosen).rounds == total.rounds
    assert costs[0][0] < costs[1][0]
    assert costs[0][1] + 9 == costs[1][1]
    narrow = LatencySearch(network, EngineLatency(RATES, "narrow", 8), SHAPE, 0.0)
    assert narrow.hard_latency(one).seconds > narrow.hard_latency(four).seconds, "bytes decide there"


def test_orders_meet_the_latency(network: nn.Module) -> None:
    search = LatencySearch(network, FPGALatency(base_latency=1e-4), SHAPE, 0.0)
    floor, full = bounds(search)
    orders = {
        "random": random_order(search, 3),
        "costliest": costliest_first(search),
        "largest": largest_first(search),
        "latest": latest_first(search),
        "uniform": every_second(search),
    }
    for name, order in orders.items():
        assert sorted(order) == sorted(gates(search.network)), name
        for part in (0.0, 0.3, 0.7, 1.0):
            limit = floor + part * (full - floor)
            chosen = reduced(search, limit, order)
            assert search.hard_latency(chosen).seconds <= limit * (1 + 1e-12)
    assert orders["largest"][:2] == ["relu1", "relu2"]
    assert orders["latest"][:2] == ["relu8", "relu7"]
    assert orders["uniform"][:2] == ["relu2", "relu3"]


# --- fronts ----------------------------------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    pass


class StopAfter(Callback):
    """Breaks off after so many steps of all trainings together."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step_end(self, state: FitState) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


def same(first: Front, second: Front) -> bool:
    return all(
        a.to_json() == b.to_json()
        and all(
            torch.equal(x, y)
            for x, y in zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)
        )
        for a, b in zip(first.points, second.points, strict=True)
        if a.network is not None and b.network is not None
    )


@pytest.mark.parametrize("steps", [2, 5, 8, 11])
def test_broken_off_sweep_ends_as_an_unbroken_one(
    network: nn.Module, data: TensorDataset, tmp_path: Path, steps: int
) -> None:
    def sweep(folder: Path | None, *callbacks: Callback) -> Front:
        method = ReLUReduction(network, fpga_latency(), SHAPE, architecture=EAGER)
        return method.sweep(data, data, [0.0, 100.0], STEPS, STEPS, checkpoint=folder, callbacks=callbacks)

    whole = sweep(None, StopAfter(-1))
    with pytest.raises(Stop):
        sweep(tmp_path, StopAfter(steps))
    assert same(sweep(tmp_path, StopAfter(-1)), whole)
    assert same(sweep(tmp_path, StopAfter(-1)), whole)


def test_a_point_that_diverges_is_recorded_and_the_sweep_goes_on(
    network: nn.Module, data: TensorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = ReLUReduction(network, fpga_latency(), SHAPE, architecture=EAGER)
    correct = LatencySearch.training_objective

    def breaking(self: LatencySearch, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.penalty == 1.0:
            raise reduction.PolynomialDivergence("relu2", 0, 1.0, 2.0)
        return correct(self, model, inputs, targets)

    monkeypatch.setattr(LatencySearch, "training_objective", breaking)
    front = method.sweep(data, data, [0.0, 1.0, 2.0], STEPS, STEPS)
    assert [point.error is None for point in front.points] == [True, False, True]
    assert "relu2" in str(front.points[1].error)
    assert front.points[1] not in front.best


def test_sensitivity_needs_no_training(network: nn.Module, data: TensorDataset, tmp_path: Path) -> None:
    method = ReLUReduction(network, fpga_latency(), SHAPE, architecture=EAGER)
    front = method.sweep(data, data, [0.0, 100.0], STEPS, STEPS)
    models = {f"{delay}": fpga_latency(base_latency=delay) for delay in (0.0, 0.02)}
    found = sensitivity(front, models)
    front.save(tmp_path / "front.json")
    loaded = Front.load(tmp_path / "front.json", method.plan)
    assert sensitivity(loaded, models) == found
    for name, model in models.items():
        for point, seconds in zip(front.points, found[name], strict=True):
            assert point.network is not None
            search = LatencySearch(network, model, SHAPE, 0.0)
            assert point.architecture is not None
            assert seconds == search.hard_latency(point.architecture).seconds
    assert front.table().count("\n") == len(front.best)
    good = json.loads((tmp_path / "front.json").read_text())
    good[0]["architecture"]["relu9"] = ["relu"]
    for bad in ("{", json.dumps([1]), json.dumps(good)):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(ArchMismatch):
            Front.load(tmp_path / "bad.json", method.plan)


def test_bad_penalties(network: nn.Module, data: TensorDataset) -> None:
    method = ReLUReduction(network, fpga_latency(), SHAPE)
    for penalties, message in (
        ([], "at least one"),
        ([-1.0], "negative"),
        ([1.0, 0.5], "rise"),
        ([1.0, 1.0], "rise"),
    ):
        with pytest.raises(ValueError, match=message):
            method.sweep(data, data, penalties, STEPS, STEPS)


# --- claims, recipes, verbs ------------------------------------------------------------------------------


def outcomes(table: dict[tuple[str, str, float], dict[str, list[float]]]) -> Outcomes:
    made = []
    for (variant, key, value), columns in table.items():
        for seed in range(3):
            metrics = {name: measured(column[seed]) for name, column in columns.items()}
            made.append(
                Outcome(trial=Trial(variant=variant, setting={key: value}, seed=seed), metrics=metrics)
            )
    return Outcomes(made)


def test_claims_against_the_count() -> None:
    def made(sites: list[float], relus: float) -> Outcomes:
        return outcomes(
            {
                ("budget", "budget", 0.2): {
                    "relu_sites": sites,
                    "relu_count": [600.0] * 3,
                    "latency_wan": sites,
                },
                ("count", "budget", 0.2): {
                    "relu_sites": [4.0, 5.0, 4.0],
                    "relu_count": [relus] * 3,
                    "latency_wan": [4.0, 5.0, 4.0],
                },
            }
        )

    assert claims.fewer_sites_than_by_count(made([1, 2, 1], 590)).verdict is Verdict.HOLDS
    assert claims.faster_than_by_count(made([1, 2, 1], 590)).verdict is Verdict.HOLDS
    assert claims.fewer_sites_than_by_count(made([6, 7, 6], 590)).verdict is Verdict.FAILS
    assert claims.fewer_sites_than_by_count(made([1, 2, 1], 700)).verdict is Verdict.FAILS


def test_claims_about_accuracy() -> None:
    def made(budget: list[float], others: float) -> Outcomes:
        table: dict[Any, Any] = {("budget", "budget", 0.2): {"accuracy": budget}}
        for variant in claims.ORDERS:
            table[variant, "budget", 0.2] = {"accuracy": [others, others + 0.01, others + 0.02]}
        return outcomes(table)

    better, equal = made([0.90, 0.91, 0.92], 0.80), made([0.80, 0.81, 0.82], 0.80)
    for check in (claims.not_worse_than_orders, claims.better_than_random, claims.far_more_reduction):
        assert check(better).verdict is Verdict.HOLDS
    assert claims.not_worse_than_orders(equal).verdict is Verdict.HOLDS
    assert claims.better_than_random(equal).verdict is Verdict.FAILS
    front = outcomes(
        {
            ("rrnet", "penalty", 0.0): {"accuracy": [0.9, 0.91, 0.9], "relu_count": [900.0] * 3},
            ("rrnet", "penalty", 1.0): {"accuracy": [0.8, 0.81, 0.8], "relu_count": [100.0] * 3},
        }
    )
    assert claims.front_is_monotone(front).verdict is Verdict.HOLDS
    turned = outcomes(
        {
            ("rrnet", "penalty", 0.0): {"accuracy": [0.8, 0.81, 0.8], "relu_count": [900.0] * 3},
            ("rrnet", "penalty", 1.0): {"accuracy": [0.9, 0.91, 0.9], "relu_count": [100.0] * 3},
        }
    )
    assert claims.front_is_monotone(turned).verdict is Verdict.FAILS


def test_recipes() -> None:
    method = RRNet()
    recipe = method.load_recipe("default")
    cells = {(t.variant, *t.setting.values()) for t in method.trials(recipe)}
    assert len(method.trials(recipe)) == 3 * len(cells)
    assert {("relu",), ("rrnet", 0.0), ("budget", 0.15), ("count", 0.15), ("random", 0.15)} <= cells
    for change, message in (
        ("penalties=[]", "at least one"),
        ("penalties=[1, 0]", "rise"),
        ("budgets.budget=[0.5, 0.5]", "twice"),
        ("budgets.budget=[2]", "less than or equal to 1"),
        ("data=digit-pair", "did you mean 'digit-pairs'"),
        ("search={epochs: 3}", "both have steps, or both epochs"),
    ):
        with pytest.raises(RecipeError, match=message):
            method.load_recipe("default", [change])


def run(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rrnet", *words])
    assert ended.value.code == code


def test_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_weights(build("small_cnn", 10, (1, 8, 8)), tmp_path / "m.safetensors")
    RATES.save(tmp_path / "host.json")
    words = [
        "--model",
        str(tmp_path / "m.safetensors"),
        "--arch",
        "small_cnn",
        "--data",
        "digits",
        "--no-run",
    ]
    words += ["--epochs", "1", "--finetuning", "1", "--alpha-rate", "0.3", "--latency", "wan"]
    words += ["--calibration", str(tmp_path / "host.json")]
    run("sweep", *words, "--penalty", "0", "--penalty", "100", "--out", str(tmp_path / "front"))
    assert "points on the front" in capsys.readouterr().out
    assert load_compressed(tmp_path / "front" / "point-1")
    run("sensitivity", "--arch", "small_cnn", "--front", str(tmp_path / "front" / "front.json"),
        "--input-shape", "1,8,8", "--base-latency", "0", "--base-latency", "20")  # fmt: skip
    assert "8 Gbit/s, 20 ms" in capsys.readouterr().out
    run("budget", *words, "--relus", "600", "--out", str(tmp_path / "small"))
    assert " ReLUs" in capsys.readouterr().out
    program = two_party.Program.load(tmp_path / "small" / "program")
    assert program.plan.relu_count <= 600
    run("budget", *words, "--milliseconds", "1", "--out", str(tmp_path / "none"), code=2)
    assert "InfeasibleBudget" in capsys.readouterr().err
    run("budget", *words, "--out", str(tmp_path / "none"), code=2)
    assert "either --milliseconds or --relus" in capsys.readouterr().err
    run("sweep", *words, "--penalty", "1", "--penalty", "0", "--out", str(tmp_path / "x"), code=2)
