"""Residual networks (He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016)."""

from typing import ClassVar

from torch import Tensor, nn

from tradeoff.nn.models.stem import is_small


class BasicBlock(nn.Module):
    """``y = ReLU(F(x) + shortcut(x))`` with two 3x3 convolutions in F; a 1x1 projection if shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        out: Tensor = self.relu2(residual + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """``y = ReLU(F(x) + shortcut(x))``; F has 1x1, 3x3 (strided) and 1x1 convolutions, the last 4 x wider.

    The stride is at the 3x3 convolution, as in torchvision.
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        out: Tensor = self.relu3(residual + self.downsample(x))
        return out


EXPANSION = 4
"""Channels of a bottleneck's result over those of its 3x3 convolution."""


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    strides = [stride] + [1] * (blocks - 1)
    channels = [in_channels] + [out_channels] * (blocks - 1)
    return nn.Sequential(*(BasicBlock(c, out_channels, s) for c, s in zip(channels, strides, strict=True)))


def _bottlenecks(in_channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    strides = [stride] + [1] * (blocks - 1)
    channels = [in_channels] + [EXPANSION * width] * (blocks - 1)
    return nn.Sequential(*(Bottleneck(c, width, s) for c, s in zip(channels, strides, strict=True)))


class ResNet18(nn.Module):
    """ResNet-18: four stages of two basic blocks, 64 to 512 channels.

    Inputs from 96 pixels get the ImageNet stem (7x7 convolution of stride 2, 3x3 max pooling of stride 2;
    11,689,512 parameters at 1,000 classes, parameter names as in torchvision); smaller ones a 3x3
    convolution of stride 1 (11,173,962 at 10 classes; 557,056 ReLUs on 32x32).

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``; height and width at least 8.
    """

    STAGES: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
    """Blocks of each stage."""

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if is_small(input_shape):
            self.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(input_shape[0], 64, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        first, second, third, fourth = self.STAGES
        self.layer1 = self._make_stage(64, 64, first, stride=1)
        self.layer2 = self._make_stage(64, 128, second, stride=2)
        self.layer3 = self._make_stage(128, 256, third, stride=2)
        self.layer4 = self._make_stage(256, 512, fourth, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self._width(512), num_classes)
        initialize(self)

    def _make_stage(self, in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        return _stage(in_width, width, blocks, stride)

    def _width(self, width: int) -> int:
        """Channels of a stage's result."""
        return width

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(self.avgpool(x).flatten(1))
        return out


class ResNet34(ResNet18):
    """ResNet-34: as :class:`ResNet18`, with 3, 4, 6 and 3 blocks (21,797,672 parameters at 1,000 classes)."""

    STAGES = (3, 4, 6, 3)


class ResNet50(ResNet18):
    """ResNet-50: bottleneck blocks, 3, 4, 6 and 3 of them (25,557,032 parameters at 1,000 classes)."""

    STAGES = (3, 4, 6, 3)

    def _make_stage(self, in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = width == in_width  # the stem's result is not a bottleneck's
        return _bottlenecks(in_width if first else self._width(in_width), width, blocks, stride)

    def _width(self, width: int) -> int:
        return EXPANSION * width


class ResNet20(nn.Module):
    """ResNet-20 of the paper's CIFAR section: three stages of three basic blocks, 16 to 64 channels.

    272,474 parameters at 10 classes: shortcuts are projections (option B), since the parameter-free
    shortcut of option A (subsample, pad with zero channels; 269,722) is no operator of an inference engine.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``; height and width at least 4.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks=3, stride=1)
        self.layer2 = _stage(16, 32, blocks=3, stride=2)
        self.layer3 = _stage(32, 64, blocks=3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(self.avgpool(x).flatten(1))
        return out


def initialize(model: nn.Module) -> None:
    """He initialization of every convolution (He et al., ICCV 2015, fan out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
