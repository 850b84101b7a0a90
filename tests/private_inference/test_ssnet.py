"""The library half, the peer's files, the claims' checks and the verb of SSNet."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tradeoff.core import Outcome, Outcomes, Trial, Verdict, measured
from tradeoff.core.errors import EngineError, MissingExtra, RecipeError
from tradeoff.engines import shamir
from tradeoff.methods.private_inference.ssnet import Setting, compare_settings, peers, run_mpyc
from tradeoff.methods.private_inference.ssnet.claims import CLAIMS
from tradeoff.methods.private_inference.ssnet.commands import app
from tradeoff.methods.private_inference.ssnet.study import SSNet
from tradeoff.nn import plan as op
from tradeoff.nn.models import build

FASTER, SCALES, VERIFIED, MASKED = CLAIMS


def plan() -> op.Plan:
    torch.manual_seed(0)
    return op.swap_relu_maxpool(op.trace(build("pooled_cnn", 10, (1, 8, 8)).eval(), (1, 8, 8)))


def test_compared_costs_are_those_of_real_runs() -> None:
    """Bytes of all parties and rounds, against what a session counts."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    setting = Setting(3, 1, "abort", "masked")
    (cost,) = compare_settings(op.trace(network, (4,)), [setting], batch=2)
    program = setting.options(shamir.compile(network, (4,)))
    with shamir.Session.simulated() as session:
        session.infer(program, np.zeros((2, 4)))
        totals = [session.report(party).total for party in (0, 1, 2, 4)]
    assert cost.online == sum(total.sent for total in totals)
    assert cost.offline == sum(total.offline for total in totals)
    assert cost.rounds == totals[0].rounds
    assert cost.link_seconds > 0.02 * cost.rounds


def test_settings_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="2 servers"):
        compare_settings(plan(), [Setting(2, 1)])


def outcome(variant: str, seed: int, setting: dict[str, Any], **metrics: float) -> Outcome:
    return Outcome(
        trial=Trial(variant=variant, setting=setting, seed=seed),
        metrics={name: measured(value) for name, value in metrics.items()},
    )


def cell(servers: int, threshold: int, security: str = "semi-honest", images: int = 64) -> dict[str, Any]:
    return {"servers": servers, "threshold": threshold, "security": security, "images": images}


def outcomes(peer_seconds: float, verified: float, strict: float, agreement: float = 1.0) -> Outcomes:
    found = []
    for seed in range(3):
        noise = 1 + seed / 100
        for servers, threshold in ((3, 1), (5, 2)):
            for security, size in (("semi-honest", 1.0), ("abort", verified)):
                found.append(
                    outcome(
                        "ssnet",
                        seed,
                        cell(servers, threshold, security),
                        online_bytes=1e6 * size * servers,
                        latency=noise,
                        label_agreement=agreement,
                    )
                )
            for variant, seconds in (("strict", 1.0), ("mpyc", peer_seconds)):
                one = cell(servers, threshold, images=1)
                found.append(outcome(variant, seed, one, online_bytes=1e6, latency=seconds * noise))
        strict_bytes = 3e6 * strict * noise
        found.append(outcome("strict", seed, cell(3, 1), online_bytes=strict_bytes, latency=1.0))
    return Outcomes(found)


@pytest.mark.parametrize(
    ("claim", "holding", "failing"),
    [
        (FASTER, {}, {"peer_seconds": 2.0}),
        (SCALES, {}, {"agreement": 0.98}),
        (VERIFIED, {}, {"verified": 2.8}),
        (MASKED, {}, {"strict": 4.0}),
    ],
)
def test_claims_hold_and_fail(claim: Any, holding: Any, failing: Any) -> None:
    base = {"peer_seconds": 10.0, "verified": 2.3, "strict": 12.0}
    assert claim.evaluate(outcomes(**{**base, **holding})).verdict is Verdict.HOLDS
    assert claim.evaluate(outcomes(**{**base, **failing})).verdict is Verdict.FAILS
    assert claim.evaluate(Outcomes()).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    "change",
    [
        "cells.mpyc=[{servers: 4, threshold: 1}]",
        "cells.mpyc=[{servers: 3, threshold: 1, security: abort}]",
        "cells.ssnet=[{servers: 3, threshold: 2}]",
        "cells.ssnet=[{servers: 3, threshold: 1}, {servers: 3, threshold: 1}]",
        "arch=resnet999",
        "links=[moon]",
    ],
)
def test_recipes_that_cannot_be_run(change: str) -> None:
    with pytest.raises(RecipeError):
        SSNet().load_recipe("smoke", [change])


def test_the_verb_prints_every_setting() -> None:
    result = CliRunner().invoke(app, ["compare", "--arch", "small_cnn", "--input-shape", "1,8,8"])
    assert result.exit_code == 0, result.output
    assert result.output.count("masked") >= 7
    assert result.output.count("abort") >= 6
    for arguments in (["compare"], ["compare", "--arch", "small_cnn", "--input-shape", "x"]):
        assert CliRunner().invoke(app, arguments).exit_code != 0


def test_network_for_mpyc(tmp_path: Path) -> None:
    peers.write_network(tmp_path / "network.npz", plan(), np.zeros((1, 1, 8, 8)), 13)
    with np.load(tmp_path / "network.npz") as arrays:
        layers = json.loads(str(arrays["layers"]))
        assert [layer["kind"] for layer in layers] == [
            *("Convolution", "MaxPool", "ReLU", "Convolution", "MaxPool", "ReLU", "Flatten", "Linear")
        ]
        assert arrays["0.weight"].shape == (16, 9)
        assert arrays["7.bias"].shape == (10, 1)
    average = op.trace(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), (1, 4, 4))
    with pytest.raises(op.UnsupportedLayer, match="MPyC"):
        peers.write_network(tmp_path / "other.npz", average, np.zeros((1, 1, 4, 4)), 13)


def test_an_absent_peer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(peers.VARIABLE, raising=False)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"mpyc is not installed; .*tradeoff\[peers\]"):
        run_mpyc(plan(), np.zeros((1, 1, 8, 8)), 3, tmp_path)
    monkeypatch.setenv(peers.VARIABLE, "/bin/false")
    with pytest.raises(EngineError, match="MPyC ended with status 1"):
        run_mpyc(plan(), np.zeros((1, 1, 8, 8)), 3, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    peers.VARIABLE not in os.environ, reason=f"no MPyC: {peers.VARIABLE} names no interpreter"
)
def test_mpyc_computes_the_same_network(tmp_path: Path) -> None:
    """So that its row stands for the same work."""
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8))
    run = run_mpyc(plan(), x, 3, tmp_path)
    assert np.abs(run.logits - plan().evaluate(x)).max() < 0.02
    assert run.sent > 1e6
    assert run.seconds > 0
