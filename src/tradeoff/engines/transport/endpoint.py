"""What a protocol sees of the network: the same for parties over TCP and for simulated ones."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import DTypeLike

from tradeoff.engines.transport.accounting import OFFLINE, ONLINE, Meter, Stats
from tradeoff.engines.transport.errors import PeerError, UnexpectedMessage
from tradeoff.engines.transport.frames import HEADER_BYTES, MAX_TAG, describe, encode_array
from tradeoff.engines.transport.mailbox import Mailbox, Message

Value = np.ndarray | bytes
Expect = tuple[DTypeLike | type[bytes], tuple[int, ...] | None]
"""What a receiver insists on: (dtype, shape), the shape None if any will do."""


@dataclass(slots=True)
class Outgoing:
    """A message on its way out: what the frame header needs, and views of what follows it."""

    descriptor: bytes
    payload: memoryview
    tag: int
    round: int
    offline: bool

    @property
    def length(self) -> int:
        """Bytes after the frame header."""
        return len(self.descriptor) + self.payload.nbytes


class Endpoint(ABC):
    """One party's end of the links to all others.

    All methods may be called from several threads, as long as one thread at a time sends to, or receives
    from, a given peer in a given phase. Messages of a peer arrive in the order in which they were sent,
    separately for the online and the offline phase. Every wait has a deadline.

    Attributes:
        me: this party's id; n: the number of parties; session: the session's id, equal at all parties.
    """

    def __init__(self, me: int, n: int, *, recv_timeout: float, recv_queue: int) -> None:
        self.me = me
        self.n = n
        self.session = 0
        self._recv_timeout = recv_timeout
        self._everyone = tuple(peer for peer in range(n) if peer != me)
        self._mailbox = Mailbox(self._everyone, recv_queue)
        self._meter = Meter()
        self._held = threading.local()
        self._barriers = 0

    @property
    def peers(self) -> tuple[int, ...]:
        """The other parties, without those that were dropped."""
        dropped = self._mailbox.dropped
        return tuple(peer for peer in self._everyone if peer not in dropped)

    def send(self, to: int, value: Value, *, tag: int = 0, offline: bool = False) -> None:
        """Queue an array (or bytes) for a peer; returns at once unless the peer's queue is full.

        The elements are not copied: leave the array as it is until it has arrived (:meth:`flush` waits until
        it has left this process).

        Raises:
            UnsupportedArray: dtypes other than uint8, uint32, uint64, int64, float32, float64 and bytes.
            PeerTimeout: the queue stayed full for ``send_timeout``.
            PeerLost, PeerAborted, ProtocolError: what became of a peer.
        """
        self._send(to, value, tag, offline)

    def recv(
        self,
        source: int,
        *,
        tag: int = 0,
        expect: Expect | None = None,
        offline: bool = False,
        timeout: float | None = None,
    ) -> Value:
        """The peer's next message, which must carry ``tag`` and, if given, have the expected dtype and shape.

        Raises:
            UnexpectedMessage: the message has another tag, dtype or shape.
            PeerTimeout: nothing came for ``timeout`` (default: the configured ``recv_timeout``).
            PeerLost, PeerAborted, ProtocolError: what became of a peer.
        """
        got, value = self.recv_any(source, offline=offline, timeout=timeout)
        self._check_message(source, got, value, tag, expect)
        return value

    def recv_any(
        self, source: int, *, offline: bool = False, timeout: float | None = None
    ) -> tuple[int, Value]:
        """The peer's next message whatever its tag: ``(tag, value)``."""
        self._check_peer(source)
        self._release_held()
        phase = OFFLINE if offline else ONLINE
        limit = self._recv_timeout if timeout is None else timeout
        began = time.perf_counter()
        try:
            message = self._mailbox.take(source, phase, limit, self._meter.scope, self._count_late)
        except PeerError:
            self._meter.waited(source, phase, time.perf_counter() - began)
            raise
        self._count(source, phase, message, time.perf_counter() - began)
        return message.tag, message.value

    def exchange(
        self, peer: int, value: Value, *, tag: int = 0, expect: Expect | None = None, offline: bool = False
    ) -> Value:
        """Send to a peer and receive from it: one round when both do so."""
        self.send(peer, value, tag=tag, offline=offline)
        return self.recv(peer, tag=tag, expect=expect, offline=offline)

    def allgather(
        self, value: Value, *, tag: int = 0, expect: Expect | None = None, offline: bool = False
    ) -> list[Value | None]:
        """Everybody's value by party id, one round; None for parties that were dropped."""
        for peer in self.peers:
            self.send(peer, value, tag=tag, offline=offline)
        return self._collect(value, tag, expect, offline)

    def gather(
        self,
        value: Value,
        root: int = 0,
        *,
        tag: int = 0,
        expect: Expect | None = None,
        offline: bool = False,
    ) -> list[Value | None] | None:
        """Everybody's value by party id at ``root``, None elsewhere."""
        if self.me != root:
            self.send(root, value, tag=tag, offline=offline)
            return None
        return self._collect(value, tag, expect, offline)

    def broadcast(
        self,
        value: Value | None,
        root: int = 0,
        *,
        tag: int = 0,
        expect: Expect | None = None,
        offline: bool = False,
    ) -> Value:
        """The value of ``root`` at everybody; the others pass None."""
        if self.me != root:
            return self.recv(root, tag=tag, expect=expect, offline=offline)
        if value is None:
            raise ValueError("the root of a broadcast needs a value")
        for peer in self.peers:
            self.send(peer, value, tag=tag, offline=offline)
        return value

    def first(
        self, k: int, value: Value, *, tag: int = 0, expect: Expect | None = None, offline: bool = False
    ) -> dict[int, Value]:
        """Send to everybody and return the first ``k`` values that arrive, this party's own included.

        Peers that fail are passed over as long as ``k`` values can still come; values that come later are
        discarded when they do.

        Returns:
            value by party id, in order of arrival.
        """
        if not 1 <= k <= self.n:
            raise ValueError(f"k is between 1 and {self.n}, not {k}")
        phase = OFFLINE if offline else ONLINE
        asked = {peer for peer in self.peers if self._send_if_alive(peer, value, tag, offline)}
        self._release_held()
        found: dict[int, Value] = {self.me: value}
        while len(found) < k:
            began = time.perf_counter()
            peer, message = self._mailbox.take_first(
                asked, phase, self._recv_timeout, self._meter.scope, self._count_late
            )
            self._count(peer, phase, message, time.perf_counter() - began)
            self._check_message(peer, message.tag, message.value, tag, expect)
            found[peer] = message.value
            asked.discard(peer)
        for peer in asked:
            self._mailbox.skip(peer, phase)
        return found

    def barrier(self) -> None:
        """Wait until every party is here. Uses control frames: no round, no message is counted."""
        self._release_held()
        self._await_all(self._recv_timeout)

    def flush(self) -> None:
        """Wait until everything that was sent has left this process."""
        self._release_held()

    def drop(self, peer: int) -> None:
        """Go on without a peer: its link is closed, its failure forgotten, its late messages discarded."""
        self._check_peer(peer)
        self._mailbox.drop(peer)
        self._disconnect(peer)

    @contextmanager
    def coalesce(self) -> Iterator[None]:
        """Hold this thread's messages back and write those for the same peer together at the end.

        A receive inside the block writes first what is held back, so that nobody waits for it.
        """
        if getattr(self._held, "messages", None) is not None:
            yield
            return
        self._held.messages = {}
        try:
            yield
            self._release_held()
        finally:
            self._held.messages = None

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Count what this thread does inside the block under ``name``; scopes nest as ``outer/inner``."""
        return self._meter.enter(name)

    @property
    def current_scope(self) -> str:
        """The scope of this thread."""
        return self._meter.scope

    def round(self, *, offline: bool = False) -> None:
        """Mark a round of a synchronous protocol; :meth:`Stats.marked_rounds` counts the marks."""
        self._meter.mark(OFFLINE if offline else ONLINE)

    def stats(self) -> Stats:
        """The counters now."""
        return self._meter.snapshot()

    @abstractmethod
    def close(self, error: BaseException | None = None) -> None:
        """Leave: say goodbye, or tell everybody the class of ``error``; then release everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    @abstractmethod
    def _post(self, to: int, messages: Sequence[Outgoing]) -> None:
        """Hand messages to the peer's link."""

    @abstractmethod
    def _arrive(self, peer: int) -> None:
        """Tell a peer that this party reached its next barrier."""

    @abstractmethod
    def _disconnect(self, peer: int) -> None:
        """Close the link to a peer."""

    def _check_peer(self, peer: int) -> None:
        if peer == self.me or not 0 <= peer < self.n:
            raise ValueError(f"party {self.me} of {self.n} has no peer {peer}")

    def _send(self, to: int, value: Value, tag: int, offline: bool, *, alone: bool = False) -> None:
        self._check_peer(to)
        if not 0 <= tag <= MAX_TAG:
            raise ValueError(f"a tag is an unsigned 32-bit number, not {tag}")
        phase = OFFLINE if offline else ONLINE
        descriptor, payload = encode_array(value)
        message = Outgoing(descriptor, payload, tag, self._meter.clock(phase) & 0xFFFF, offline)
        self._mailbox.check(to, self._meter.scope, alone=alone)
        held = getattr(self._held, "messages", None)
        if held is None:
            self._post(to, [message])
        else:
            held.setdefault(to, []).append(message)
        self._meter.sent(to, phase, payload.nbytes, HEADER_BYTES + len(descriptor))

    def _send_if_alive(self, peer: int, value: Value, tag: int, offline: bool) -> bool:
        try:
            self._send(peer, value, tag, offline, alone=True)
        except PeerError:
            return False
        return True

    def _await_all(self, timeout: float) -> None:
        peers = self.peers
        for peer in peers:
            self._mailbox.check(peer, self._meter.scope)
            self._arrive(peer)
        self._barriers += 1
        self._mailbox.wait_barrier(peers, self._barriers, timeout, self._meter.scope)

    def _release_held(self) -> None:
        held = getattr(self._held, "messages", None)
        if held:
            self._held.messages = {}
            for to, messages in held.items():
                self._post(to, messages)

    def _collect(self, own: Value, tag: int, expect: Expect | None, offline: bool) -> list[Value | None]:
        parts: list[Value | None] = [None] * self.n
        parts[self.me] = own
        for peer in self.peers:
            parts[peer] = self.recv(peer, tag=tag, expect=expect, offline=offline)
        return parts

    def _count(self, peer: int, phase: str, message: Message, waited: float) -> None:
        self._meter.received(peer, phase, message.payload_bytes, message.header_bytes, waited, message.round)

    def _count_late(self, peer: int, phase: str, message: Message) -> None:
        self._meter.discarded(peer, phase, message.payload_bytes, message.header_bytes)

    def _check_message(self, source: int, got: int, value: Value, tag: int, expect: Expect | None) -> None:
        if got != tag:
            raise UnexpectedMessage(source, f"tag {tag}", f"tag {got}", self.current_scope)
        if expect is not None and not _matches(value, expect):
            raise UnexpectedMessage(source, _wanted(expect), describe(value), self.current_scope)


def _matches(value: Value, expect: Expect) -> bool:
    dtype, shape = expect
    if dtype is bytes:
        return isinstance(value, bytes) and shape in (None, (len(value),))
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.dtype(dtype)
        and (shape is None or value.shape == tuple(shape))
    )


def _wanted(expect: Expect) -> str:
    dtype, shape = expect
    name = "bytes" if dtype is bytes else np.dtype(dtype).name
    return name if shape is None else f"{name}{list(shape)}"
