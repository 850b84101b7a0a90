"""Parties as threads of one process: the same interface, accounting and emulated links, without sockets."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from tradeoff.engines.transport.endpoint import Endpoint, Outgoing
from tradeoff.engines.transport.errors import PeerLost, PeerTimeout
from tradeoff.engines.transport.failures import announce, root_cause, understand
from tradeoff.engines.transport.frames import HEADER_BYTES, decode_array
from tradeoff.engines.transport.mailbox import Message
from tradeoff.engines.transport.shaper import LinkShaper, profile


class SimEndpoint(Endpoint):
    """One party of a :class:`SimNet`."""

    def __init__(self, net: SimNet, me: int, n: int, **limits: Any) -> None:
        super().__init__(me, n, **limits)
        self._net = net
        self._closed = False
        self._incoming = {peer: net.shaper.start() if net.shaper else None for peer in self._everyone}
        self._incoming_lock = threading.Lock()

    def close(self, error: BaseException | None = None) -> None:
        """Leave the session; the others learn the class of ``error``, if there is one."""
        if self._closed:
            return
        self._closed = True
        self._mailbox.close()
        for peer in self._everyone:
            box = self._net.endpoints[peer]._mailbox
            if error is None:
                box.leave(self.me)
            else:
                box.fail(self.me, understand(peer, self.me, announce(error), self._recv_timeout))

    def kill(self) -> None:
        """Vanish without a word, as a killed process does."""
        self._closed = True
        me = self.me
        for peer in self._everyone:
            self._net.endpoints[peer]._mailbox.fail(me, lambda scope: PeerLost(me, scope))

    def _post(self, to: int, messages: Sequence[Outgoing]) -> None:
        target = self._net.endpoints[to]
        for message in messages:
            if not target._mailbox.wait_room(self.me, self._net.send_timeout):
                raise PeerTimeout(to, self._net.send_timeout, self.current_scope, "room in the queue")
            target._accept(self.me, message)

    def _accept(self, source: int, outgoing: Outgoing) -> None:
        value = decode_array(outgoing.descriptor, outgoing.payload)
        payload, header = outgoing.payload.nbytes, HEADER_BYTES + len(outgoing.descriptor)
        shaped = self._incoming[source]
        with self._incoming_lock:
            release = shaped.release(time.monotonic(), payload + header) if shaped else 0.0
            message = Message(outgoing.tag, outgoing.round, value, payload, header, release)
            self._mailbox.deliver(source, "offline" if outgoing.offline else "online", message)

    def _arrive(self, peer: int) -> None:
        self._net.endpoints[peer]._mailbox.arrive(self.me)

    def _disconnect(self, peer: int) -> None:
        self._net.endpoints[peer]._mailbox.leave(self.me)


class SimNet:
    """``n`` endpoints in this process.

    Example:
        >>> import numpy as np
        >>> from tradeoff.engines.transport import SimNet
        >>> def program(net):
        ...     return int(net.exchange(1 - net.me, np.array([net.me], dtype=np.uint64))[0])
        >>> SimNet(2).run(program)
        [1, 0]

    Args:
        n: number of parties.
        link: an emulated link between each two (a profile's name, a :class:`LinkShaper` or None).
        recv_timeout, send_timeout: seconds; recv_queue: bytes.
    """

    def __init__(
        self,
        n: int,
        *,
        link: str | LinkShaper | None = None,
        recv_timeout: float = 60.0,
        send_timeout: float = 60.0,
        recv_queue: int = 256 << 20,
    ) -> None:
        self.n = n
        self.shaper = None if link is None else profile(link)
        self.send_timeout = send_timeout
        session = secrets.randbits(63) + 1
        self.endpoints = [
            SimEndpoint(self, me, n, recv_timeout=recv_timeout, recv_queue=recv_queue) for me in range(n)
        ]
        for endpoint in self.endpoints:
            endpoint.session = session

    def run(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        *,
        per_party: Sequence[Sequence[Any]] | None = None,
    ) -> list[Any]:
        """Run ``target(endpoint, *args, *per_party[id])`` in one thread a party; their results by party id.

        A net runs once: the endpoints are closed when their party returns.

        Raises:
            The root cause, if parties raised.
        """
        results: list[Any] = [None] * self.n
        errors: list[BaseException] = []

        def party(me: int) -> None:
            own = per_party[me] if per_party else ()
            try:
                with self.endpoints[me] as endpoint:
                    results[me] = target(endpoint, *args, *own)
            except BaseException as error:  # noqa: BLE001 - carried to the caller, who gets the root cause
                errors.append(error)

        threads = [threading.Thread(target=party, args=(me,), name=f"party-{me}") for me in range(self.n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise root_cause(errors)
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for endpoint in self.endpoints:
            endpoint.close(error)
