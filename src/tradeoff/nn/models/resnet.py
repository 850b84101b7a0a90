"""Residual networks (He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016)."""

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


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    strides = [stride] + [1] * (blocks - 1)
    channels = [in_channels] + [out_channels] * (blocks - 1)
    return nn.Sequential(*(BasicBlock(c, out_channels, s) for c, s in zip(channels, strides, strict=True)))


class ResNet18(nn.Module):
    """ResNet-18: four stages of two basic blocks, 64 to 512 channels.

    Inputs from 96 pixels get the ImageNet stem (7x7 convolution of stride 2, 3x3 max pooling of stride 2;
    11,689,512 parameters at 1,000 classes, parameter names as in torchvision); smaller ones a 3x3
    convolution of stride 1 (11,173,962 at 10 classes; 557,056 ReLUs on 32x32).

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``; height and width at least 8.
    """

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
        self.layer1 = _stage(64, 64, blocks=2, stride=1)
        self.layer2 = _stage(64, 128, blocks=2, stride=2)
        self.layer3 = _stage(128, 256, blocks=2, stride=2)
        self.layer4 = _stage(256, 512, blocks=2, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(self.avgpool(x).flatten(1))
        return out


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
