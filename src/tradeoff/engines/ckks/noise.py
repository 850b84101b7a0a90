"""How far a result can be from the exact one: the noise of each operation, and of a whole program.

Standard deviations are of one slot, in the units of the encrypted numbers. A polynomial whose coefficients
have deviation s gives slots of deviation ``s sqrt(N)`` over the scale. The secret is ternary, so 2N/3
coefficients of it are not zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.ckks.parameters import Parameters
from tradeoff.engines.ckks.program import (
    Add,
    AddPlain,
    Input,
    Lower,
    Multiply,
    Program,
    Rescale,
    Rotate,
    Weighted,
)

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


def deviations(
    program: Program, parameters: Parameters, scales: Sequence[float], largest: Sequence[float]
) -> NDArray[np.float64]:
    """The standard deviation of the noise of every value of a program.

    Args:
        scales: of every value, from :func:`tradeoff.engines.ckks.planning.exact_scales`.
        largest: magnitude of every value, from :func:`tradeoff.engines.ckks.ranges.magnitudes`.
    """
    model = NoiseModel(parameters)
    peaks = [float(np.abs(vector).max(initial=0.0)) for vector in program.vectors]
    found: list[float] = []
    for index, op in enumerate(program.operations):
        level = parameters.depth - program.consumed[index]
        match op:
            case Input():
                noise = model.fresh(scales[index])
            case Rotate():
                noise = math.hypot(found[op.x], model.switching(level, scales[index]))
            case Weighted():
                parts = [
                    math.hypot(found[x] * peaks[v], largest[x] * model.encoding(scales[index] / scales[x]))
                    for x, v in zip(op.xs, op.vectors, strict=True)
                ]
                noise = math.hypot(*parts)
            case Multiply():
                cross = found[op.x] * largest[op.y], found[op.y] * largest[op.x], found[op.x] * found[op.y]
                noise = math.hypot(sum(cross[:2]), cross[2], model.switching(level, scales[index]))
            case Rescale():
                noise = math.hypot(found[op.x], model.rounding(scales[index]))
            case Add():
                noise = math.fsum(found[x] for x in op.xs)  # their noises may be of one source
            case AddPlain():
                noise = math.hypot(found[op.x], model.encoding(scales[index]))
            case Lower():
                noise = found[op.x]
            case _:
                raise AssertionError(op)
        found.append(noise)
    return np.asarray(found)
