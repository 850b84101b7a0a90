"""What the links of a session do: round trips, throughput and the security in force."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from tradeoff.engines.transport.party import Party

_SMALL = np.zeros(8, np.uint8)
_TAG = 0xC4EC


@dataclass(frozen=True)
class LinkReport:
    """One link as both of its ends measured it together.

    Attributes:
        round_trip_ms: median of a small message there and back; mb_per_s: one way, from the lower id.
        tls: version, cipher and the peer's certified name; empty in the clear.
    """

    peer: int
    round_trip_ms: float
    mb_per_s: float
    tls: dict[str, str]


def check_links(
    net: Party, *, trips: int = 100, message_bytes: int = 16 << 20, messages: int = 4
) -> list[LinkReport]:
    """Measure the links of this party, one pair of parties after the other; all parties must call it."""
    reports = []
    bulk = np.zeros(message_bytes, np.uint8)
    for low in range(net.n):
        for high in range(low + 1, net.n):
            net.barrier()
            if net.me not in (low, high):
                continue
            peer = low + high - net.me
            trip = _round_trip(net, peer, trips, leads=net.me == low)
            rate = _throughput(net, peer, bulk, messages, leads=net.me == low)
            reports.append(LinkReport(peer, trip * 1e3, rate / 1e6, net.security(peer)))
    net.barrier()
    return reports


def _round_trip(net: Party, peer: int, trips: int, *, leads: bool) -> float:
    """Median seconds; the side that does not lead echoes and times the same trips shifted by half of one."""
    seconds = []
    for _ in range(trips):
        began = time.perf_counter()
        if leads:
            net.send(peer, _SMALL, tag=_TAG)
        net.recv(peer, tag=_TAG)
        seconds.append(time.perf_counter() - began)
        if not leads:
            net.send(peer, _SMALL, tag=_TAG)
    return statistics.median(seconds)


def _throughput(net: Party, peer: int, bulk: np.ndarray, messages: int, *, leads: bool) -> float:
    """Bytes a second from the side that leads, which waits for a receipt of each batch."""
    rates = []
    for _ in range(messages):
        began = time.perf_counter()
        if leads:
            net.send(peer, bulk, tag=_TAG)
            net.recv(peer, tag=_TAG)
        else:
            net.recv(peer, tag=_TAG)
            net.send(peer, _SMALL, tag=_TAG)
        rates.append(bulk.nbytes / (time.perf_counter() - began))
    return statistics.median(rates)
