"""Messages among servers, dealer and data owner; in robust programs lost servers are passed over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tradeoff.engines.shamir.options import Options
from tradeoff.engines.transport import Endpoint, PeerError
from tradeoff.engines.transport.endpoint import Expect, Value

PATIENCE = 3600.0
"""Seconds for a message whose sender may have to compute for long, or to wait for others."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Peers:
    """The links of one party.

    Attributes:
        lost: servers that went, in order: with ``robust`` they are dropped as long as 2t + 1 are left.
    """

    def __init__(self, net: Endpoint, options: Options) -> None:
        self.net = net
        self.options = options
        self.lost: list[int] = []

    @property
    def servers(self) -> list[int]:
        """The servers that are there, this party included if it is one."""
        return [server for server in self.options.scheme.servers if server not in self.lost]

    def send(self, to: int, value: Value, *, tag: int = 0, offline: bool = False) -> None:
        """Send, unless the peer is a server that is lost.

        Raises:
            PeerError: what became of a peer that cannot be done without.
        """
        self._surviving(to, lambda: self.net.send(to, value, tag=tag, offline=offline))

    def recv(
        self,
        source: int,
        expect: Expect,
        *,
        tag: int = 0,
        offline: bool = False,
        timeout: float | None = None,
    ) -> Value | None:
        """The peer's message, or None from a server that is lost.

        Raises:
            PeerError: what became of a peer that cannot be done without.
        """
        return self._surviving(
            source,
            lambda: self.net.recv(source, tag=tag, expect=expect, offline=offline, timeout=timeout),
        )

    def recv_any(self, source: int, *, timeout: float) -> tuple[int, Value]:
        """The offline message of a party that cannot be lost, whatever its tag."""
        message = self._surviving(source, lambda: self.net.recv_any(source, offline=True, timeout=timeout))
        assert message is not None
        return message

    def _surviving(self, peer: int, action: Callable[[], _T]) -> _T | None:
        while peer not in self.lost:
            try:
                return action()
            except PeerError as error:
                self.drop(error)
        return None

    def drop(self, error: PeerError) -> None:
        """Go on without the server that failed.

        Raises:
            error: there is no going on.
        """
        lost = error.peer
        enough = len(self.servers) - 1 > 2 * self.options.threshold
        droppable = lost in self.servers and lost != self.net.me
        if self.options.security != "robust" or not droppable or not enough:
            raise error
        _log.warning("going on without server %d: %s", lost, error)
        self.lost.append(lost)
        self.net.drop(lost)
