"""Rounds are the longest chain of send after receive, by a clock that needs no help from the protocol."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_helpers import run_local

from tradeoff.engines.transport import OFFLINE, ONLINE, SimNet
from tradeoff.engines.transport.accounting import Meter

X = np.zeros(3, np.uint64)


def one_exchange(net):
    net.exchange(1 - net.me, X)
    net.round()


def two_messages_in_a_row(net):
    """Both directions, two messages each before anything is read: still one round."""
    for tag in (0, 1):
        net.send(1 - net.me, X, tag=tag)
    for tag in (0, 1):
        net.recv(1 - net.me, tag=tag)
    net.round()


def king_opening(net):
    """Everybody sends to party 0, which answers everybody: two rounds."""
    net.gather(X, root=0)
    net.round()
    net.broadcast(X if net.me == 0 else None, root=0)
    net.round()


def five_exchanges(net):
    for tag in range(5):
        net.allgather(X, tag=tag)
        net.round()


def one_way(net):
    """Party 0 only sends: one round at the receiver."""
    for tag in range(4):
        if net.me == 0:
            net.send(1, X, tag=tag)
        else:
            net.recv(0, tag=tag)
    if net.me == 1:
        net.round()


def ping_pong(net):
    """Strictly alternating, three messages: three rounds, of which the first sender sees two."""
    if net.me == 0:
        net.send(1, X)
        net.recv(1)
        net.send(1, X)
    else:
        net.recv(0)
        net.send(0, X)
        net.recv(0)


def with_offline_stream(net):
    """Party 2 streams offline material all the while; five online rounds between 0 and 1."""
    if net.me == 2:
        for tag in range(50):
            net.send(0, X, tag=tag, offline=True)
            net.send(1, X, tag=tag, offline=True)
        return

    def consume():
        for tag in range(50):
            net.recv(2, tag=tag, offline=True)

    stream = threading.Thread(target=consume)
    stream.start()
    for tag in range(5):
        net.exchange(1 - net.me, X, tag=tag)
        net.round()
    stream.join()


def counted(program):
    def party(net):
        program(net)
        return net.stats()

    return party


SYMMETRIC = [
    (one_exchange, 2, 1),
    (two_messages_in_a_row, 2, 1),
    (king_opening, 3, 2),
    (five_exchanges, 2, 5),
    (five_exchanges, 4, 5),
]


@pytest.mark.parametrize(("program", "parties", "rounds"), SYMMETRIC)
@pytest.mark.parametrize("sockets", [False, True])
def test_clock_equals_marks_at_every_party(program, parties, rounds, sockets):
    run = run_local(parties, counted(program)).results if sockets else None
    stats = [run[me] for me in range(parties)] if run else SimNet(parties).run(counted(program))
    at_king = [s.rounds() for s in stats]
    # the king of a king-style opening only receives in the first of its two rounds
    expected = [1, 2, 2] if program is king_opening else [rounds] * parties
    assert at_king == expected
    assert max(at_king) == rounds == stats[-1].marked_rounds()


def test_one_way_and_alternating_protocols():
    first, second = SimNet(2).run(counted(one_way))
    assert (first.rounds(), second.rounds()) == (0, 1)
    assert second.marked_rounds() == 1
    first, second = SimNet(2).run(counted(ping_pong))
    assert (first.rounds(), second.rounds()) == (2, 3)


@pytest.mark.parametrize("sockets", [False, True])
def test_an_offline_stream_has_a_clock_of_its_own(sockets):
    run = run_local(3, counted(with_offline_stream)).results if sockets else None
    stats = [run[me] for me in range(3)] if run else SimNet(3).run(counted(with_offline_stream))
    assert [s.rounds(ONLINE) for s in stats] == [5, 5, 0]
    assert [s.rounds(OFFLINE) for s in stats] == [1, 1, 0]
    assert stats[0].marked_rounds(ONLINE) == 5


def test_rounds_and_bytes_by_scope_sum_to_the_total():
    def party(net):
        with net.scope("layer1"):
            net.exchange(1 - net.me, X)
            with net.scope("relu"):
                for tag in range(5):
                    net.exchange(1 - net.me, X, tag=tag)
        before = net.stats()
        with net.scope("layer2"):
            net.exchange(1 - net.me, X)
        return before, net.stats()

    for before, stats in SimNet(2).run(party):
        assert stats.scopes() == ["layer1", "layer1/relu", "layer2"]
        assert [stats.rounds(scope=name) for name in stats.scopes()] == [6, 5, 1]
        assert stats.rounds() == 7
        assert stats.total(scope="layer1/relu").payload_sent == 5 * X.nbytes
        assert stats.total().payload_sent == stats.total().payload_received == 7 * X.nbytes
        assert stats.total().wait_seconds > 0
        difference = stats - before
        assert difference.rounds() == 1
        assert list(difference.traffic) == [(next(iter(difference.traffic))[0], ONLINE, "layer2")]
        assert {row["scope"] for row in stats.to_json()["traffic"]} == set(stats.scopes())


@settings(deadline=None)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=12))
def test_sixteen_bits_carry_a_clock_of_any_length(steps):
    """The clock that a message carries modulo 2^16 is understood while senders are within 2^15 rounds."""
    meter, sender = Meter(), 0
    for step in steps:
        sender = meter.clock(ONLINE) + step - 1
        if sender >= 0:
            meter.observe(ONLINE, sender & 0xFFFF)
            assert meter.clock(ONLINE) == sender + 1 if step else True
    before = meter.clock(ONLINE)
    if before:
        meter.observe(ONLINE, (before - 1) & 0xFFFF)  # no later than now: nothing moves
    assert meter.clock(ONLINE) == before
