"""Windows of pooling, and the tournament that finds their maxima: what private engines share."""

from collections.abc import Sequence
from itertools import product as positions
from typing import Any

import numpy as np
from numpy.typing import NDArray


def windows(
    x: NDArray[Any],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    pad: int,
) -> list[NDArray[Any]]:
    """The operands of every window of x (batch, channels, ...): one array of the output's shape for each
    position.

    Args:
        pad: what stands outside, as an element.
    """
    if any(padding):
        widths = [(0, 0), (0, 0), *((p, p) for p in padding)]
        x = np.pad(x, widths, constant_values=x.dtype.type(pad))
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    taps = []
    for offsets in positions(*(range(0, k * d, d) for k, d in zip(kernel, dilation, strict=True))):
        slices = [slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offsets, sizes, stride, strict=True)]
        taps.append(x[(slice(None), slice(None), *slices)])
    return taps


def levels(operands: int) -> list[int]:
    """How many pairs each level of a tournament compares; an odd operand goes on to the next level."""
    pairs = []
    while operands > 1:
        pairs.append(operands // 2)
        operands -= operands // 2
    return pairs
