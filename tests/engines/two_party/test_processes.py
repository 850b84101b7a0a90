"""Parties as processes of this host: identity, faults, timing under an emulated link, traffic on the wire."""

import os
import signal
import socket
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from tradeoff.engines import two_party
from tradeoff.engines.transport import (
    Config,
    LocalCluster,
    Party,
    PeerError,
    PeerLost,
    PeerTimeout,
    RemoteFailure,
)
from tradeoff.engines.two_party.party import Evaluator
from tradeoff.engines.two_party.pool import open_pool, write_pool
from tradeoff.engines.two_party.session import Metered
from tradeoff.nn import plan as op


def relu_program(count: int) -> two_party.Program:
    operators = (op.Input("input", (), (count,)), op.ReLU("relu", ("input",), (count,)))
    return two_party.compile(op.Plan(operators, (count,), "relu"))


def deep_program(layers: int, count: int) -> two_party.Program:
    """Many rounds in a row."""
    operators: list[op.Operator] = [op.Input("input", (), (count,))]
    for i in range(layers):
        operators.append(op.ReLU(f"relu{i}", (operators[-1].name,), (count,)))
    return two_party.compile(op.Plan(tuple(operators), (count,), operators[-1].name))


def digits() -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = (data.images[:, None] / 8.0 - 1.0).astype(np.float32)
    return x[:1400], data.target[:1400], x[1400:], data.target[1400:]


@pytest.fixture(scope="module")
def digits_network() -> nn.Module:
    """The small network of the benchmarks, trained for a few seconds."""
    from tradeoff.nn.models import build

    x, y, _, _ = digits()
    torch.manual_seed(0)
    network = build("small_cnn", 10, (1, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(400):
        chosen = torch.randint(0, len(x), (64,)).numpy()
        loss = nn.functional.cross_entropy(
            network(torch.from_numpy(x[chosen])), torch.from_numpy(y[chosen]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_digits_have_the_labels_of_fixed_point_plaintext(digits_network: nn.Module) -> None:
    """In three processes; accuracy and cost are those of the plaintext and of the prediction."""
    _, _, x, y = digits()
    program = two_party.compile(digits_network, (1, 8, 8), calibration=x[:64])
    with two_party.Session.local() as session:
        logits = session.infer(program, x, batch=133)
        report = session.report()
        labels = session.infer(program, x[:133], batch=133, output="argmax")
    fixed = two_party.evaluate(program, x)
    top = np.sort(fixed, axis=1)
    decided = top[:, -1] - top[:, -2] > 2.0**-8
    assert (~decided).mean() < 0.01
    assert (logits.argmax(axis=1) == fixed.argmax(axis=1))[decided].all()
    assert (labels == fixed[:133].argmax(axis=1))[decided[:133]].all()
    with torch.no_grad():
        plain = digits_network(torch.from_numpy(x)).numpy()
    accuracy, plain_accuracy = ((z.argmax(axis=1) == y).mean() for z in (logits, plain))
    assert plain_accuracy > 0.9
    assert abs(accuracy - plain_accuracy) <= 0.002
    agreement = two_party.agreement(program, x, logits)
    assert agreement.largest < 2e-3
    assert agreement.decided == 1.0
    predicted = two_party.cost(program, 133)
    for row, expected in zip(report.rows, predicted.rows, strict=True):
        assert row.sent == 3 * expected.sent
        assert row.rounds == 3 * expected.rounds
        assert row.offline == 3 * expected.offline


def test_digits_without_a_dealer(digits_network: nn.Module, capsys: Any) -> None:
    """Two processes and no third: the dealer's labels, and the bytes of the arithmetic."""
    _, _, x, _ = digits()
    program, images = two_party.compile(digits_network, (1, 8, 8), calibration=x[:64]), x[:4]
    with two_party.Session.local() as session:
        dealt = session.infer(program, images)
        online = session.report().total
    with two_party.Session.local("ot") as session:
        logits = session.infer(program, images)
        assert len(session.pids) == 2
        reports = [session.report(party) for party in (0, 1)]
    assert (logits.argmax(axis=1) == dealt.argmax(axis=1)).all()
    assert two_party.agreement(program, images, logits).largest < 2e-3
    for party, report in enumerate(reports):
        predicted = two_party.cost(program, 4, party=party, offline="ot")
        for row, expected in zip(
            (report.setup, *report.rows), (predicted.setup, *predicted.rows), strict=True
        ):
            costs = [
                (each.rounds, each.sent, each.offline, each.offline_sent, each.offline_rounds)
                for each in (row, expected)
            ]
            assert costs[0] == costs[1]
    total = reports[1].total
    assert (total.rounds, total.sent) == (online.rounds, online.sent)
    # a transfer for each bit of a weight: f + 4, and two where it holds the divisor of a pooling window
    linear = reports[1].by_kind()["linear"]
    transfers = {4 * 64: 20 * 16 * 25, 4 * 16: 22 * 32 * 16 * 25, 4: 22 * 1280}  # by elements that it meets
    assert linear.offline + linear.offline_sent == sum(n * (16 + 8 * met) for met, n in transfers.items())
    relu = reports[1].by_kind()["relu"]
    assert relu.offline + relu.offline_sent == 4 * 1536 * 4502
    with capsys.disabled():
        print(
            f"\nfour digits: {online.offline:,} bytes from a dealer, {total.offline + total.offline_sent:,} "
            f"between the parties; transfers of weights by elements met: {transfers}"
        )


def test_three_processes_of_their_own() -> None:
    program = relu_program(64)
    with two_party.Session.local() as session:
        session.infer(program, np.zeros((1, 64)))
        pids = session.pids
        assert len({*pids, os.getpid()}) == 4
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("victim", "offline"), [(0, "dealer"), (1, "dealer"), (2, "dealer"), (0, "ot"), (1, "ot")]
)
def test_killed_party(victim: int, offline: Any) -> None:
    """The others end at once with PeerLost, long before a receive would time out."""
    program = deep_program(400 if offline == "dealer" else 20, 64)
    session = two_party.Session.local(offline, "lan", recv_timeout=120.0)
    session.infer(program, np.zeros((1, 64)))
    cluster = session._running.crew.parties
    assert isinstance(cluster, LocalCluster)
    threading.Timer(0.1, os.kill, (cluster.pids[victim], signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(RemoteFailure, match=f"party {victim} was killed by SIGKILL"):
        session.infer(program, np.zeros((1, 64)))
    session.close()
    assert time.monotonic() - began < 60
    survivors = [outcome for party, outcome in enumerate(cluster.outcomes) if party != victim]
    assert all(isinstance(outcome, PeerError) for outcome in survivors)
    assert any(isinstance(outcome, PeerLost) and outcome.peer == victim for outcome in survivors)
    assert cluster.pids == []


def test_stopped_party() -> None:
    """A party that is stopped, not killed, is a timeout."""
    program = deep_program(200, 64)
    session = two_party.Session.local(net="lan", recv_timeout=6.0)
    session.infer(program, np.zeros((1, 64)))
    cluster = session._running.crew.parties
    assert isinstance(cluster, LocalCluster)
    os.kill(cluster.pids[0], signal.SIGSTOP)
    with pytest.raises((PeerTimeout, TimeoutError)):
        session.infer(program, np.zeros((1, 64)))
    session.close()
    assert any(isinstance(outcome, PeerTimeout) for outcome in cluster.outcomes)


def test_a_failed_session_can_be_used_again() -> None:
    program = relu_program(64)
    with two_party.Session.local() as session:
        session.infer(program, np.zeros((1, 64)))
        os.kill(session.pids[1], signal.SIGKILL)
        with pytest.raises(RemoteFailure):
            session.infer(program, np.zeros((1, 64)))
        assert (session.infer(program, -np.ones((1, 64))) == 0).all()


def test_time_under_wan() -> None:
    """k rounds cost k one-way delays plus bytes over bandwidth plus the loopback time."""
    program = deep_program(6, 4096)
    x = np.random.default_rng(0).normal(size=(1, 4096))
    seconds = {}
    for net in ("loopback", "wan"):
        with two_party.Session.local(net=net) as session:
            session.infer(program, x)
            times = []
            for _ in range(7):
                session.prepare(program, 1)
                session.infer(program, x)
                times.append(session.report().total.total)
            seconds[net] = min(times)
    expected = two_party.cost(program, 1, "wan").link_seconds + seconds["loopback"]
    assert two_party.cost(program).total.rounds == 31
    assert seconds["wan"] == pytest.approx(expected, rel=0.15)


def test_relu_time_grows_linearly() -> None:
    """10^6 elements take at most 15 times the time of 10^5 (no quadratic copies).

    Processor time of both parties, so that a busy machine does not matter.
    """
    seconds = {}
    for count in (10**5, 10**6):
        program = relu_program(count)
        x = np.random.default_rng(0).normal(size=(1, count))
        with two_party.Session.local() as session:
            result = session.infer(program, x)
            assert np.abs(result - np.maximum(x, 0)).max() < 2.0**-16
            parties = [psutil.Process(pid) for pid in session.pids[:2]]
            runs = 10**6 // count
            before = [sum(party.cpu_times()[:2]) for party in parties]
            for _ in range(runs):
                session.infer(program, x)
            after = [sum(party.cpu_times()[:2]) for party in parties]
            seconds[count] = (sum(after) - sum(before)) / runs
    assert seconds[10**6] <= 15 * seconds[10**5]


class Proxy:
    """Forwards one TCP connection and counts the bytes of each direction."""

    def __init__(self, target: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.counts = [0, 0]
        self._target = target
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        host, _, port = self._target.rpartition(":")
        while True:
            try:
                server = socket.create_connection((host, int(port)))
                break
            except OSError:
                time.sleep(0.05)
        threading.Thread(target=self._pump, args=(client, server, 0), daemon=True).start()
        self._pump(server, client, 1)

    def _pump(self, source: socket.socket, sink: socket.socket, direction: int) -> None:
        try:
            while data := source.recv(1 << 16):
                self.counts[direction] += len(data)
                sink.sendall(data)
        except OSError:
            pass
        sink.close()


def test_meter_equals_a_counting_proxy(tmp_path: Path) -> None:
    """Payload and headers of the meter are the bytes on the socket."""
    program = deep_program(2, 1000)
    write_pool(tmp_path, program.public(), 1, 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    proxy = Proxy(address)
    seen: dict[int, Any] = {}
    together = threading.Barrier(2)

    def quiet() -> None:
        """Both parties are here and nothing is on its way."""
        together.wait(30)
        time.sleep(0.2)
        together.wait(30)

    def party(me: int) -> None:
        parties = (address, None) if me == 0 else (proxy.address, None)
        config = Config(parties, program=program.digest, insecure=True, ping_interval=600.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = Party(config, me)
        with net:
            evaluator = Evaluator(net, program, 1, open_pool(net, program, 1, tmp_path))
            evaluator.prepare()
            quiet()
            wire, before = net.stats(), sum(proxy.counts)
            quiet()
            _, report = Metered(evaluator).infer(np.ones((1, 1000)) if me else None)
            quiet()
            seen[me] = report, net.stats() - wire, sum(proxy.counts) - before
            quiet()

    threads = [threading.Thread(target=party, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for report, wire, proxied in seen.values():
        metered = report.total.sent + report.total.received + report.header_bytes
        assert metered == sum(wire.wire_sent.values()) + sum(wire.wire_received.values())
        assert metered == proxied
    assert len(seen) == 2
