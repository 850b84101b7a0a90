"""A party of a session over TCP."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tradeoff.engines.transport.accounting import Stats
from tradeoff.engines.transport.config import TLS, Config, parse_address
from tradeoff.engines.transport.endpoint import Endpoint, Outgoing
from tradeoff.engines.transport.errors import (
    AuthError,
    ConfigError,
    HandshakeError,
    InsecureTransport,
    PeerTimeout,
    PortInUse,
)
from tradeoff.engines.transport.failures import announce
from tradeoff.engines.transport.frames import FrameType
from tradeoff.engines.transport.handshake import Greeting, Hello
from tradeoff.engines.transport.link import Link
from tradeoff.engines.transport.tls import (
    NAME,
    certified_name,
    client_context,
    handshake,
    pinned,
    server_context,
)
from tradeoff.engines.transport.transcript import Recorder

_FIRST_RETRY = 0.02
_LAST_RETRY = 0.5
_LOOK_AROUND = 0.2
_LINGER = 0.5
_GREETING_SECONDS = 10.0
"""For a stranger who dials and then says nothing, however long this party is ready to wait for others."""


class Party(Endpoint):
    """One party of a session: linked to every other one when the constructor returns.

    Parties with a higher id dial those with a lower one. The constructor returns when all links of all
    parties are up. Use it as a context manager: leaving says goodbye, an exception is announced (its class
    name, no more) so that the others stop at once with :class:`PeerAborted`.

    Example::

        with Party(Config.load("cluster.toml"), me=1) as net:
            net.send(2, array, tag=7)
            theirs = net.recv(2, tag=7)

    Args:
        config: equal at all parties.
        me: this party's id.
        listener: a socket that listens already, in place of the configured address.
        record: file for a transcript of all frames after the greeting, which reveals all that this party
            sees: only with ``synthetic_inputs=True``.

    Raises:
        InsecureTransport, ConfigError, PortInUse: nothing was tried.
        AuthError, HandshakeError, PlanMismatch, MalformedFrame: with whom we do not go on.
        PeerTimeout, PeerLost, PeerAborted: somebody is not there.
    """

    def __init__(
        self,
        config: Config,
        me: int,
        *,
        listener: socket.socket | None = None,
        record: Path | str | None = None,
        synthetic_inputs: bool = False,
    ) -> None:
        if not 0 <= me < config.n:
            raise ConfigError(f"there is no party {me} among {config.n}")
        if record is not None and not synthetic_inputs:
            raise InsecureTransport(
                "a transcript reveals what this party sees: pass synthetic_inputs=True if none of it is real"
            )
        config.require_secure(me)
        super().__init__(me, config.n, recv_timeout=config.recv_timeout, recv_queue=config.recv_queue)
        self.config = config
        self.session = config.session or (0 if me else secrets.randbits(63) + 1)
        self._links: dict[int, Link] = {}
        self._mailbox.in_flight = lambda peer: self._links[peer].in_flight
        self._mailbox.pull = lambda peer, seconds: self._links[peer].pull(seconds)
        self._mailbox.suspect = self._most_silent
        self._recorder = None if record is None else Recorder(record)
        connector = self._connector(listener)
        try:
            connector.connect()
            self._await_all(connector.left())
        except BaseException as error:
            self.close(error)
            raise
        finally:
            connector.close()

    def stats(self) -> Stats:
        """The counters now."""
        links = self._links
        return self._meter.snapshot(
            wire_sent={peer: link.wire_sent for peer, link in links.items()},
            wire_received={peer: link.wire_received for peer, link in links.items()},
            tls_overhead={peer: link.tls_overhead for peer, link in links.items()},
        )

    def flush(self) -> None:
        """Wait until everything that was sent has left this process."""
        super().flush()
        for peer in self.peers:
            self._links[peer].flush(self.current_scope)

    def close(self, error: BaseException | None = None) -> None:
        """Leave the session; the others learn the class of ``error``, if there is one."""
        self._mailbox.close()
        for link in self._links.values():
            link.close(error)
        for link in self._links.values():
            link.join()
        if self._recorder:
            self._recorder.close()

    def security(self, peer: int) -> dict[str, str]:
        """TLS version, cipher and certified name of a link; empty for one in the clear."""
        return self._links[peer].security

    def _connector(self, listener: socket.socket | None) -> Connector:
        """What brings up the links."""
        return Connector(self, listener)

    def _post(self, to: int, messages: Sequence[Outgoing]) -> None:
        self._links[to].post(messages, self.current_scope)

    def _arrive(self, peer: int) -> None:
        self._links[peer].signal(FrameType.READY)

    def _disconnect(self, peer: int) -> None:
        self._links[peer].close()

    def _most_silent(self, peer: int) -> int:
        """Whom to blame when ``peer`` sends nothing in time: somebody who does not even answer pings."""
        patience = 2 * self.config.ping_interval
        now = time.monotonic()
        silence = {other: now - self._links[other].last_received for other in self.peers}
        if silence.get(peer, 0.0) > patience:
            return peer
        worst = max(silence, key=lambda other: silence[other], default=peer)
        return worst if silence.get(worst, 0.0) > patience else peer


class Connector:
    """Brings up the links of one party."""

    def __init__(self, party: Party, listener: socket.socket | None) -> None:
        self._party = party
        self._config = party.config
        self._deadline = time.monotonic() + party.config.connect_timeout
        self._tls: TLS | None = None
        if party.config.tls:
            self._tls = party.config.tls.of(party.me)
            self._as_server, self._as_client = server_context(self._tls), client_context(self._tls)
        self._listener = listener
        if listener is None and party.me < party.n - 1:
            self._listener = listen(party.config.parties[party.me])

    def connect(self) -> None:
        """Dial the parties before this one, in order, then let those after it dial."""
        for peer in range(self._party.me):
            sock = self._reach(peer)
            self._attempt(sock, peer, partial(self._greet_dialed, peer))
        missing = set(range(self._party.me + 1, self._party.n))
        while missing:
            sock = self._accept(min(missing))
            party = self._attempt(sock, min(missing), partial(self._greet_dialer, missing))
            missing.discard(party)

    def close(self) -> None:
        """Stop listening."""
        if self._listener:
            self._listener.close()

    def left(self) -> float:
        """Seconds until ``connect_timeout``."""
        return max(self._deadline - time.monotonic(), 1e-3)

    def _patience(self, guess: int) -> float:
        """Seconds for a greeting: who was dialed may still wait for others, who dials knows what it wants."""
        return self.left() if guess < self._party.me else min(self.left(), _GREETING_SECONDS)

    def _attempt(self, sock: socket.socket, guess: int, greet: Callable[[socket.socket], int]) -> int:
        """Greet on a fresh connection; close it if that fails."""
        try:
            sock.settimeout(self._patience(guess))
            prepare(sock)
            if self._tls:
                sock = self._secure(sock, guess)
            return greet(sock)
        except PeerTimeout:
            close_gently(sock)
            raise
        except TimeoutError as error:
            close_gently(sock)
            if guess < self._party.me:
                raise self._late(guess, error) from None
            raise PeerTimeout(guess, _GREETING_SECONDS, "", "the greeting of who dialed") from None
        except BaseException:
            close_gently(sock)
            raise

    def _secure(self, sock: socket.socket, guess: int) -> ssl.SSLSocket:
        if guess < self._party.me:
            return handshake(sock, self._as_client, guess)
        return handshake(sock, self._as_server, None)

    def _greet_dialed(self, peer: int, sock: socket.socket) -> int:
        greeting = self._greeting(sock, peer)
        self._identify(sock, {peer}, greeting)
        theirs = greeting.hear()
        greeting.say(FrameType.HELLO, self._hello().encode())
        self._judge(theirs, {peer})
        self._party.session = self._party.session or theirs.session
        self._add(sock, peer, greeting)
        return peer

    def _greet_dialer(self, missing: set[int], sock: socket.socket) -> int:
        greeting = self._greeting(sock, min(missing))
        self._identify(sock, missing, greeting)
        greeting.say(FrameType.HELLO, self._hello().encode())
        theirs = greeting.hear()
        self._judge(theirs, missing)
        self._identify(sock, {theirs.party}, greeting)
        self._add(sock, theirs.party, greeting)
        return theirs.party

    def _identify(self, sock: socket.socket, allowed: set[int], greeting: Greeting) -> None:
        """Refuse a certificate that is of none of the ``allowed`` parties."""
        if not isinstance(sock, ssl.SSLSocket) or self._tls is None:
            return
        name = certified_name(sock)
        if name in {NAME.format(party) for party in allowed} and pinned(sock, self._tls, allowed):
            return
        error = AuthError(f"the certificate of {name!r} is not the one expected", min(allowed))
        greeting.say(FrameType.ERROR, announce(error))
        raise error

    def _greeting(self, sock: socket.socket, peer: int) -> Greeting:
        party = self._party
        deadline = time.monotonic() + self._patience(peer)
        return Greeting(sock, party.me, peer, party.session, deadline, self._config.max_message)

    def _judge(self, theirs: Hello, expected: set[int]) -> None:
        self._hello().agree(theirs)
        if theirs.party not in expected:
            wanted = "one of " + ", ".join(map(str, sorted(expected)))
            raise HandshakeError("party", wanted, theirs.party)
        if not (theirs.session or self._party.session):
            raise HandshakeError("session", "an id", "none")

    def _add(self, sock: socket.socket, peer: int, greeting: Greeting) -> None:
        party = self._party
        link = Link(
            sock,
            party.me,
            peer,
            party.session,
            party.config,
            party._mailbox,
            greeting.parser,
            greeting.extra,
            (greeting.sent, greeting.received),
            party._recorder,
        )
        party._links[peer] = link
        link.start()

    def _hello(self) -> Hello:
        config = self._config
        return Hello(
            self._party.session, self._party.me, config.n, config.program, tuple(config.capabilities)
        )

    def _reach(self, peer: int) -> socket.socket:
        address = parse_address(self._config.parties[peer] or "")
        pause = _FIRST_RETRY
        while True:
            self._party._mailbox.check_all()
            try:
                return socket.create_connection(address, timeout=self.left())
            except OSError as error:
                if time.monotonic() + pause >= self._deadline:
                    raise self._late(peer, error) from error
            time.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY)

    def _accept(self, guess: int) -> socket.socket:
        listener = self._listener
        assert listener is not None
        while True:
            self._party._mailbox.check_all()
            listener.settimeout(min(self.left(), _LOOK_AROUND))
            try:
                return listener.accept()[0]
            except TimeoutError as error:
                if time.monotonic() >= self._deadline:
                    raise self._late(guess, error) from None

    def _late(self, peer: int, error: OSError) -> PeerTimeout:
        address = self._config.parties[peer] or "its address"
        seconds = self._config.connect_timeout
        return PeerTimeout(peer, seconds, "", f"the connection ({address}: {error})")


def listen(address: str | None) -> socket.socket:
    """A listening socket on ``host:port`` (port 0: any free one).

    Raises:
        PortInUse: somebody listens there, or the address is not of this host.
    """
    host, port = parse_address(address or "")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise PortInUse(f"cannot listen on port {port} of {host}: {why}") from error
    return sock


def close_gently(sock: socket.socket) -> None:
    """Close so that what was sent arrives: unread bytes would make the kernel reset the connection."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        deadline = time.monotonic() + _LINGER
        while (left := deadline - time.monotonic()) > 0:  # it may go on sending for ever
            sock.settimeout(left)
            if not socket.socket.recv(sock, 4096):
                break
    sock.close()


def prepare(sock: socket.socket) -> None:
    """Send small messages at once, and notice dead connections."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
