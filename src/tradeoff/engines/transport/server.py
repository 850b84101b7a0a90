"""A server: party 0 of a fresh two-party session for every client that dials."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from tradeoff.core.errors import TradeoffError
from tradeoff.engines.transport.config import Config
from tradeoff.engines.transport.errors import AuthError, ConfigError
from tradeoff.engines.transport.failures import announce
from tradeoff.engines.transport.frames import FrameType
from tradeoff.engines.transport.handshake import Greeting
from tradeoff.engines.transport.party import Connector, Party, listen
from tradeoff.engines.transport.tls import pinned

Handler = Callable[[Party, str], None]
"""Talks to one client: its end of the session, and the name in the client's certificate ('' in the clear)."""

_CLIENT = 1
_LOOK_AROUND = 0.2
_REMEMBERED = 100
_log = logging.getLogger("tradeoff.net")


class ServerClosed(TradeoffError):
    """The server is going down."""


class ServedParty(Party):
    """Party 0 towards one client that has dialed.

    Any certificate that the authority signed (or that is pinned) is accepted, whatever its name.
    """

    def _connector(self, listener: socket.socket | None) -> Connector:
        if listener is None:
            raise ConfigError("a served party needs its client's socket")
        return _OneClient(self, listener)


class _OneClient(Connector):
    """Greets one client on its own socket, in place of listening for others."""

    def connect(self) -> None:
        if self._listener is None:
            raise ConfigError("a served party needs its client's socket")
        client, self._listener = self._listener, None
        self._attempt(client, _CLIENT, partial(self._greet_dialer, {_CLIENT}))

    def _identify(self, sock: socket.socket, allowed: set[int], greeting: Greeting) -> None:
        if not isinstance(sock, ssl.SSLSocket) or self._tls is None or self._tls.pins is None:
            return
        if pinned(sock, self._tls, self._tls.pins.keys()):
            return
        error = AuthError("the certificate of a client is not pinned", _CLIENT)
        greeting.say(FrameType.ERROR, announce(error))
        raise error


class Server:
    """Accepts clients until it is closed; see :func:`serve`.

    Attributes:
        address: ``host:port`` on which it listens.
        failures: the last errors of clients or of the handler, oldest first.
    """

    def __init__(self, handler: Handler, config: Config, max_clients: int) -> None:
        if config.n != 2:
            raise ConfigError("a server's configuration has two parties: its own address, and None")
        config.require_secure(0)
        self.failures: deque[TradeoffError] = deque(maxlen=_REMEMBERED)
        self._handler = handler
        self._config = config
        self._listener = listen(config.parties[0])
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._room = threading.Semaphore(max_clients)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._active: dict[threading.Thread, Party | None] = {}
        self._thread = threading.Thread(target=self._accept_all, name="server", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Block until somebody closes the server."""
        self._stopping.wait(timeout)

    def close(self) -> None:
        """Stop listening, end the sessions that still run and wait for their threads."""
        self._stopping.set()
        self._thread.join()
        self._listener.close()
        with self._lock:
            running = dict(self._active)
        for net in running.values():
            if net is not None:
                net.close(ServerClosed("the server is going down"))
        for thread in running:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept_all(self) -> None:
        self._listener.settimeout(_LOOK_AROUND)
        while not self._stopping.is_set():
            if not self._room.acquire(timeout=_LOOK_AROUND):
                continue
            try:
                client, _ = self._listener.accept()
            except OSError:  # nobody came, or who came has gone again
                self._room.release()
                continue
            thread = threading.Thread(target=self._serve, args=(client,), name="client", daemon=True)
            with self._lock:
                self._active[thread] = None
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        me = threading.current_thread()
        try:
            with contextlib.ExitStack() as stack:
                net = stack.enter_context(ServedParty(self._config, 0, listener=client))
                with self._lock:
                    self._active[me] = net
                self._handler(net, net.security(_CLIENT).get("name", ""))
        except TradeoffError as error:
            self.failures.append(error)
            _log.warning("client failed: %s", error)
        finally:
            client.close()
            with self._lock:
                del self._active[me]
            self._room.release()


def serve(handler: Handler, config: Config, *, max_clients: int = 64) -> Server:
    """Listen on ``config.parties[0]`` and run ``handler(net, name)`` in a thread for each client.

    In every session the server is party 0 and the client party 1. A client that fails ends its own session
    only. An error of the handler that is not a :class:`TradeoffError` is shown as any thread's is.

    Example::

        config = Config(parties=("0.0.0.0:7000", None), tls=TLS.folder("certs"))
        with serve(lambda net, name: net.send(1, net.recv(1)), config) as server:
            server.wait()

    Raises:
        InsecureTransport, ConfigError, PortInUse.
    """
    return Server(handler, config, max_clients)
