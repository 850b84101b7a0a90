"""Wide residual networks (Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016)."""

from torch import Tensor, nn

from tradeoff.nn.models.resnet import initialize


class WideBlock(nn.Module):
    """Pre-activation block: batch norm and ReLU come before each of two 3x3 convolutions.

    Where the shape changes, the 1x1 shortcut takes the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated)))) + kept
        return out


class WideResNet22x8(nn.Module):
    """WRN-22-8: three groups of three blocks with 128, 256 and 512 channels; 17.2 M parameters.

    1,392,640 ReLUs on 32x32.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``; height and width at least 4.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.group1 = _group(16, 128, stride=1)
        self.group2 = _group(128, 256, stride=2)
        self.group3 = _group(256, 512, stride=2)
        self.bn = nn.BatchNorm2d(512)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        out: Tensor = self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))
        return out


def _group(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(WideBlock(out_channels, out_channels, 1) for _ in range(2)))
