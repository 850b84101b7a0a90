"""Spatial-temporal graph convolutional networks (Yan, Xiong and Lin, AAAI 2018) with gated activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tradeoff.data.skeletons.graph import Hop, Skeleton
from tradeoff.methods.private_inference.lingcn.activations import GatedActivation, NodePolynomial, Start
from tradeoff.methods.private_inference.lingcn.gates import Gates, Rule, effective

BACKBONES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "stgcn-3-128": ((64, 128, 128), (1, 2, 1)),
    "stgcn-3-256": ((128, 256, 256), (1, 2, 1)),
    "stgcn-6-256": ((64, 64, 128, 128, 256, 256), (1, 1, 2, 1, 2, 1)),
}
"""Channels and strides of the published networks."""


@dataclass(frozen=True)
class Shape:
    """What a network is made of.

    Attributes:
        channels, strides: by layer; taps: of the convolutions over time, odd; in_channels: of the input.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    classes: int
    taps: int = 9
    in_channels: int = 3
    dropout: float = 0.0
    hop: Hop = "limited"

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.strides):
            raise ValueError(f"{len(self.channels)} channels and {len(self.strides)} strides")
        if self.taps % 2 == 0 or min(*self.channels, *self.strides, self.classes, self.taps) < 1:
            raise ValueError(f"sizes must be positive and taps odd: {self}")


class Layer(nn.Module):
    """Graph convolution, first activation, convolution over time, residual, second activation."""

    adjacency: Tensor

    def __init__(
        self, adjacency: Float[Tensor, "3 joints joints"], shape: Shape, index: int, rule: Rule
    ) -> None:
        super().__init__()
        into = shape.in_channels if index == 0 else shape.channels[index - 1]
        out, stride = shape.channels[index], shape.strides[index]
        kinds, joints, _ = adjacency.shape
        self.register_buffer("adjacency", adjacency)
        self.importance = nn.Parameter(torch.ones_like(adjacency))
        self.spatial = nn.Conv2d(into, kinds * out, 1)
        self.spatial_norm = nn.BatchNorm2d(out)
        self.temporal = nn.Conv2d(out, out, (shape.taps, 1), (stride, 1), (shape.taps // 2, 0))
        self.temporal_norm = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(shape.dropout)
        self.residual = _residual(into, out, stride, first=index == 0)
        self.gates = Gates(joints, rule)
        self.first, self.second = GatedActivation(), GatedActivation()

    def forward(self, x: Float[Tensor, "batch channels time joints"]) -> Tensor:
        gates = self.gates()
        batch, _, time, joints = x.shape
        parts = self.spatial(x).reshape(batch, len(self.adjacency), -1, time, joints)
        u = torch.einsum("nkctv,kvw->nctw", parts, self.adjacency * self.importance)
        h = self.first(self.spatial_norm(u), gates[0])
        w = self.dropout(self.temporal_norm(self.temporal(h)))
        if self.residual is not None:
            w = w + self.residual(x)
        result: Tensor = self.second(w, gates[1])
        return result


def _residual(into: int, out: int, stride: int, *, first: bool) -> nn.Module | None:
    if first:
        return None
    if into == out and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(into, out, 1, (stride, 1)), nn.BatchNorm2d(out))


class STGCN(nn.Module):
    """A classifier of skeleton sequences (batch, channels, time, joints, persons).

    Args:
        rule: how gates are chosen once they are trained; all are open before.

    Raises:
        ValueError: sizes that no network has.
    """

    def __init__(self, skeleton: Skeleton, shape: Shape, rule: Rule = "structural") -> None:
        super().__init__()
        self.skeleton = skeleton
        self.shape = shape
        adjacency = torch.from_numpy(skeleton.adjacency(shape.hop)).float()
        self.input_norm = nn.BatchNorm1d(skeleton.nodes * shape.in_channels)
        layers = [Layer(adjacency, shape, index, rule) for index in range(len(shape.channels))]
        self.layers = nn.ModuleList(layers)
        self.classifier = nn.Linear(shape.channels[-1], shape.classes)

    def forward(self, x: Float[Tensor, "batch channels time joints persons"], features: bool = False) -> Any:
        """Logits (batch, classes); with ``features`` as :meth:`with_features`."""
        found = self.with_features(x)
        return found if features else found[0]

    def with_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the output of every layer (batch * persons, channels, time, joints)."""
        batch, channels, time, joints, persons = x.shape
        if (channels, joints) != (self.shape.in_channels, self.skeleton.nodes):
            raise ValueError(
                f"sequences of {channels} channels and {joints} joints; the network takes "
                f"{self.shape.in_channels} and {self.skeleton.nodes}"
            )
        folded = x.permute(0, 4, 3, 1, 2).reshape(batch * persons, joints * channels, time)
        y = self.input_norm(folded).reshape(batch * persons, joints, channels, time).permute(0, 2, 3, 1)
        features = []
        for layer in self.layers:
            y = layer(y)
            features.append(y)
        pooled = y.mean((2, 3)).reshape(batch, persons, -1).mean(1)
        return self.classifier(pooled), features

    def gates(self) -> Float[Tensor, "layers 2 joints"]:
        """Every gate, as zeros and ones."""
        return torch.stack([layer.gates().detach() for layer in self._layers()])

    def effective_layers(self) -> int:
        """Levels that activations cost under encryption, one each: k."""
        return effective(self.gates())

    def open_gates(self) -> Float[Tensor, ""]:
        """Part of all gates that is open, 0 to 1; its gradient reaches the scores."""
        return torch.stack([layer.gates() for layer in self._layers()]).mean()

    def learn_gates(self) -> None:
        """Begin to train gates."""
        for layer in self._layers():
            layer.gates.learn()

    def freeze_gates(self) -> None:
        """Keep gates as they are."""
        for layer in self._layers():
            layer.gates.freeze()

    def replace_relus(self, start: Start = "gaussian-fit", *, shared: bool = False) -> None:
        """Put quadratics in place of the ReLUs; gates stay."""
        self.freeze_gates()
        for layer in self._layers():
            for site in (layer.first, layer.second):
                site.polynomial = NodePolynomial(self.skeleton.nodes, start, shared=shared)
                site.polynomial.to(self.classifier.weight.device)

    @property
    def is_polynomial(self) -> bool:
        """Whether no ReLU is left."""
        return all(
            site.polynomial is not None for layer in self._layers() for site in (layer.first, layer.second)
        )

    def _layers(self) -> Sequence[Layer]:
        return self.layers  # type: ignore[return-value]
