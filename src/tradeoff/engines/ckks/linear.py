"""Linear algebra on packed data: what is written into a program for a product, a convolution, a sum.

A matrix acts on a vector as a sum over diagonals, ``y = sum_d diagonal_d * rotate(x, d)`` (Halevi and Shoup,
"Algorithms in HElib", CRYPTO 2014); with baby and giant steps about 2 sqrt(n) rotations do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.ckks.layouts import ChannelTime
from tradeoff.engines.ckks.program import Builder, Slots

Matrix = NDArray[np.float64]


def matrix_product(build: Builder, x: int, matrix: Matrix, *, for_product: bool = False) -> int:
    """``matrix @ x`` for a vector in the first slots, both padded to the builder's period: 1 level.

    Args:
        matrix: (rows, columns), neither above the period.

    Raises:
        ValueError: it does not fit, or is zero.
    """
    period = build.period
    rows, columns = matrix.shape
    if max(rows, columns) > period:
        raise ValueError(f"a {rows} x {columns} matrix does not fit a period of {period}")
    padded = np.zeros((period, period))
    padded[:rows, :columns] = matrix
    slots = np.arange(period)
    diagonals = {d: padded[slots, (slots + d) % period] for d in range(period)}
    diagonals = {d: values for d, values in diagonals.items() if np.any(values)}
    return giant_steps(build, {d: [(x, values)] for d, values in diagonals.items()}, for_product=for_product)


def giant_steps(
    build: Builder, terms: Mapping[int, Sequence[tuple[int, Slots]]], *, for_product: bool = False
) -> int:
    """``sum_d sum_(x, v) v * rotate(x, d)`` with baby and giant steps: 1 level.

    The vectors of a giant step are rotated back beforehand, in the clear.
    """
    period, distances = build.period, sorted(terms)
    baby = max(1, round(len(distances) ** 0.5))
    baby = 1 << (baby - 1).bit_length()
    parts = []
    for giant in sorted({d // baby * baby for d in distances}):
        mine = [
            (build.rotate(x, d - giant), np.roll(vector, giant))
            for d in distances
            if giant <= d < giant + baby
            for x, vector in terms[d]
        ]
        part = build.weighted(mine, for_product=for_product)
        if part is not None:
            parts.append(build.rotate(part, giant % period))
    if not parts:
        raise ValueError("all weights are zero")
    return build.rescale(build.add(parts))


def channel_diagonals(layout: ChannelTime, weight: Matrix, valid: Slots | None = None) -> dict[int, Slots]:
    """Vectors by rotation, in slots, of a product over channels: ``y[o, t] = sum_i weight[o, i] x[i, t]``.

    Rotations are by d * T; with several samples, those that cross into the next sample are two, d and d - C,
    each with the other's part zero.

    Args:
        weight: (out channels, in channels), neither above the layout's room for channels.
        valid: (T,) factors by frame, such as a mask; 1 in the first ``time`` frames if not given.
    """
    channels, time = layout.block
    frames = _valid_frames(layout) if valid is None else valid
    out, into = weight.shape
    blocks = np.zeros((channels, channels))
    blocks[:out, :into] = weight
    found: dict[int, Slots] = {}
    rows = np.arange(channels)
    for d in range(channels):
        column = (rows + d) % channels
        values = blocks[rows, column]
        wrapped = rows + d >= channels
        for shift, chosen in ((d, ~wrapped), (d - channels, wrapped)):
            if layout.batch == 1:
                shift, chosen = d, np.ones(channels, bool)
            part = np.where(chosen, values, 0.0)
            if np.any(part) and (shift * time) % layout.period not in found:
                found[(shift * time) % layout.period] = _over_samples(layout, np.outer(part, frames).ravel())
    return found


def temporal_taps(
    layout: ChannelTime, kernel: NDArray[np.float64], *, stride: int = 1, dilation: int = 1
) -> list[tuple[int, Matrix, Slots]]:
    """The taps of a convolution over time that stays in place: (shift in slots, weight, valid frames).

    Output frames lie at multiples of ``stride * dilation``; taps are ``dilation`` apart. Padding keeps the
    length, and what would come from outside is zero, for which no level is spent.

    Args:
        kernel: (out channels, in channels, taps), an odd number of taps.
        dilation: distance of the input's valid frames, from strides before this one.

    Raises:
        ValueError: an even number of taps.
    """
    taps = kernel.shape[2]
    if taps % 2 == 0:
        raise ValueError(f"a temporal kernel has an odd number of taps, not {taps}")
    _, room = layout.block
    frames = np.arange(room)
    kept = (frames < layout.time) & (frames % (stride * dilation) == 0)
    found = []
    for tap in range(taps):
        shift = (tap - taps // 2) * dilation
        inside = kept & (frames + shift >= 0) & (frames + shift < layout.time)
        found.append((shift, kernel[:, :, tap], inside.astype(np.float64)))
    return found


def temporal_convolution(
    build: Builder,
    layout: ChannelTime,
    x: int,
    kernel: NDArray[np.float64],
    *,
    stride: int = 1,
    dilation: int = 1,
    residual: Sequence[tuple[int, Matrix]] = (),
    for_product: bool = False,
) -> int:
    """A convolution over time of one node: 1 level, taps - 1 and channels - 1 rotations.

    Args:
        kernel: (out channels, in channels, taps).
        residual: (value, matrix (out, in)) whose channel products are added to the result, at no rotation.
    """
    taps = temporal_taps(layout, kernel, stride=stride, dilation=dilation)
    # Rotate by each tap first, then whole partial sums by the channel's distance.
    by_channel: dict[int, list[tuple[int, Slots]]] = {}
    for shift, weight, inside in taps:
        if not (inside.any() and weight.any()):
            continue
        moved = build.rotate(x, shift)
        for distance, vector in channel_diagonals(layout, weight, inside).items():
            by_channel.setdefault(distance, []).append((moved, np.roll(vector, distance)))
    _, room = layout.block
    frames = np.arange(room)
    kept = ((frames < layout.time) & (frames % (stride * dilation) == 0)).astype(np.float64)
    for value, matrix in residual:
        for distance, vector in channel_diagonals(layout, matrix, kept).items():
            by_channel.setdefault(distance, []).append((value, np.roll(vector, distance)))
    consumed = max([build.consumed(x), *(build.consumed(value) for value, _ in residual)])
    parts = []
    for distance, terms in by_channel.items():
        lowered = [(build.lower(value, consumed), vector) for value, vector in terms]
        part = build.weighted(lowered, for_product=for_product)
        if part is not None:
            parts.append(build.rotate(part, distance))
    if not parts:
        raise ValueError("all weights are zero")
    return build.rescale(build.add(parts))


def sum_over_time(build: Builder, layout: ChannelTime, x: int) -> int:
    """The sum over all frames in the first frame of each channel: log2(T) rotations.

    Other frames hold sums of whatever follows them.
    """
    _, room = layout.block
    step = room // 2
    while step:
        x = build.add([x, build.rotate(x, step)])
        step //= 2
    return x


def constant(layout: ChannelTime, values: NDArray[np.float64], valid: Slots | None = None) -> Slots:
    """A vector with ``values`` (channels,) in every valid frame of every sample."""
    channels, _ = layout.block
    frames = _valid_frames(layout) if valid is None else valid
    padded = np.zeros(channels)
    padded[: len(values)] = values
    return _over_samples(layout, np.outer(padded, frames).ravel())


def _valid_frames(layout: ChannelTime) -> Slots:
    _, room = layout.block
    return (np.arange(room) < layout.time).astype(np.float64)


def _over_samples(layout: ChannelTime, block: Slots) -> Slots:
    """One sample's block, repeated for each sample; room for further ones stays zero."""
    vector = np.zeros(layout.period)
    vector[: layout.batch * len(block)] = np.tile(block, layout.batch)
    return vector
