"""How large values get, from typical inputs, and whether the modulus holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.ckks.errors import RangeError
from tradeoff.engines.ckks.parameters import Parameters
from tradeoff.engines.ckks.planning import exact_scales
from tradeoff.engines.ckks.program import Program, Slots
from tradeoff.engines.ckks.reference import values

MARGIN = 4.0
"""Calibrated magnitudes are multiplied by this: unseen inputs may go beyond what was seen."""


def magnitudes(program: Program, samples: Sequence[Mapping[str, Slots]]) -> NDArray[np.float64]:
    """The largest magnitude of every value over inputs."""
    largest = np.zeros(len(program.operations))
    for inputs in samples:
        found = values(program, inputs)
        largest = np.maximum(largest, [np.abs(value).max() for value in found])
    return largest


def check_ranges(program: Program, parameters: Parameters, largest: NDArray[np.float64]) -> None:
    """Refuse parameters whose modulus a value, times its scale, may exceed.

    Raises:
        RangeError: the layer, the magnitude with its margin, and the limit.
    """
    logs = np.cumsum(np.log2(np.asarray(parameters.primes[:-1], np.float64)))
    for index, scale in enumerate(exact_scales(program, parameters)):
        level = parameters.depth - program.consumed[index]
        room = logs[level] - math.log2(scale) - 1
        value = largest[index] * MARGIN
        if value > 0 and math.log2(value) >= room:
            raise RangeError(program.operations[index].layer or "the program", value, 2.0**room)


def output_bound(program: Program, largest: NDArray[np.float64]) -> float:
    """The largest magnitude of a result, margin included."""
    return MARGIN * float(max(largest[index] for index in program.outputs))
