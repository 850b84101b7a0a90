"""The engine as a latency model: exact rounds and bytes, fitted computing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.core.errors import DataError
from tradeoff.engines import two_party
from tradeoff.engines.transport import PROFILES, LinkShaper
from tradeoff.engines.two_party.latency import (
    PROBE_SHAPE,
    Calibration,
    EngineLatency,
    _probe,
    counts,
    fit_calibration,
)
from tradeoff.nn.models import build
from tradeoff.nn.plan import trace
from tradeoff.nn.search import Architecture, LatencySearch, finalize, gates

SHAPE = (1, 8, 16)
RATES = Calibration(
    exchange=3e-4, linear=7e-10, comparison=2.4e-7, polynomial=2.8e-7, truncation=7e-8, local=4e-9
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("pair_pool_cnn", 10, SHAPE).eval()


@pytest.mark.parametrize("link", ["wan", "narrow", LinkShaper(latency_ms=3, mbit=50)])
def test_prediction_of_a_plan_is_that_of_the_compiled_network_and_of_the_meter(
    link: str | LinkShaper,
) -> None:
    """Rounds and bytes of architectures, from a plan with stand-ins, against a real run of the network."""
    model = network()
    search = LatencySearch(model, EngineLatency(RATES, link, 3), SHAPE, 1e-3)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3, *SHAPE))
    for _ in range(3):
        chosen = Architecture.uniform(search.network, "poly", "average")
        for name, gate in gates(search.network).items():
            chosen = chosen.with_choice(name, str(generator.choice(gate.choices)))
        predicted = search.hard_latency(chosen)
        program = two_party.compile(finalize(search.discretize(chosen), SHAPE), SHAPE)
        compiled = EngineLatency(RATES, link, 3).program(program)
        assert compiled == predicted
        with two_party.Session.simulated() as session:
            session.infer(program, x)
            metered = session.report()
        assert predicted.rounds == metered.total.rounds
        for row in predicted.rows:
            met = metered.row(row.operator)
            assert (row.rounds, row.bytes) == (met.rounds, max(met.sent, met.received))
            shaper = PROFILES[link] if isinstance(link, str) else link
            assert row.waiting + row.transfer == pytest.approx(shaper.seconds(met.rounds, int(row.bytes)))


def test_all_quadratics_run_without_a_comparison() -> None:
    search = LatencySearch(network(), EngineLatency(RATES, "wan"), SHAPE, 0.0)
    chosen = Architecture.uniform(search.network, "poly", "average")
    program = two_party.compile(finalize(search.discretize(chosen), SHAPE), SHAPE)
    kinds = {
        type(part).__name__
        for step in program.steps
        for group in step.groups(1)
        for lane in group
        for part in lane
    }
    assert "Comparison" not in kinds
    full = two_party.compile(network(), SHAPE)
    assert "Comparison" in {
        type(part).__name__
        for step in full.steps
        for group in step.groups(1)
        for lane in group
        for part in lane
    }


def test_sum_over_sites_is_exact_but_for_a_relu_before_a_max_pooling() -> None:
    search = LatencySearch(network(), EngineLatency(RATES, "wan", 4), SHAPE, 0.0)
    poly = Architecture.uniform(search.network, "poly", "average")
    for changes in (("relu1", "relu3", "relu8"), ("pool1", "relu1"), ()):
        chosen = poly
        for site in changes:
            chosen = chosen.with_choice(site, "max" if site.startswith("pool") else "relu")
        assert search.costs.of(chosen) == pytest.approx(search.hard_latency(chosen).seconds, rel=1e-9)
    both = poly.with_choice("relu2", "relu").with_choice("pool1", "max")
    assert search.costs.of(both) > search.hard_latency(both).seconds


def test_fit_finds_the_factors_that_made_the_times() -> None:
    program = two_party.compile(_probe(), PROBE_SHAPE)
    seconds = {}
    for batch in (1, 4, 16):
        rounds = {row.operator: row.rounds for row in two_party.cost(program, batch).rows}
        for step in program.steps:
            rates = RATES.model_dump()
            sized = sum(rates[name] * n for name, n in counts(step, batch).items())
            seconds[batch, step.name] = RATES.exchange * rounds[step.name] + sized
    found = fit_calibration(program, seconds)
    for name, value in RATES.model_dump(exclude={"format"}).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-3), name
    with pytest.raises(ValueError, match="at least one"):
        fit_calibration(program, {})


def test_calibration_files(tmp_path: Path) -> None:
    RATES.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == RATES
    good = json.loads((tmp_path / "c.json").read_text())
    for bad in ("{", json.dumps(good | {"linear": -1.0}), json.dumps(good | {"format": "x"}), "[]"):
        (tmp_path / "d.json").write_text(bad)
        with pytest.raises(DataError):
            Calibration.load(tmp_path / "d.json")
    with pytest.raises(DataError, match="calibrate"):
        Calibration.load(tmp_path / "absent.json")


def test_every_kind_of_step_is_counted() -> None:
    plan = trace(_probe(), PROBE_SHAPE)
    rows = EngineLatency(RATES, "lan", 2).network(plan).rows
    by_kind = {row.kind for row in rows if row.compute > 0}
    assert {"linear", "relu", "activation", "max_pool", "sum_pool", "add", "truncation", "reveal"} <= by_kind
    with pytest.raises(ValueError, match="at least one image"):
        EngineLatency(RATES, "lan", 0)
