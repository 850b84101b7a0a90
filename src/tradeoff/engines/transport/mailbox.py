"""Where the messages of all peers of one party wait for its protocol, and where its failures are kept."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tradeoff.engines.transport.errors import PeerLost, PeerTimeout

MINIMUM_RATE = 1e6
"""Bytes a second: a message in transit extends its receiver's deadline by its size at this rate."""
_SPIN_SECONDS = 150e-6
_MESSAGE_BYTES = 512
"""What a queued message takes besides its payload: also empty ones must not fill the memory."""

MakeError = Callable[[str], Exception]
"""Builds the error of a failed peer for the scope in which it is raised."""


@dataclass(slots=True)
class Message:
    """A message as the protocol gets it.

    Attributes:
        value: array or bytes; round: the sender's clock modulo 2^16; release: monotonic time before which an
            emulated link does not deliver it (0: at once).
    """

    tag: int
    round: int
    value: Any
    payload_bytes: int
    header_bytes: int
    release: float = 0.0


Discard = Callable[[int, str, Message], None]
"""Told of each message that comes after its receiver stopped waiting: (peer, phase, message)."""


class Mailbox:
    """Queues by peer and phase, bounded by peer.

    A failed peer fails every operation until it is dropped: a protocol among n parties does not go on without
    one of them unless it says so.

    Attributes:
        pull: read from a peer's link in the receiver's own thread for a moment, if the link allows; whether
            something came.
        on_room: by peer what to call when its queue is no longer full.
        in_flight: payload bytes of the message that is arriving from a peer; suspect: whom to blame when
            nothing comes from a peer in time.

    Args:
        peers: ids of the other parties.
        limit: bytes that the queued messages of one peer take, from which on its link should stop reading.
    """

    def __init__(self, peers: Iterable[int], limit: int) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._limit = limit
        self._queues: dict[tuple[int, str], deque[Message]] = {}
        self._bytes = dict.fromkeys(peers, 0)
        self._late: dict[tuple[int, str], int] = {}
        self._barriers = dict.fromkeys(self._bytes, 0)
        self._failures: dict[int, MakeError] = {}
        self._left: set[int] = set()
        self._dropped: set[int] = set()
        self._closed = False
        self._troubled = False
        self.on_room: dict[int, Callable[[], None]] = {}
        self.pull: Callable[[int, float], bool] = lambda peer, seconds: False
        self.in_flight: Callable[[int], int] = lambda _: 0
        self.suspect: Callable[[int], int] = lambda peer: peer

    @property
    def dropped(self) -> frozenset[int]:
        """Peers that the protocol goes on without."""
        return frozenset(self._dropped)

    def full(self, peer: int) -> bool:
        """Whether the peer's link should stop reading."""
        return self._bytes[peer] >= self._limit

    def queued(self, peer: int) -> int:
        """Bytes that the messages waiting for the protocol take."""
        return self._bytes[peer]

    def deliver(self, peer: int, phase: str, message: Message) -> None:
        """Queue a message; it is discarded if the peer was dropped."""
        with self._changed:
            if peer in self._dropped:
                return
            self._queues.setdefault((peer, phase), deque()).append(message)
            self._bytes[peer] += message.payload_bytes + _MESSAGE_BYTES
            self._changed.notify_all()

    def wait_room(self, peer: int, timeout: float) -> bool:
        """Wait until the peer's queue is not full; False if it still is after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.full(peer) or peer in self._dropped, timeout)

    def arrive(self, peer: int) -> None:
        """Note that a peer reached its next barrier."""
        with self._changed:
            self._barriers[peer] += 1
            self._changed.notify_all()

    def fail(self, peer: int, error: MakeError) -> bool:
        """Record why a peer failed; the first reason stays. Returns whether this is it."""
        with self._changed:
            if peer in self._failures or peer in self._dropped:
                return False
            self._failures[peer] = error
            self._troubled = True
            self._changed.notify_all()
            return True

    def failed(self, peer: int) -> bool:
        """Whether the peer failed, left or was dropped."""
        with self._changed:
            return peer in self._failures or peer in self._left or peer in self._dropped

    def leave(self, peer: int) -> None:
        """Note that a peer said goodbye: what it sent stays, waiting for more is an error."""
        with self._changed:
            self._left.add(peer)
            self._troubled = True
            self._changed.notify_all()

    def drop(self, peer: int) -> None:
        """Forget a peer, its failure and its messages."""
        with self._changed:
            self._dropped.add(peer)
            self._troubled = True
            self._failures.pop(peer, None)
            for key in [key for key in self._queues if key[0] == peer]:
                del self._queues[key]
            self._bytes[peer] = 0
            self._changed.notify_all()

    def close(self) -> None:
        """Fail whoever still waits: this party has left."""
        with self._changed:
            self._closed = True
            self._troubled = True
            self._changed.notify_all()

    def skip(self, peer: int, phase: str) -> None:
        """Discard the next message of a peer whenever it comes; the caller has stopped waiting for it."""
        with self._changed:
            self._late[peer, phase] = self._late.get((peer, phase), 0) + 1

    def check(self, peer: int, scope: str, *, alone: bool = False) -> None:
        """Raise what failed, if ``peer`` is gone or (unless ``alone``) anybody is that was not dropped."""
        if not self._troubled:
            return
        with self._changed:
            self._check(peer, scope, alone)
            if peer in self._left:
                raise PeerLost(peer, scope, "it left the session")

    def check_all(self) -> None:
        """Raise what failed, if anybody did that was not dropped."""
        with self._changed:
            for error in self._failures.values():
                raise error("")

    def take(self, peer: int, phase: str, timeout: float, scope: str, discarded: Discard) -> Message:
        """The peer's next message, waiting for it.

        Raises:
            PeerLost, PeerTimeout, PeerAborted, ProtocolError: what became of a peer.
        """
        began = time.monotonic()
        pulling = True
        while True:
            with self._changed:
                if self._troubled:
                    self._check(peer, scope)
                if self._late:
                    self._discard_late(peer, phase, discarded)
                queue = self._queues.get((peer, phase))
                now = time.monotonic()
                if queue:
                    pause = queue[0].release - now
                    if pause <= _SPIN_SECONDS:
                        message = self._pop(peer, phase)
                        break
                    pause -= _SPIN_SECONDS
                elif peer in self._left:
                    raise PeerLost(peer, scope, "it left the session")
                else:
                    pause = began + timeout + self.in_flight(peer) / MINIMUM_RATE - now
                    if pause <= 0:
                        raise PeerTimeout(self.suspect(peer), timeout, scope)
                if queue or not pulling:
                    self._changed.wait(pause)
                    continue
            pulling = self.pull(peer, pause)
        if message.release:
            _spin_until(message.release)
        return message

    def take_first(
        self, peers: set[int], phase: str, timeout: float, scope: str, discarded: Discard
    ) -> tuple[int, Message]:
        """The first message of any of ``peers``, ignoring those that fail while others are left."""
        began = time.monotonic()
        with self._changed:
            while True:
                alive = {p for p in peers if p not in self._dropped and p not in self._failures}
                for peer in alive:
                    self._discard_late(peer, phase, discarded)
                ready = [(q[0].release, p) for p in alive if (q := self._queues.get((p, phase)))]
                waiting = alive - self._left
                now = time.monotonic()
                if ready:
                    release, peer = min(ready)
                    pause = release - now
                    if pause <= _SPIN_SECONDS:
                        message = self._pop(peer, phase)
                        break
                elif not waiting:
                    self._raise_any(peers, scope)
                else:
                    pause = began + timeout - now
                    if pause <= 0:
                        raise PeerTimeout(min(waiting), timeout, scope)
                self._changed.wait(pause)
        _spin_until(message.release)
        return peer, message

    def wait_barrier(self, peers: Iterable[int], count: int, timeout: float, scope: str) -> None:
        """Wait until each of ``peers`` has reached its barrier number ``count``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            for peer in peers:
                while self._barriers[peer] < count:
                    self._check(peer, scope)
                    if peer in self._left:
                        raise PeerLost(peer, scope, "it left the session")
                    pause = deadline - time.monotonic()
                    if pause <= 0:
                        raise PeerTimeout(self.suspect(peer), timeout, scope, "the barrier")
                    self._changed.wait(pause)

    def _check(self, peer: int, scope: str, alone: bool = False) -> None:
        if peer in self._dropped:
            raise PeerLost(peer, scope, "it was dropped")
        if peer in self._failures:
            raise self._failures[peer](scope)
        if self._closed:
            raise PeerLost(peer, scope, "this party has left the session")
        if alone:
            return
        for error in self._failures.values():
            raise error(scope)

    def _raise_any(self, peers: set[int], scope: str) -> None:
        for peer in peers:
            if peer in self._failures:
                raise self._failures[peer](scope)
        raise PeerLost(min(peers), scope, "nobody is left to answer")

    def _pop(self, peer: int, phase: str) -> Message:
        message = self._queues[peer, phase].popleft()
        was_full = self.full(peer)
        self._bytes[peer] -= message.payload_bytes + _MESSAGE_BYTES
        if was_full and not self.full(peer):
            self._changed.notify_all()
            if peer in self.on_room:
                self.on_room[peer]()
        return message

    def _discard_late(self, peer: int, phase: str, discarded: Discard) -> None:
        queue = self._queues.get((peer, phase))
        while queue and self._late.get((peer, phase), 0):
            self._late[peer, phase] -= 1
            discarded(peer, phase, self._pop(peer, phase))


def _spin_until(moment: float) -> None:
    while moment > time.monotonic():
        time.sleep(0)
