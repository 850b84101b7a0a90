"""Reports of what each operator cost, among any number of parties."""

from __future__ import annotations

import numpy as np
import pytest

from tradeoff.engines.transport import Clock, Report, Row, SimNet, measured_row

DEALER = 3
X = np.zeros(100, np.uint64)


def three_parties_and_a_dealer(net):
    """Two operators: one opens to everybody in a round, the other also takes offline material."""
    clock = Clock()
    if net.me == DEALER:
        for peer in net.peers:
            net.send(peer, X, tag=9, offline=True)
        return None
    peers = [peer for peer in net.peers if peer != DEALER]
    for name in ("linear", "relu"):
        with net.scope(name), clock.measure(name):
            if name == "relu":
                net.recv(DEALER, tag=9, offline=True)
            for peer in peers:
                net.send(peer, X)
            for peer in peers:
                net.recv(peer)
            net.round()
    stats, names = net.stats(), ("linear", "relu")
    rows = tuple(measured_row(stats, clock.seconds, name, name, peers=peers, dealer=DEALER) for name in names)
    return Report(rows, Row("setup", "setup"), net.me)


def test_rows_add_up_over_all_peers():
    *reports, dealer = SimNet(4).run(three_parties_and_a_dealer)
    assert dealer is None
    for me, report in enumerate(reports):
        linear, relu = report.row("linear"), report.row("relu")
        assert (linear.rounds, linear.sent, linear.received, linear.offline) == (1, 1600, 1600, 0)
        assert (relu.rounds, relu.sent, relu.received, relu.offline) == (1, 1600, 1600, 800)
        assert report.total.sent == 3200
        assert report.total.total == pytest.approx(report.total.compute + report.total.wait)
        assert report.party == me
        assert Report.from_json(report.to_json()) == report
        assert (report + report).total.received == 6400


def test_absent_operators_are_an_error():
    with pytest.raises(KeyError):
        Report((), Row("setup", "setup")).row("relu")
