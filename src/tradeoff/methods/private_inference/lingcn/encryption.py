"""A folded network as an encrypted program: one ciphertext a joint, sums over neighbors without rotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines import ckks
from tradeoff.engines.ckks import Builder, ChannelTime, Grouped, Program
from tradeoff.engines.ckks.layouts import power_of_two
from tradeoff.engines.ckks.linear import (
    channel_diagonals,
    constant,
    sum_over_time,
    temporal_convolution,
)
from tradeoff.methods.private_inference.lingcn.folding import (
    FoldedActivation,
    FoldedLayer,
    FoldedNetwork,
    Quadratic,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Place:
    """Where values of a layer lie: channels that count, and how far apart frames are that count."""

    layout: ChannelTime
    dilation: int

    def valid(self, stride: int = 1) -> Floats:
        _, room = self.layout.block
        frames = np.arange(room)
        counts = (frames < self.layout.time) & (frames % (self.dilation * stride) == 0)
        return np.asarray(counts, np.float64)


def to_program(network: FoldedNetwork, *, batch: int = 1, fused: bool = True) -> Program:
    """The encrypted program of a network.

    Args:
        batch: sequences that are computed at once.
        fused: False spends two levels on an activation, one of them on its quadratic weight (CryptoGCN).

    Raises:
        DataError, ValueError: a sequence does not fit a ciphertext, or all weights of a layer are zero.
    """
    widths = [network.channels, *(layer.bias.shape[1] for layer in network.layers)]
    layout = ChannelTime(batch, network.channels, network.frames, network.joints, max(widths))
    build = Builder(layout.period)
    values = [build.input(f"joint {joint}") for joint in range(network.joints)]
    place = _Place(layout, 1)
    for index, layer in enumerate(network.layers):
        values, place = _layer(build, place, layer, values, index, fused)
    with build.layer("classifier"):
        outputs, out = _classifier(build, place, network, values)
    return build.finish(outputs, str(layout), str(out))


def _layer(
    build: Builder, place: _Place, layer: FoldedLayer, inputs: Sequence[int], index: int, fused: bool
) -> tuple[list[int], _Place]:
    with build.layer(f"{index} graph"):
        values = _graph(build, place, layer, inputs, fused)
    with build.layer(f"{index} first activation"):
        values = _activate(build, place.layout, layer.first, values, place.valid(), fused)
    after = _Place(place.layout, place.dilation * layer.stride)
    with build.layer(f"{index} time"):
        values = _time(build, place, layer, values, inputs, fused)
    with build.layer(f"{index} second activation"):
        values = _activate(build, place.layout, layer.second, values, after.valid(), fused)
    return build.aligned(values), after


def _graph(
    build: Builder, place: _Place, layer: FoldedLayer, inputs: Sequence[int], fused: bool
) -> list[int]:
    """Sums over edges, one rotation distance after the other: the rotated sources serve all targets."""
    joints = len(inputs)
    diagonals = {
        edge: channel_diagonals(place.layout, matrix, place.valid()) for edge, matrix in layer.edges.items()
    }
    distances = sorted({distance for found in diagonals.values() for distance in found})
    totals: list[int | None] = [None] * joints
    for distance in distances:
        for target in range(joints):
            terms = [
                (build.rotate(inputs[source], distance), found[distance])
                for (source, to), found in diagonals.items()
                if to == target and distance in found
            ]
            part = build.weighted(terms, for_product=fused and layer.first.quadratics[target] is not None)
            if part is not None:
                before = totals[target]
                totals[target] = part if before is None else build.add([before, part])
    return [
        _shifted(
            build,
            place.layout,
            build.rescale(_there(total, "graph")),
            layer.bias[joint][:, None],
            place.valid(),
        )
        for joint, total in enumerate(totals)
    ]


def _time(
    build: Builder,
    place: _Place,
    layer: FoldedLayer,
    values: Sequence[int],
    inputs: Sequence[int],
    fused: bool,
) -> list[int]:
    found = []
    for joint, value in enumerate(values):
        residual = [] if layer.residual is None else [(inputs[joint], layer.residual[joint])]
        result = temporal_convolution(
            build,
            place.layout,
            value,
            layer.kernel[joint],
            stride=layer.stride,
            dilation=place.dilation,
            residual=residual,
            for_product=fused and layer.second.quadratics[joint] is not None,
        )
        found.append(_shifted(build, place.layout, result, layer.bias_time[joint], place.valid(layer.stride)))
    return found


def _activate(
    build: Builder,
    layout: ChannelTime,
    activation: FoldedActivation,
    values: Sequence[int],
    valid: Floats,
    fused: bool,
) -> list[int]:
    channels, _ = layout.block
    ones = np.ones(channels)
    found = []
    for value, quadratic in zip(values, activation.quadratics, strict=True):
        if quadratic is None:
            found.append(value)
        elif fused:
            shifted = build.add_plain(value, constant(layout, quadratic.shift * ones, valid))
            found.append(build.multiply(value, shifted))
        else:
            found.append(_unfused(build, layout, quadratic, value, valid))
    return found


def _unfused(build: Builder, layout: ChannelTime, quadratic: Quadratic, value: int, valid: Floats) -> int:
    """The same value with a level for a known factor: the cost of a weight that is not folded away."""
    channels, _ = layout.block
    ones = np.ones(channels)
    scaled = build.rescaled([(value, constant(layout, ones, valid))], for_product=True)
    return build.multiply(scaled, build.add_plain(scaled, constant(layout, quadratic.shift * ones, valid)))


def _classifier(
    build: Builder, place: _Place, network: FoldedNetwork, values: Sequence[int]
) -> tuple[list[int], Grouped]:
    """Joints are added up, then channels are mixed, then frames are added up, at the last level.

    As many classes as there are channels share a ciphertext.
    """
    layout = place.layout
    channels, room = layout.block
    signs = [int(sign) for sign in network.layers[-1].second.signs]
    total = build.add(values, signs)
    classes = len(network.classifier)
    outputs = []
    for start in range(0, classes, channels):
        rows = network.classifier[start : start + channels]
        terms = [
            (build.rotate(total, distance), vector)
            for distance, vector in channel_diagonals(layout, rows, place.valid()).items()
        ]
        summed = sum_over_time(build, layout, build.rescaled(terms))
        first = (np.arange(room) == 0).astype(np.float64)
        bias = constant(layout, network.classifier_bias[start : start + channels], first)
        outputs.append(build.add_plain(summed, bias))
    group = min(channels, classes)
    return outputs, Grouped(layout.batch, classes, group, channels * room, room)


def _shifted(build: Builder, layout: ChannelTime, value: int, bias: Floats, valid: Floats) -> int:
    """``value`` plus a bias (channels, 1) or (channels, frames that count)."""
    channels, room = layout.block
    block = np.zeros((channels, room))
    block[: len(bias), valid > 0] = bias
    vector = np.zeros(layout.period)
    vector[: layout.batch * block.size] = np.tile(block.ravel(), layout.batch)
    return build.add_plain(value, vector)


def _there(value: int | None, where: str) -> int:
    if value is None:
        raise ValueError(f"{where}: all weights are zero")
    return value


def clip_batch(x: Floats, batch: int) -> tuple[Floats, int]:
    """Sequences (n, channels, frames, joints), n at most ``batch``, filled up with zeros; and n."""
    n = len(x)
    if not 0 < n <= batch:
        raise ValueError(f"{n} sequences for a batch of {batch}")
    filled = np.zeros((batch, *x.shape[1:]))
    filled[:n] = x
    return filled, n


def largest_batch(network: FoldedNetwork, plan: ckks.Plan) -> int:
    """How many sequences the slots of a plan could hold."""
    widths = [network.channels, *(layer.bias.shape[1] for layer in network.layers)]
    block = power_of_two(max(widths)) * power_of_two(network.frames)
    return plan.parameters.slots // block
