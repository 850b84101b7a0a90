"""Exact accounting of bytes, messages, rounds and waiting, by peer, phase and scope."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

ONLINE = "online"
OFFLINE = "offline"
_ROUND_MODULUS = 1 << 16


@dataclass(frozen=True)
class Traffic:
    """Counters of one (peer, phase, scope), or a sum of such.

    Payload is array elements only; header is frame headers and array descriptors. Waiting is the time that
    :meth:`recv` did not return.
    """

    payload_sent: int = 0
    payload_received: int = 0
    header_sent: int = 0
    header_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    wait_seconds: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Traffic)))

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Traffic)))


TrafficKey = tuple[int, str, str]
"""(peer, phase, scope)"""
RoundKey = tuple[str, str]
"""(phase, scope)"""


@dataclass(frozen=True)
class Stats:
    """A snapshot of one party's counters; ``after - before`` is what happened between two of them.

    Attributes:
        traffic: counters by (peer, phase, scope). Scopes do not overlap: the total is the sum.
        clock: growth of the logical clock by (phase, scope); its sum over scopes is the number of rounds.
        marked: rounds that protocol code marked with ``net.round()``, by (phase, scope).
        wire_sent, wire_received: every byte of every frame by peer, control frames included, TLS excluded.
        tls_overhead: an estimate of the bytes that TLS records add, by peer, both directions.
    """

    traffic: Mapping[TrafficKey, Traffic] = field(default_factory=dict)
    clock: Mapping[RoundKey, int] = field(default_factory=dict)
    marked: Mapping[RoundKey, int] = field(default_factory=dict)
    wire_sent: Mapping[int, int] = field(default_factory=dict)
    wire_received: Mapping[int, int] = field(default_factory=dict)
    tls_overhead: Mapping[int, int] = field(default_factory=dict)

    def total(
        self, *, peer: int | None = None, phase: str | None = None, scope: str | None = None
    ) -> Traffic:
        """The sum over all entries that match; a scope matches itself and what is nested in it."""
        result = Traffic()
        for (peer_, phase_, scope_), traffic in self.traffic.items():
            if peer in (None, peer_) and phase in (None, phase_) and _inside(scope_, scope):
                result += traffic
        return result

    def rounds(self, phase: str = ONLINE, scope: str | None = None) -> int:
        """The length of the longest chain of a message sent after one was received, in ``phase``."""
        return _sum(self.clock, phase, scope)

    def marked_rounds(self, phase: str = ONLINE, scope: str | None = None) -> int:
        """The rounds that the protocol marked itself."""
        return _sum(self.marked, phase, scope)

    def scopes(self) -> list[str]:
        """Every scope with traffic or rounds, in order of first use."""
        names = [scope for _, _, scope in self.traffic] + [scope for _, scope in self.clock]
        return list(dict.fromkeys(names))

    def __sub__(self, earlier: Stats) -> Stats:
        zero = Traffic()
        traffic = {key: value - earlier.traffic.get(key, zero) for key, value in self.traffic.items()}
        return Stats(
            {key: value for key, value in traffic.items() if value != zero},
            _difference(self.clock, earlier.clock),
            _difference(self.marked, earlier.marked),
            _difference(self.wire_sent, earlier.wire_sent),
            _difference(self.wire_received, earlier.wire_received),
            _difference(self.tls_overhead, earlier.tls_overhead),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON document with one row a (peer, phase, scope)."""
        rows = [
            {"peer": peer, "phase": phase, "scope": scope, **asdict(traffic)}
            for (peer, phase, scope), traffic in self.traffic.items()
        ]
        rounds = [{"phase": p, "scope": s, "rounds": count} for (p, s), count in self.clock.items()]
        wire = {
            name: {str(peer): count for peer, count in getattr(self, name).items()}
            for name in ("wire_sent", "wire_received", "tls_overhead")
        }
        return {"traffic": rows, "rounds": rounds, **wire}


class _Scope(threading.local):
    """The scope of each thread."""

    name = ""


class Meter:
    """The running counters of one party; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._traffic: dict[TrafficKey, list[float]] = defaultdict(lambda: [0] * 6 + [0.0])
        self._clock = {ONLINE: 0, OFFLINE: 0}
        self._growth: dict[RoundKey, int] = defaultdict(int)
        self._marked: dict[RoundKey, int] = defaultdict(int)
        self._scopes = _Scope()

    @property
    def scope(self) -> str:
        """The current thread's scope, nested names joined by a slash."""
        return self._scopes.name

    @contextmanager
    def enter(self, name: str) -> Iterator[None]:
        """Count under ``name``, inside the scope that is open already."""
        outer = self.scope
        self._scopes.name = f"{outer}/{name}" if outer else name
        try:
            yield
        finally:
            self._scopes.name = outer

    def clock(self, phase: str) -> int:
        """The logical clock that outgoing messages of ``phase`` carry."""
        return self._clock[phase]

    def sent(self, peer: int, phase: str, payload: int, header: int) -> None:
        """Count a message that was handed to the link."""
        with self._lock:
            row = self._traffic[peer, phase, self.scope]
            row[0] += payload
            row[2] += header
            row[4] += 1

    def received(self, peer: int, phase: str, payload: int, header: int, waited: float, round_: int) -> None:
        """Count a message that was handed to the protocol and move the clock past its sender's."""
        self.discarded(peer, phase, payload, header, waited)
        self.observe(phase, round_)

    def discarded(self, peer: int, phase: str, payload: int, header: int, waited: float = 0.0) -> None:
        """Count a message that came, but too late for the protocol."""
        with self._lock:
            row = self._traffic[peer, phase, self.scope]
            row[1] += payload
            row[3] += header
            row[5] += 1
            row[6] += waited

    def waited(self, peer: int, phase: str, seconds: float) -> None:
        """Count time spent waiting for a message that did not come."""
        with self._lock:
            self._traffic[peer, phase, self.scope][6] += seconds

    def observe(self, phase: str, round_: int) -> None:
        """Move the clock past the sender's, whose lowest 16 bits the message carried."""
        if round_ == (self._clock[phase] - 1) & (_ROUND_MODULUS - 1):
            return  # a further message of this round: nothing moves
        with self._lock:
            own = self._clock[phase]
            distance = (round_ + 1 - own + _ROUND_MODULUS // 2) % _ROUND_MODULUS - _ROUND_MODULUS // 2
            if distance > 0:
                self._clock[phase] = own + distance
                self._growth[phase, self.scope] += distance

    def mark(self, phase: str) -> None:
        """Count a round that the protocol announces."""
        with self._lock:
            self._marked[phase, self.scope] += 1

    def snapshot(self, **wire: Mapping[int, int]) -> Stats:
        """The counters now."""
        with self._lock:
            traffic = {
                key: Traffic(
                    int(row[0]), int(row[1]), int(row[2]), int(row[3]), int(row[4]), int(row[5]), row[6]
                )
                for key, row in self._traffic.items()
            }
            return Stats(traffic, dict(self._growth), dict(self._marked), **wire)


def _inside(scope: str, wanted: str | None) -> bool:
    return wanted is None or scope == wanted or scope.startswith(wanted + "/")


def _sum(counts: Mapping[RoundKey, int], phase: str, scope: str | None) -> int:
    return sum(count for (phase_, name), count in counts.items() if phase_ == phase and _inside(name, scope))


def _difference(later: Mapping[Any, int], earlier: Mapping[Any, int]) -> dict[Any, int]:
    return {key: value - earlier.get(key, 0) for key, value in later.items()}
