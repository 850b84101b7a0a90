"""Servers, dealer and data owner as processes of this host: labels of a real network, kills, identity."""

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.engines import shamir
from tradeoff.engines.transport import LocalCluster, PeerLost, RemoteFailure
from tradeoff.engines.transport.errors import PeerError
from tradeoff.nn import plan as op


def deep_program(layers: int, count: int, **options: Any) -> shamir.Program:
    """Many rounds in a row."""
    operators: list[op.Operator] = [op.Input("input", (), (count,))]
    for i in range(layers):
        operators.append(op.ReLU(f"relu{i}", (operators[-1].name,), (count,)))
    return shamir.compile(op.Plan(tuple(operators), (count,), operators[-1].name), **options)


def digits() -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = (data.images[:, None] / 8.0 - 1.0).astype(np.float32)
    return x[:1297], data.target[:1297], x[1297:], data.target[1297:]


@pytest.fixture(scope="module")
def digits_network() -> nn.Module:
    """The convolutional network of the specification's study, trained for a few seconds."""
    x, y, _, _ = digits()
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        chosen = torch.randint(0, len(x), (64,)).numpy()
        loss = nn.functional.cross_entropy(
            network(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("nonlinear", "images"), [("masked", 500), ("strict", 60)])
def test_digits_have_the_labels_of_fixed_point_plaintext(
    digits_network: nn.Module, nonlinear: Any, images: int
) -> None:
    """Accuracy and cost are those of the plaintext and of the prediction."""
    _, _, x, y = digits()
    x, y = x[:images], y[:images]
    program = shamir.compile(digits_network, (1, 8, 8), calibration=x[:64], nonlinear=nonlinear)
    with shamir.Session.local() as session:
        logits = session.infer(program, x)
        report = session.report()
    fixed = shamir.evaluate(program, x[:60])
    top = np.sort(fixed, axis=1)
    decided = top[:, -1] - top[:, -2] > 2.0**-6
    assert (~decided).mean() < 0.05
    assert (logits[:60].argmax(axis=1) == fixed.argmax(axis=1))[decided].all()
    agreement = shamir.agreement(program, x, logits, gap=2.0**-6)
    assert agreement.decided == 1.0
    assert agreement.labels >= 0.995
    assert agreement.largest < 0.05
    plain = program.plan.evaluate(x).argmax(axis=1)
    assert (plain == y).mean() > 0.85
    assert abs((logits.argmax(axis=1) == y).mean() - (plain == y).mean()) <= 0.004
    predicted = shamir.cost(program, images)
    for row, expected in zip(report.rows, predicted.rows, strict=True):
        assert (row.rounds, row.sent, row.received) == (expected.rounds, expected.sent, expected.received)
        assert row.offline == expected.offline


def test_processes_of_their_own_with_tls() -> None:
    program = deep_program(1, 8, nonlinear="masked", security="abort")
    with shamir.Session.local(tls=True) as session:
        x = np.arange(-4.0, 4.0)[None]
        assert session.infer(program, x)[0].tolist() == np.maximum(x[0], 0).tolist()
        pids = session.pids
        assert len({*pids, os.getpid()}) == 6
        assert session.report().verified
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_killed_server_is_named_by_the_survivors() -> None:
    """At once, long before a receive would time out, and no process is left."""
    program = deep_program(300, 8, nonlinear="masked")
    session = shamir.Session.local(net="lan", recv_timeout=120.0)
    session.infer(program, np.zeros((1, 8)))
    cluster = session._running.crew.parties
    assert isinstance(cluster, LocalCluster)
    threading.Timer(0.1, os.kill, (cluster.pids[1], signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(RemoteFailure, match="party 1 was killed by SIGKILL"):
        session.infer(program, np.zeros((1, 8)))
    session.close()
    assert time.monotonic() - began < 60
    survivors = [cluster.outcomes[server] for server in (0, 2)]
    assert all(isinstance(outcome, PeerError) for outcome in survivors)
    assert any(isinstance(outcome, PeerLost) and outcome.peer == 1 for outcome in survivors)
    assert cluster.pids == []


@pytest.mark.slow
def test_robust_sessions_complete_without_killed_servers() -> None:
    """One killed in the middle: the same result, verified; two: the same result, not verified any more."""
    program = deep_program(100, 8, nonlinear="masked", servers=5, security="robust")
    x = np.arange(-4.0, 4.0)[None]
    with shamir.Session.local(net="lan") as session:
        assert session.infer(program, x)[0].tolist() == np.maximum(x[0], 0).tolist()
        for victim, verified in ((1, True), (3, False)):
            threading.Timer(0.1, os.kill, (session.pids[victim], signal.SIGKILL)).start()
            assert session.infer(program, x)[0].tolist() == np.maximum(x[0], 0).tolist()
            session.infer(program, x)
            assert victim in session.report().lost
            assert session.report().verified is verified
