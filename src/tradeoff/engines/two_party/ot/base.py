"""Base oblivious transfers of random keys, over the prime-order subgroup of edwards25519.

T. Chou and C. Orlandi, "The Simplest Protocol for Oblivious Transfer", LATINCRYPT 2015, against semi-honest
parties: the sender publishes A = aG; for the choice bit c the receiver answers B = bG + cA; the keys are
K_0 = H(aB) and K_1 = H(a(B - A)), of which the receiver knows H(bA) = K_c. libsodium computes on the curve
(PyNaCl), nothing here does.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import EngineError, MissingExtra, ProtocolError
from tradeoff.engines.transport.prg import SEED_BYTES

if TYPE_CHECKING:
    from types import ModuleType

POINT_BYTES = 32


class BaseSender:
    """Knows both keys of every transfer.

    Args:
        context: what the keys are bound to (the session), equal at both parties.
    """

    def __init__(self, context: bytes) -> None:
        self._curve = _curve()
        self._context = context
        self._scalar = _random_scalar(self._curve)
        self._public: bytes = self._curve.crypto_scalarmult_ed25519_base_noclamp(self._scalar)

    @property
    def message(self) -> bytes:
        """The first message: a point."""
        return self._public

    def keys(self, answer: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Both keys of each transfer, from the receiver's answer.

        Raises:
            ProtocolError: the answer is not ``count`` points of the group.
        """
        curve, pairs = self._curve, []
        for index, point in enumerate(_points(curve, answer, count)):
            shifted = curve.crypto_core_ed25519_sub(point, self._public)
            pairs.append(
                tuple(self._key(index, point, _times(curve, self._scalar, each)) for each in (point, shifted))
            )
        return pairs  # type: ignore[return-value]

    def _key(self, index: int, point: bytes, shared: bytes) -> bytes:
        return _key(self._context, index, self._public, point, shared)


class BaseReceiver:
    """Knows one key of every transfer.

    Args:
        context: as at the sender.
        choices: one bit a transfer.
        message: the sender's point.

    Raises:
        ProtocolError: the message is not a point of the group.
    """

    def __init__(self, context: bytes, choices: NDArray[np.bool_], message: bytes) -> None:
        curve = _curve()
        (public,) = _points(curve, message, 1)
        self.answer = b""
        self.keys: list[bytes] = []
        for index, choice in enumerate(choices):
            scalar = _random_scalar(curve)
            point = curve.crypto_scalarmult_ed25519_base_noclamp(scalar)
            # Both are computed so that the time does not tell which is sent.
            point = (point, curve.crypto_core_ed25519_add(point, public))[int(choice)]
            self.answer += point
            self.keys.append(_key(context, index, public, point, _times(curve, scalar, public)))


def _key(context: bytes, index: int, public: bytes, point: bytes, shared: bytes) -> bytes:
    data = index.to_bytes(4, "little") + public + point + shared + context
    return hashlib.blake2b(data, digest_size=SEED_BYTES, person=b"tradeoff-base-ot").digest()


def _curve() -> ModuleType:
    try:
        from nacl import bindings
    except ImportError as error:
        raise MissingExtra("nacl", "private") from error
    if not (bindings.has_crypto_core_ed25519 and bindings.has_crypto_scalarmult_ed25519):
        raise EngineError("this libsodium is a minimal build without edwards25519; install PyNaCl's wheel")
    return bindings


def _random_scalar(curve: Any) -> bytes:
    scalar: bytes = curve.crypto_core_ed25519_scalar_reduce(secrets.token_bytes(64))
    return scalar


def _times(curve: Any, scalar: bytes, point: bytes) -> bytes:
    """The multiple of a point; B = A is the neutral element's case, which libsodium refuses."""
    try:
        result: bytes = curve.crypto_scalarmult_ed25519_noclamp(scalar, point)
    except RuntimeError:
        raise ProtocolError("a base oblivious transfer hit a point of small order") from None
    return result


def _points(curve: Any, message: bytes, count: int) -> list[bytes]:
    if len(message) != count * POINT_BYTES:
        raise ProtocolError(f"{count} points have {count * POINT_BYTES} bytes, not {len(message)}")
    points = [message[i : i + POINT_BYTES] for i in range(0, len(message), POINT_BYTES)]
    if not all(curve.crypto_core_ed25519_is_valid_point(point) for point in points):
        raise ProtocolError("a base oblivious transfer holds a point that is not of the group")
    return points
