"""The noise of each operation of the scheme.

Standard deviations are of the real part of one slot, in the units of the encrypted numbers. A polynomial
whose coefficients have deviation s gives slots of deviation ``s sqrt(N / 2)`` over the scale. The secret is
ternary, so 2N/3 coefficients of it are not zero.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.ckks.parameters import Parameters

ERROR_DEVIATION = 3.2


class NoiseModel:
    """Noise of single operations under given parameters."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._n = parameters.n
        self._slot = math.sqrt(self._n / 2)
        self._rounding = math.sqrt((1 + 2 * self._n / 3) / 12)
        self._switching: dict[tuple[int, int], NDArray[np.float64]] = {}

    def fresh(self, scale: float) -> float:
        """Of a fresh ciphertext: encoding and encryption error."""
        return math.hypot(self.encoding(scale), ERROR_DEVIATION * self._slot / scale)

    def encoding(self, scale: float) -> float:
        """Of a known vector: its coefficients are rounded."""
        return self._slot / (math.sqrt(12) * scale)

    def rounding(self, scale: float) -> float:
        """Of a rescaled ciphertext, at its new scale."""
        return self._slot * self._rounding / scale

    def switching(self, level: int, scale: float, slots: int) -> NDArray[np.float64]:
        """Of a rotation or a relinearization, by slot (the first ``slots``).

        The digits that meet the keys' errors are residues in [0, q), not centered ones. Their mean, the same
        in every coefficient, is largest where the slot's root of unity is near 1: slot 0 gets about sqrt(N)
        times the typical noise. It vanishes with a special prime some bits larger than the others.
        """
        if (level, slots) not in self._switching:
            self._switching[level, slots] = self._digits(level)[:slots]
        return self._switching[level, slots] / scale

    def _digits(self, level: int) -> NDArray[np.float64]:
        *primes, special = self._parameters.primes
        ratio = math.sqrt(sum((q / special) ** 2 for q in primes[: level + 1]))
        centered = math.hypot(ERROR_DEVIATION * ratio * math.sqrt(self._n / 12), self._rounding)
        mean = ERROR_DEVIATION * ratio * _nearness(self._parameters.log_n)
        deviation: NDArray[np.float64] = np.hypot(centered, mean) * self._slot
        return deviation


@lru_cache(maxsize=8)
def _nearness(log_n: int) -> NDArray[np.float64]:
    """By slot, ``1 / |1 - root|`` for its root of unity: slot j has the one to the power of 3^j."""
    n = 1 << log_n
    powers = np.ones(n // 2, np.int64)
    for slot in range(1, n // 2):
        powers[slot] = powers[slot - 1] * 3 % (2 * n)
    nearness: NDArray[np.float64] = 1 / np.abs(1 - np.exp(1j * np.pi * powers / n))
    return nearness
