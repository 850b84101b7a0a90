"""Errors of the engine; those of the link are in :mod:`tradeoff.engines.transport.errors`."""

from __future__ import annotations

from typing import Any

from tradeoff.core.errors import EngineError, ProtocolError


class _Rebuilt:
    """Pickles an error as its class and the arguments it was made with."""

    _arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


class InsecureParameters(_Rebuilt, EngineError, ValueError):
    """The modulus is too large for the ring: less than 128 bits of security.

    Attributes:
        total_bits: of all primes, special ones included; limit: what the ring degree ``n`` allows.
    """

    def __init__(self, total_bits: int, limit: int, n: int) -> None:
        super().__init__(
            f"a modulus of {total_bits} bits is not secure: the ring of degree {n} allows {limit} at 128 "
            "bits of security; use a smaller scale, fewer levels or a larger ring"
        )
        self._arguments = (total_bits, limit, n)
        self.total_bits, self.limit, self.n = total_bits, limit, n


class NoPrimes(EngineError, ValueError):
    """A ring has too few primes of a size."""


class LevelExhausted(_Rebuilt, EngineError, ValueError):
    """A program needs more levels than there are.

    Attributes:
        operation: what needs them; needed, left: levels.
    """

    def __init__(self, operation: str, needed: int, left: int) -> None:
        super().__init__(f"{operation} needs {needed} levels but {left} are there")
        self._arguments = (operation, needed, left)
        self.operation, self.needed, self.left = operation, needed, left


class ScaleMismatch(_Rebuilt, EngineError, ValueError):
    """Two ciphertexts of different scales or levels were to be added."""

    def __init__(self, operation: str, ours: float, theirs: float) -> None:
        super().__init__(f"{operation}: scales {ours:.17g} and {theirs:.17g} differ")
        self._arguments = (operation, ours, theirs)
        self.operation, self.ours, self.theirs = operation, ours, theirs


class RangeError(_Rebuilt, EngineError, ValueError):
    """A value may leave the range that the modulus can hold at its level.

    Attributes:
        where: the layer; largest: magnitude seen in calibration, margin included; limit: what it must stay
            below.
    """

    def __init__(self, where: str, largest: float, limit: float) -> None:
        super().__init__(
            f"{where}: values reach {largest:.4g} but must stay below {limit:.4g}; scale the network (for "
            "polynomials: clip their weights lower) or take more first_bits"
        )
        self._arguments = (where, largest, limit)
        self.where, self.largest, self.limit = where, largest, limit


class MissingRotationKey(_Rebuilt, EngineError, LookupError):
    """A program rotates by a step for which there is no key."""

    def __init__(self, step: int) -> None:
        super().__init__(f"there is no key for a rotation by {step}: make the keys for this plan")
        self._arguments = (step,)
        self.step = step


class KeysMismatch(EngineError, ValueError):
    """Keys were made for other parameters or rotations than those of the plan."""


class CorruptMessage(ProtocolError, ValueError):
    """A ciphertext, key or message of the other side is damaged or not what the plan says."""


class QuotaExceeded(ProtocolError):
    """A client wants to store more keys at the server than its quota allows."""


class WrongKeyOrNoise(EngineError, ArithmeticError):
    """A decrypted result is out of every range: it belongs to another key, or its noise took over."""


class PrecisionLost(EngineError, ValueError):
    """The noise that makes a result safe to share would leave fewer bits of it than asked for."""
