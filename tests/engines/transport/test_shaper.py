"""Emulated links: exact release times, and real trips that take as long as they should."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_helpers import run_local

from tradeoff.engines.transport import PROFILES, ConfigError, LinkShaper, SimNet, profile


def test_release_times_follow_queue_rate_and_delay():
    link = LinkShaper(latency_ms=10, mbit=8).start()  # 1 byte a microsecond
    assert link.release(0.0, 1000) == pytest.approx(0.011)
    assert link.release(0.0, 1000) == pytest.approx(0.012)  # waits for the one before it
    assert link.release(1.0, 500) == pytest.approx(1.0105)  # the link was idle
    assert LinkShaper().start() is None
    assert LinkShaper(latency_ms=5).seconds(4, 10**9) == pytest.approx(0.02)
    assert profile("wan").seconds(5, 0) == pytest.approx(0.1)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.01), st.integers(1, 10**6)), min_size=2, max_size=30),
    st.integers(0, 1000),
)
def test_jitter_and_losses_keep_order_and_are_repeatable(messages, seed):
    shaper = LinkShaper(latency_ms=1, mbit=100, jitter_ms=3, loss_rate=0.2, loss_stall_ms=50, seed=seed)
    runs = []
    for _ in range(2):
        link, now, releases = shaper.start(), 0.0, []
        for pause, size in messages:
            now += pause
            releases.append(link.release(now, size))
            assert releases[-1] >= now + 0.001 + size * 8e-8 - 1e-12
        assert releases == sorted(releases)
        runs.append(releases)
    assert runs[0] == runs[1]


def test_losses_stall_as_often_as_asked():
    link = LinkShaper(loss_rate=0.1, loss_stall_ms=1000, seed=1).start()
    total = [link.release(0.0, 1) for _ in range(2000)][-1]
    assert total == pytest.approx(200, rel=0.2)


def test_profiles_are_the_documented_ones():
    assert PROFILES["lan"] == LinkShaper(latency_ms=0.15, mbit=3000, name="lan")
    assert PROFILES["wan"] == LinkShaper(latency_ms=20, mbit=352, name="wan")
    assert PROFILES["pasnet"].mbit == 8000
    assert profile({"latency_ms": 3}).latency_ms == 3
    for wrong in ("moon", {"speed": 3}, {"mbit": 0}, {"latency_ms": -1}, {"loss_rate": 1}):
        with pytest.raises(ConfigError):
            profile(wrong)


def trips(net, count=20):
    small = np.zeros(8, np.uint8)
    net.barrier()
    began = time.perf_counter()
    for _ in range(count):
        if net.me == 0:
            net.send(1, small)
            net.recv(1)
        else:
            net.recv(0)
            net.send(0, small)
    return time.perf_counter() - began


def sleeping_trips(net):
    """:func:`trips` in which each party sleeps 10 ms before it sends."""

    class Sleepy:
        me, barrier, recv = net.me, net.barrier, net.recv

        def send(self, to, value):
            time.sleep(0.01)
            net.send(to, value)

    return trips(Sleepy())


def within(limit, measure):
    """Whether a shaped run takes at most ``limit`` more than an unshaped one, in one of five attempts."""
    return any(shaped <= limit + plain for shaped, plain in (measure() for _ in range(5)))


def test_twenty_round_trips_take_their_delays_and_little_more():
    """10 ms one way: never less than 400 ms; at most 10 % more than that and the unshaped trips.

    On a busy machine, where forty sleeps of 10 ms take longer than that, these take the place of 400 ms.
    """

    def excess():
        shaped, plain, slept = [], [], []
        for _ in range(3):
            shaped.append(run_local(2, trips, link=LinkShaper(latency_ms=10)).results[0])
            plain.append(run_local(2, trips).results[0])
            slept.append(run_local(2, sleeping_trips).results[0])
        assert min(shaped) >= 0.400
        delays = max(0.400, statistics.median(slept))
        return statistics.median(shaped) - 1.1 * delays, statistics.median(plain)

    assert within(0.0, excess)


def test_bandwidth_is_the_one_asked_for():
    """16 MB at 200 Mbit/s take 640 ms; a link without a limit is faster."""

    def bulk(net):
        big = np.zeros(4_000_000, np.uint8)
        net.barrier()
        began = time.perf_counter()
        for tag in range(4):
            if net.me == 0:
                net.send(1, big, tag=tag)
            else:
                net.recv(0, tag=tag)
        return time.perf_counter() - began

    def measure():
        shaped = run_local(2, bulk, link=LinkShaper(mbit=200)).results[1]
        assert shaped >= 0.62
        return shaped, run_local(2, bulk).results[1]

    assert within(1.1 * 0.64, measure)


def test_an_exchange_costs_one_delay_and_single_links_may_differ():
    slow = LinkShaper(latency_ms=40)

    def party(net):
        net.barrier()
        began = time.perf_counter()
        for tag in range(5):
            net.exchange(1 - net.me, np.zeros(1, np.uint64), tag=tag)
        return time.perf_counter() - began

    assert min(SimNet(2, link=slow).run(party)) >= 0.2
    assert max(SimNet(2, link=slow).run(party)) < 0.4  # a round trip for each would take 400 ms
    only_there = run_local(2, party, differ={0: {"links": {1: slow}}})
    assert only_there.results[0] >= 0.12  # every second message to party 0 waits for one that was delayed
