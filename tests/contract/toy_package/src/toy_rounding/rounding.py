"""Rounding to a grid of a few bits."""

import numpy as np
from numpy.typing import NDArray


def round_to_bits(values: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """The nearest of ``2**bits`` evenly spaced points of [0, 1]."""
    steps = 2**bits - 1
    return np.round(values * steps) / steps
