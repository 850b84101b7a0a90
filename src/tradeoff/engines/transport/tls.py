"""TLS 1.3 with certificates on both sides, and the keys for it."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Collection
from typing import Any

from tradeoff.engines.transport.config import TLS
from tradeoff.engines.transport.errors import AuthError, ConfigError

NAME = "party-{}"
"""The name that a party's certificate carries."""


def server_context(tls: TLS) -> ssl.SSLContext:
    """For the side that was dialed: demands a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _prepare(context, tls)


def client_context(tls: TLS) -> ssl.SSLContext:
    """For the side that dials: demands a certificate of the authority with the name of the party dialed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return _prepare(context, tls)


def handshake(sock: socket.socket, context: ssl.SSLContext, peer: int | None) -> ssl.SSLSocket:
    """Run the TLS handshake on a connected socket that has a timeout.

    Args:
        peer: the party that was dialed, or None on the side that was.

    Raises:
        AuthError: the certificates of either side are not what they should be.
        TimeoutError: the other side does not answer.
    """
    try:
        name = None if peer is None else NAME.format(peer)
        return context.wrap_socket(sock, server_side=peer is None, server_hostname=name)
    except ssl.SSLError as error:
        raise AuthError(f"TLS handshake failed: {error.reason or error}", peer) from error
    except ConnectionError as error:
        raise AuthError(f"TLS handshake was cut off: {error}", peer) from error


def pinned(secure: ssl.SSLSocket, tls: TLS, peers: Collection[int]) -> bool:
    """Whether the certificate is the pinned one of one of ``peers``; so is every one if none are pinned."""
    if tls.pins is None:
        return True
    certificate = secure.getpeercert(binary_form=True) or b""
    digest = hashlib.sha256(certificate).hexdigest()
    return digest in {tls.pins.get(peer) for peer in peers}


def certified_name(secure: ssl.SSLSocket) -> str:
    """The name in the peer's verified certificate."""
    certificate: dict[str, Any] = dict(secure.getpeercert() or {})
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return str(names[0]) if names else ""


def describe_security(sock: socket.socket) -> dict[str, str]:
    """TLS version, cipher and the peer's certified name; empty for a plain socket."""
    if not isinstance(sock, ssl.SSLSocket):
        return {}
    cipher = sock.cipher()
    return {
        "version": sock.version() or "",
        "cipher": cipher[0] if cipher else "",
        "name": certified_name(sock),
    }


def _prepare(context: ssl.SSLContext, tls: TLS) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if tls.pins is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=str(tls.authority))
        context.load_cert_chain(str(tls.certificate), str(tls.key))
    except (OSError, ssl.SSLError) as error:
        files = f"{tls.authority}, {tls.certificate}, {tls.key}"
        raise ConfigError(f"cannot load the TLS files {files}: {error}") from None
    return context
