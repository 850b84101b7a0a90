"""The noise of each operation of the scheme.

Standard deviations are of one slot, in the units of the encrypted numbers. A polynomial whose coefficients
have deviation s gives slots of deviation ``s sqrt(N)`` over the scale. The secret is ternary, so 2N/3
coefficients of it are not zero.
"""

from __future__ import annotations

import math

from tradeoff.engines.ckks.parameters import Parameters

ERROR_DEVIATION = 3.2


class NoiseModel:
    """Noise of single operations under given parameters."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._n = parameters.n
        self._slot = math.sqrt(self._n)
        self._rounding = math.sqrt((1 + 2 * self._n / 3) / 12)

    def fresh(self, scale: float) -> float:
        """Of a fresh ciphertext: encoding and encryption error."""
        return math.hypot(self.encoding(scale), ERROR_DEVIATION * self._slot / scale)

    def encoding(self, scale: float) -> float:
        """Of a known vector: its coefficients are rounded."""
        return self._slot / (math.sqrt(12) * scale)

    def rounding(self, scale: float) -> float:
        """Of a rescaled ciphertext, at its new scale."""
        return self._slot * self._rounding / scale

    def switching(self, level: int, scale: float) -> float:
        """Of a rotation or relinearization: digits times the keys' error, over the special prime."""
        primes = self._parameters.primes
        special = primes[-1]
        digits = sum((q / special) ** 2 for q in primes[: level + 1]) * self._n / 12
        deviation = math.hypot(ERROR_DEVIATION * math.sqrt(digits), self._rounding)
        return deviation * self._slot / scale
