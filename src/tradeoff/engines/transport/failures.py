"""How a failure travels: what a party tells the others, and what they make of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tradeoff.engines.transport.errors import AuthError, PeerAborted, PeerError, PeerLost, PeerTimeout
from tradeoff.engines.transport.frames import FrameError
from tradeoff.engines.transport.mailbox import MakeError

_REASON = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CONSEQUENCES = (PeerLost, PeerTimeout, PeerAborted)


def announce(error: BaseException) -> dict[str, Any]:
    """The contents of the ERROR frame for a local error: its class and whom it blames, never its text."""
    peer = error.peer if isinstance(error, PeerError | AuthError) else None
    return {"reason": type(error).__name__[:64], "peer": peer}


def understand(me: int, reporter: int, announced: dict[str, Any], seconds: float) -> MakeError:
    """The error that another party's ERROR frame means here.

    A lost or silent third party is reported as such by everybody, whoever noticed first.

    Args:
        seconds: the receive timeout, which the parties of a session share.

    Raises:
        FrameError: the contents are not what :func:`announce` makes.
    """
    reason, peer = announced.get("reason"), announced.get("peer")
    well_formed = set(announced) == {"reason", "peer"} and isinstance(reason, str)
    if not well_formed or not _REASON.fullmatch(str(reason)):
        raise FrameError("ERROR without the expected contents")
    if peer is not None and (type(peer) is not int or not 0 <= peer <= 0xFFFF):
        raise FrameError("ERROR that blames no party")
    if reason == "PeerLost" and peer not in (None, me):
        return lambda scope: PeerLost(peer, scope, f"party {reporter} says so")
    if reason == "PeerTimeout" and peer not in (None, me):
        return lambda scope: PeerTimeout(peer, seconds, scope)
    if reason == "AuthError" and peer not in (None, me):
        return lambda _: AuthError(f"party {reporter} refuses its certificate", peer)
    if reason == "AuthError":
        return lambda _: AuthError("it refuses our certificate", reporter)
    return lambda _: PeerAborted(reporter, str(reason))


def root_cause(errors: Iterable[BaseException]) -> BaseException:
    """The error that explains the others: of errors in order of time the first that no peer caused."""
    in_time = list(errors)
    return next((error for error in in_time if not isinstance(error, _CONSEQUENCES)), in_time[0])
