"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018)."""

from torch import Tensor, nn

from tradeoff.nn.models.resnet import initialize
from tradeoff.nn.models.stem import is_small

STAGES = (
    # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; a residual sum where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_convolution(in_channels, hidden, 1, 1)]
        layers.append(_convolution(hidden, hidden, 3, stride, groups=hidden))
        layers += [nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1: 3,504,872 parameters at 1,000 classes, names as in torchvision.

    Inputs below 96 pixels keep their resolution in the stem and in the first strided stage.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        small = is_small(input_shape)
        layers: list[nn.Module] = [_convolution(input_shape[0], FIRST, 3, 1 if small else 2)]
        channels = FIRST
        for index, (expansion, width, blocks, stride) in enumerate(STAGES):
            for block in range(blocks):
                first_stride = 1 if small and index == 1 else stride
                layers.append(InvertedResidual(channels, width, 1 if block else first_stride, expansion))
                channels = width
        layers.append(_convolution(channels, LAST, 1, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, num_classes))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return out
