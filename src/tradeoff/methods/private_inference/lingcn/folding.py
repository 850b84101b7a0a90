"""From a trained network to plain linear maps and products of one level, exactly.

Normalizations go into convolutions. A quadratic ``a x^2 + w1 x + b`` costs one level: the convolution before
it is scaled by ``r = sqrt|a|``, so that ``x' = r x`` comes, and with ``z = x' (x' + sign(a) w1 / r)`` the
result is ``sign(a) z + b``, whose sign and constant go into whatever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tradeoff.core.errors import EngineError
from tradeoff.methods.private_inference.lingcn.activations import GatedActivation
from tradeoff.methods.private_inference.lingcn.network import STGCN, Layer

Floats = NDArray[np.float64]
NEGLIGIBLE = 1e-7
"""A quadratic weight below this is left out: its joint is linear."""


class StructuralError(EngineError, ValueError):
    """Joints of one layer use different numbers of levels."""


@dataclass(frozen=True)
class Quadratic:
    """``z = x (x + shift)`` at one joint; the value is ``sign * z + constant``."""

    shift: float
    sign: int
    constant: float


@dataclass(frozen=True)
class FoldedActivation:
    """One activation position.

    Attributes:
        scale: by joint, what the convolution before it is multiplied by.
        quadratics: by joint, or None where the value passes; sign and constant then are 1 and ``constant``.
        constant: by joint, added to the value where it passes.
        slope: by joint, of the quadratic over the scale: how much it amplifies absolute noise.
    """

    scale: Floats
    quadratics: tuple[Quadratic | None, ...]
    constant: Floats

    @property
    def signs(self) -> Floats:
        """Of the value of each joint."""
        return np.array([1.0 if q is None else q.sign for q in self.quadratics])

    @property
    def constants(self) -> Floats:
        """Added to the signed value of each joint."""
        return np.array(
            [c if q is None else q.constant for q, c in zip(self.quadratics, self.constant, strict=True)]
        )

    @property
    def active(self) -> NDArray[np.bool_]:
        """Joints that use a level."""
        return np.array([q is not None for q in self.quadratics])


@dataclass(frozen=True)
class FoldedLayer:
    """One layer on carriers: values of which the true ones are ``sign * carrier + constant``, by joint.

    Attributes:
        edges: (source, target) with a matrix (out, in) each; bias: (joints, out).
        first, second: activation positions.
        kernel: (joints, out, in, taps) over time; bias_time: (joints, out, frames), which takes the zeros
            beyond the ends of a sequence into account; stride: of time.
        residual: (joints, out, in) on the layer's input, None for none.
    """

    edges: dict[tuple[int, int], Floats]
    bias: Floats
    first: FoldedActivation
    kernel: Floats
    bias_time: Floats
    stride: int
    residual: Floats | None
    second: FoldedActivation


@dataclass(frozen=True)
class FoldedNetwork:
    """A network as plain arrays of 64-bit numbers; every step is linear, or a product of a value with itself.

    Attributes:
        input_scale, input_shift: (joints, channels): the normalization of the input, inside the first layer.
        classifier: (classes, channels), with the mean over joints and frames; classifier_bias: (classes,).
        joints, frames, channels: of the input.
    """

    layers: tuple[FoldedLayer, ...]
    classifier: Floats
    classifier_bias: Floats
    joints: int
    frames: int
    channels: int
    levels: tuple[int, ...] = field(default=())

    @property
    def activation_levels(self) -> int:
        """k: activation levels that the network costs."""
        return sum(self.levels)

    @property
    def depth(self) -> int:
        """Levels under encryption: two convolutions a layer, its activations, the classifier."""
        return 2 * len(self.layers) + self.activation_levels + 1

    def evaluate(self, x: Floats) -> Floats:
        """Logits (batch, classes) of (batch, channels, frames, joints), step by step: the reference."""
        value = np.asarray(x, np.float64)
        for layer in self.layers:
            value = _evaluate_layer(layer, value)
        signed = value * self.layers[-1].second.signs
        pooled = signed.sum(axis=(2, 3))
        logits: Floats = pooled @ self.classifier.T + self.classifier_bias
        return logits


def fold(network: STGCN, frames: int, *, structural: bool = True) -> FoldedNetwork:
    """Fold a network whose ReLUs are replaced.

    Args:
        frames: of a sequence.
        structural: False accepts joints with different numbers of activations: all then wait for the slowest.

    Raises:
        ValueError: it has ReLUs still, or no frame is left for the classifier.
        StructuralError: joints of a layer use different numbers of levels.
    """
    if not network.is_polynomial:
        raise ValueError("the network has ReLUs: replace them with polynomialize first")
    if frames < 1:
        raise ValueError(f"a sequence has frames, not {frames}")
    network = network.eval()
    joints, channels = network.skeleton.nodes, network.shape.in_channels
    scale, shift = (row.reshape(joints, channels) for row in _affine(network.input_norm))
    signs, constants = scale, shift  # what a layer's input truly is: signs * carrier + constants, by channel
    layers: list[FoldedLayer] = []
    levels: list[int] = []
    left = frames
    for index, layer in enumerate(network._layers()):
        folded = _fold_layer(layer, signs, constants, left)
        levels.append(_levels(folded, index, structural))
        layers.append(folded)
        left = -(-left // folded.stride)
        out = folded.bias.shape[1]
        signs = np.repeat(folded.second.signs[:, None], out, axis=1)
        constants = np.repeat(folded.second.constants[:, None], out, axis=1)
    weight, bias = _numpy(network.classifier.weight), _numpy(network.classifier.bias)
    mean = weight / (joints * left)
    # Constants do not depend on the frame: their mean over joints passes the classifier as it is.
    constant = weight @ np.full(weight.shape[1], layers[-1].second.constants.mean()) + bias
    return FoldedNetwork(tuple(layers), mean, constant, joints, frames, channels, tuple(levels))


def _levels(layer: FoldedLayer, index: int, structural: bool) -> int:
    """Activation levels of a layer, equal for all joints where the network is structural."""
    counts = layer.first.active.astype(int) + layer.second.active.astype(int)
    if structural and len(set(counts.tolist())) > 1:
        groups = {int(c): np.flatnonzero(counts == c).tolist() for c in sorted(set(counts.tolist()))}
        said = "; ".join(f"{count}: joints {', '.join(map(str, who))}" for count, who in groups.items())
        raise StructuralError(f"layer {index}: joints have different numbers of activations ({said})")
    return int(counts.max())


def _fold_layer(layer: Layer, signs: Floats, constants: Floats, frames: int) -> FoldedLayer:
    gates = _numpy(layer.gates())
    first, second = (
        _activation(site, gate) for site, gate in zip((layer.first, layer.second), gates, strict=True)
    )
    edges, bias = _fold_graph(layer, signs, constants, first.scale)
    kernel, bias_time = _fold_time(layer, first, second.scale, frames)
    residual, more = _fold_residual(layer, signs, constants, second.scale)
    if more is not None:
        bias_time = bias_time + more[:, :, None]
    stride = int(layer.temporal.stride[0])
    return FoldedLayer(edges, bias, first, kernel, bias_time, stride, residual, second)


def _fold_graph(
    layer: Layer, signs: Floats, constants: Floats, scale: Floats
) -> tuple[dict[tuple[int, int], Floats], Floats]:
    """A matrix for each edge: the three kinds of edges do not overlap, so each has one."""
    adjacency = _numpy(layer.adjacency * layer.importance)
    kinds, joints, _ = adjacency.shape
    gain, offset = _affine(layer.spatial_norm)
    out = len(gain)
    weight = _numpy(layer.spatial.weight).reshape(kinds, out, -1) * gain[None, :, None]
    own = _numpy(layer.spatial.bias).reshape(kinds, out) * gain
    bias = np.repeat(offset[None], joints, axis=0)
    edges: dict[tuple[int, int], Floats] = {}
    for kind in range(kinds):
        for source, target in np.argwhere(adjacency[kind]):
            matrix = adjacency[kind, source, target] * weight[kind]
            bias[target] += matrix @ constants[source] + adjacency[kind, source, target] * own[kind]
            scaled = scale[target] * matrix * signs[source]
            key = int(source), int(target)
            edges[key] = edges[key] + scaled if key in edges else scaled
    return edges, bias * scale[:, None]


def _fold_time(layer: Layer, first: FoldedActivation, scale: Floats, frames: int) -> tuple[Floats, Floats]:
    gain, offset = _affine(layer.temporal_norm)
    weight = _numpy(layer.temporal.weight)[..., 0] * gain[:, None, None]  # (out, in, taps)
    own = _numpy(layer.temporal.bias) * gain + offset
    taps, stride = weight.shape[2], int(layer.temporal.stride[0])
    kept = np.arange(0, frames, stride)
    # Frames beyond the ends are zero, and not the constant that every frame inside has.
    inside = np.stack([(kept + k - taps // 2 >= 0) & (kept + k - taps // 2 < frames) for k in range(taps)])
    reached = weight.sum(axis=1) @ inside  # (out, frames)
    bias = own[None, :, None] + first.constants[:, None, None] * reached[None]
    kernel = weight[None] * first.signs[:, None, None, None]
    return kernel * scale[:, None, None, None], bias * scale[:, None, None]


def _fold_residual(
    layer: Layer, signs: Floats, constants: Floats, scale: Floats
) -> tuple[Floats | None, Floats | None]:
    if layer.residual is None:
        return None, None
    if isinstance(layer.residual, nn.Identity):
        weight, own = np.eye(signs.shape[1]), np.zeros(signs.shape[1])
    else:
        convolution, norm = layer.residual.children()
        gain, offset = _affine(norm)
        weight = _numpy(convolution.weight)[..., 0, 0] * gain[:, None]
        own = _numpy(convolution.bias) * gain + offset
    matrices = weight[None] * signs[:, None, :] * scale[:, None, None]
    return matrices, (own[None] + constants @ weight.T) * scale[:, None]


def _activation(site: GatedActivation, gate: Floats) -> FoldedActivation:
    assert site.polynomial is not None
    quadratic, linear, constant = (_numpy(row) for row in site.polynomial.coefficients())
    scale, passing = np.ones(len(gate)), np.zeros(len(gate))
    found: list[Quadratic | None] = []
    for joint, is_open in enumerate(gate > 0):
        if not is_open:
            found.append(None)
        elif abs(quadratic[joint]) < NEGLIGIBLE:
            scale[joint], passing[joint] = linear[joint], constant[joint]
            found.append(None)
        else:
            root, sign = np.sqrt(abs(quadratic[joint])), int(np.sign(quadratic[joint]))
            scale[joint] = root
            found.append(Quadratic(float(sign * linear[joint] / root), sign, float(constant[joint])))
    return FoldedActivation(scale, tuple(found), passing)


def _affine(norm: Any) -> tuple[Floats, Floats]:
    """A normalization in evaluation mode as (factor, summand) by channel."""
    mean, variance = _numpy(norm.running_mean), _numpy(norm.running_var)
    gain = _numpy(norm.weight) / np.sqrt(variance + norm.eps)
    return gain, _numpy(norm.bias) - mean * gain


def _numpy(value: Any) -> Floats:
    found: Floats = value.detach().cpu().double().numpy()
    return found


def _evaluate_layer(layer: FoldedLayer, value: Floats) -> Floats:
    """Carriers after a layer of carriers before it, (batch, channels, frames, joints)."""
    batch, _, frames, joints = value.shape
    out = layer.bias.shape[1]
    u = np.repeat(np.repeat(layer.bias.T[None, :, None], frames, axis=2), batch, axis=0)
    for (source, target), matrix in layer.edges.items():
        u[..., target] += np.einsum("oc,bct->bot", matrix, value[..., source])
    h = _evaluate_activation(layer.first, u)
    taps = layer.kernel.shape[3]
    padded = np.pad(h, ((0, 0), (0, 0), (taps // 2, taps // 2), (0, 0)))
    kept = np.arange(0, frames, layer.stride)
    w = np.repeat(np.moveaxis(layer.bias_time, 0, 2)[None], batch, axis=0)
    for joint in range(joints):
        for tap in range(taps):
            w[..., joint] += np.einsum(
                "oc,bct->bot", layer.kernel[joint, :, :, tap], padded[:, :, kept + tap, joint]
            )
        if layer.residual is not None:
            w[..., joint] += np.einsum("oc,bct->bot", layer.residual[joint], value[:, :, kept, joint])
    assert w.shape[1] == out
    return _evaluate_activation(layer.second, w)


def _evaluate_activation(activation: FoldedActivation, x: Floats) -> Floats:
    result = x.copy()
    for joint, quadratic in enumerate(activation.quadratics):
        if quadratic is not None:
            result[..., joint] = x[..., joint] * (x[..., joint] + quadratic.shift)
    return result
