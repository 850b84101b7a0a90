"""What can go wrong between parties: one class an event, so that a caller can tell them apart.

Every class keeps its facts as attributes and can be pickled, because a launcher hands the error of a child
process to its caller.
"""

from __future__ import annotations

from typing import Any

from tradeoff.core.errors import EngineError, ProtocolError

__all__ = [
    "AuthError",
    "ConfigError",
    "HandshakeError",
    "InsecureTransport",
    "KeysExist",
    "MalformedFrame",
    "PeerAborted",
    "PeerError",
    "PeerLost",
    "PeerTimeout",
    "PlanMismatch",
    "PortInUse",
    "RemoteFailure",
    "UnexpectedMessage",
    "UnsupportedArray",
]


class _Rebuilt:
    """Pickles an error as its class and the arguments it was made with."""

    _arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


class ConfigError(EngineError, ValueError):
    """A configuration has an unknown key, a missing one or a value out of range."""


class InsecureTransport(ConfigError):
    """Traffic in the clear was asked for where somebody else could read it."""


class PortInUse(EngineError, OSError):
    """A party cannot listen on its address; the message names the port."""


class KeysExist(ConfigError, FileExistsError):
    """A key or certificate file is there already; none is ever overwritten."""


class UnsupportedArray(EngineError, TypeError):
    """An array of this dtype or with this many dimensions cannot be sent."""


class PeerError(_Rebuilt, ProtocolError):
    """Something happened with one peer.

    Attributes:
        peer: the party it happened with.
    """

    peer: int


class PeerLost(PeerError, ConnectionError):
    """The connection to a peer is gone: it was killed, crashed, left or was dropped."""

    def __init__(self, peer: int, scope: str = "", detail: str = "connection closed") -> None:
        super().__init__(f"party {peer} is gone{_within(scope)}: {detail}")
        self._arguments = (peer, scope, detail)
        self.peer, self.scope, self.detail = peer, scope, detail


class PeerTimeout(PeerError, TimeoutError):
    """A peer said nothing (or took nothing) for longer than allowed."""

    def __init__(self, peer: int, seconds: float, scope: str = "", waiting_for: str = "a message") -> None:
        super().__init__(f"waited {seconds:g} s for {waiting_for} of party {peer}{_within(scope)}")
        self._arguments = (peer, seconds, scope, waiting_for)
        self.peer, self.seconds, self.scope, self.waiting_for = peer, seconds, scope, waiting_for


class PeerAborted(PeerError, ConnectionAbortedError):
    """A peer's own code raised an error.

    Attributes:
        reason: the class name of the peer's error; no more of it crosses the network.
    """

    def __init__(self, peer: int, reason: str) -> None:
        super().__init__(f"party {peer} stopped with {reason}")
        self._arguments = (peer, reason)
        self.peer, self.reason = peer, reason


class MalformedFrame(PeerError):
    """A peer sent bytes that are no valid frame, or a frame out of sequence; its link is closed."""

    def __init__(self, peer: int, what: str) -> None:
        super().__init__(f"party {peer} sent a malformed frame: {what}")
        self._arguments = (peer, what)
        self.peer, self.what = peer, what


class UnexpectedMessage(PeerError):
    """A well-formed message came where the protocol expects another one."""

    def __init__(self, peer: int, expected: str, got: str, scope: str = "") -> None:
        super().__init__(f"expected {expected} from party {peer}{_within(scope)}, got {got}")
        self._arguments = (peer, expected, got, scope)
        self.peer, self.expected, self.got, self.scope = peer, expected, got, scope


class HandshakeError(_Rebuilt, ProtocolError):
    """Two parties do not agree on what they are about to run.

    Attributes:
        field: the field of the greeting that differs; ours, theirs: both values.
    """

    def __init__(self, field: str, ours: Any, theirs: Any) -> None:
        super().__init__(f"parties disagree on {field}: here {ours!r}, there {theirs!r}")
        self._arguments = (field, ours, theirs)
        self.field, self.ours, self.theirs = field, ours, theirs


class PlanMismatch(HandshakeError):
    """The parties compiled different programs."""


class AuthError(_Rebuilt, ProtocolError, PermissionError):
    """A certificate is missing, unknown, expired or of another party, or the peer refused ours."""

    def __init__(self, message: str, peer: int | None = None) -> None:
        who = "" if peer is None else f"party {peer}: "
        super().__init__(who + message)
        self._arguments = (message, peer)
        self.peer = peer


class RemoteFailure(EngineError):
    """A party's process ended without an answer, or with an error that cannot be carried over."""


def _within(scope: str) -> str:
    return f" in {scope}" if scope else ""
