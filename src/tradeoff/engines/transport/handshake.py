"""The greeting on a fresh connection: both sides say what they are about to run and refuse what differs."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

import tradeoff
from tradeoff.core.errors import EngineError
from tradeoff.engines.transport.errors import (
    AuthError,
    HandshakeError,
    MalformedFrame,
    PeerLost,
    PeerTimeout,
    PlanMismatch,
)
from tradeoff.engines.transport.failures import announce, understand
from tradeoff.engines.transport.frames import (
    UNAUTHENTICATED_LIMIT,
    Frame,
    FrameError,
    FrameParser,
    FrameType,
    encode_header,
    encode_json,
)

PROTOCOL = 1
_FIELDS = {
    "protocol": int,
    "library": str,
    "session": int,
    "party": int,
    "parties": int,
    "program": str,
    "capabilities": list,
}


@dataclass(frozen=True)
class Hello:
    """What a party says about itself and the session; ``session`` 0 means that it waits to be told."""

    session: int
    party: int
    parties: int
    program: str
    capabilities: tuple[str, ...] = ()
    protocol: int = PROTOCOL
    library: str = tradeoff.__version__

    def encode(self) -> dict[str, Any]:
        """The contents of the HELLO frame."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def decode(cls, contents: dict[str, Any]) -> Hello:
        """Read the contents of a HELLO frame.

        Raises:
            FrameError: a key is missing, unknown or has a value of a wrong type.
        """
        if set(contents) != set(_FIELDS):
            raise FrameError("HELLO without the expected keys")
        for name, kind in _FIELDS.items():
            if type(contents[name]) is not kind:
                raise FrameError(f"HELLO with a {name} of a wrong type")
        if not all(isinstance(name, str) for name in contents["capabilities"]):
            raise FrameError("HELLO with a capability that is no text")
        if not 0 <= contents["session"] < 1 << 64:
            raise FrameError("HELLO with a session id out of range")
        return cls(**{**contents, "capabilities": tuple(contents["capabilities"])})

    def agree(self, theirs: Hello) -> None:
        """Compare every field that must be equal.

        Raises:
            PlanMismatch: the programs differ. HandshakeError: another field does.
        """
        for name in ("protocol", "library", "parties", "capabilities"):
            _compare(HandshakeError, name, getattr(self, name), getattr(theirs, name))
        _compare(PlanMismatch, "program", self.program, theirs.program)
        if self.session and theirs.session:
            _compare(HandshakeError, "session", f"{self.session:016x}", f"{theirs.session:016x}")


class Greeting:
    """The frames before a link runs by itself: one HELLO each way.

    Attributes:
        parser: carries on with the link; extra: frames that arrived with the HELLO.
        sent, received: bytes so far.
    """

    def __init__(
        self, sock: socket.socket, me: int, peer: int, session: int, deadline: float, max_message: int
    ) -> None:
        self.parser = FrameParser(max_message)
        self.extra: list[Frame] = []
        self.session = session
        self.sent = 0
        self.received = 0
        self._sock = sock
        self._me = me
        self._peer = peer
        self._said = 0
        self._began = time.monotonic()
        self._deadline = deadline

    def say(self, kind: FrameType, contents: dict[str, Any]) -> None:
        """Send a HELLO or ERROR frame."""
        payload = encode_json(contents)
        header = encode_header(kind, session=self.session, sequence=self._said, length=len(payload))
        frame = header + payload
        self._said += 1
        self._sock.settimeout(max(self._deadline - time.monotonic(), 1e-3))
        try:
            self._sock.sendall(frame)
        except ssl.SSLError as error:
            raise AuthError(f"it closed the TLS connection: {error.reason or error}", self._peer) from error
        except TimeoutError:
            raise self._late() from None
        except ConnectionError as error:
            raise PeerLost(self._peer, "the handshake", str(error)) from error
        self.sent += len(frame)

    def hear(self) -> Hello:
        """Wait for the peer's HELLO.

        Raises:
            AuthError, MalformedFrame, PeerLost, PeerTimeout, PeerAborted.
        """
        while not self.extra:
            space = self.parser.buffer()
            self._sock.settimeout(max(self._deadline - time.monotonic(), 1e-3))
            try:
                count = self._sock.recv_into(space)
            except ssl.SSLError as error:
                raise AuthError(f"it refuses our certificate: {error.reason or error}", self._peer) from error
            except TimeoutError:
                raise self._late() from None
            except ConnectionError as error:
                raise PeerLost(self._peer, "the handshake", str(error)) from error
            if not count:
                raise PeerLost(self._peer, "the handshake")
            self.received += count
            self._parse(count)
        return self._first()

    def _parse(self, count: int) -> None:
        limit, self.parser.max_message = self.parser.max_message, UNAUTHENTICATED_LIMIT
        try:
            self.extra = self.parser.advance(count)
        except FrameError as error:
            raise self._malformed(error) from error
        finally:
            self.parser.max_message = limit

    def _first(self) -> Hello:
        frame = self.extra.pop(0)
        try:
            if frame.type is FrameType.ERROR:
                raise understand(self._me, self._peer, frame.value, 0.0)("the handshake")
            if frame.type is not FrameType.HELLO:
                raise FrameError(f"{frame.type.name} before HELLO")
            hello = Hello.decode(frame.value)
            if frame.session != hello.session:
                raise FrameError("HELLO of two sessions")
            return hello
        except FrameError as error:
            raise self._malformed(error) from error

    def _malformed(self, error: FrameError) -> MalformedFrame:
        """Tell the peer, if it still listens, and make the error to raise here."""
        malformed = MalformedFrame(self._peer, str(error))
        with contextlib.suppress(EngineError):
            self.say(FrameType.ERROR, announce(malformed))
        return malformed

    def _late(self) -> PeerTimeout:
        return PeerTimeout(self._peer, time.monotonic() - self._began, "the handshake", "the greeting")


def _compare(kind: type[HandshakeError], name: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise kind(name, ours, theirs)
