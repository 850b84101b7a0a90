"""EfficientNet (Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
ICML 2019)."""

import math

from torch import Tensor, nn

from tradeoff.nn.models.resnet import initialize
from tradeoff.nn.models.stem import is_small

STAGES = (
    # expansion, kernel, stride, channels, blocks: of B0, before scaling
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
FIRST = 32
WIDTH, DEPTH, DROPOUT = 1.1, 1.2, 0.3
"""Scaling of B2."""


def _scaled_width(channels: int) -> int:
    """The multiple of 8 nearest to the scaled width, unless that lies more than a tenth below it."""
    scaled = channels * WIDTH
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(),
    )


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate computed from their means (Hu, Shen, Sun, CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.SiLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return out


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection; residual sum if shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_convolution(in_channels, hidden, 1, 1)]
        layers.append(_convolution(hidden, hidden, kernel, stride, groups=hidden))
        layers.append(SqueezeExcitation(hidden, max(1, in_channels // 4)))
        layers.append(
            nn.Sequential(nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        )
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.residual else out


class EfficientNetB2(nn.Module):
    """EfficientNet-B2: 9,109,994 parameters at 1,000 classes, names as in torchvision.

    Without the stochastic depth of the paper's training. Inputs below 96 pixels keep their resolution in the
    stem and in the first strided stage.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        small = is_small(input_shape)
        channels = _scaled_width(FIRST)
        layers: list[nn.Module] = [_convolution(input_shape[0], channels, 3, 1 if small else 2)]
        for index, (expansion, kernel, stride, base_width, blocks) in enumerate(STAGES):
            width = _scaled_width(base_width)
            first_stride = 1 if small and index == 1 else stride
            stage = []
            for block in range(math.ceil(blocks * DEPTH)):
                stage.append(MBConv(channels, width, kernel, 1 if block else first_stride, expansion))
                channels = width
            layers.append(nn.Sequential(*stage))
        layers.append(_convolution(channels, 4 * channels, 1, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(4 * channels, num_classes))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return out
