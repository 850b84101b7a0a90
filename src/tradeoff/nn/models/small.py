"""Small networks for embedded data: minutes of training on one core."""

from torch import Tensor, nn


class LeNet300(nn.Module):
    """Three linear layers (300, 100 hidden units) with ReLU: LeNet-300-100 (LeCun et al., 1998).

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.fc1 = nn.Linear(channels * height * width, 300)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc3(self.relu2(self.fc2(self.relu1(self.fc1(x.flatten(1))))))
        return out


class SmallCNN(nn.Module):
    """Two 5x5 convolutions (16, 32 channels), each with ReLU and 2x2 average pooling, and a linear layer.

    The shape is that of the networks with which two-party inference has been measured since MiniONN
    (Liu et al., CCS 2017); average in place of max pooling, so that ReLU is the only comparison.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``; height and width at least 4.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 16, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.AvgPool2d(2)
        self.fc = nn.Linear(32 * (height // 4) * (width // 4), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        out: Tensor = self.fc(x.flatten(1))
        return out


class PooledCNN(nn.Module):
    """Two 3x3 convolutions (16, 32 channels), each with batch norm, ReLU and 2x2 max pooling, then linear.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``; height and width at least 4.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc = nn.Linear(32 * (height // 4) * (width // 4), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        x = self.pool2(self.relu2(self.bn2(self.conv2(x))))
        out: Tensor = self.fc(x.flatten(1))
        return out


class PairCNN(nn.Module):
    """Five convolution, batch norm, ReLU sites with one residual sum: the network of the digit-pair task.

    Three sites of 8 channels at full resolution, the third after the residual sum, then a strided one and
    one more of 16 channels at half resolution: 4,096 ReLUs on a 1x8x16 input.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(16)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn5 = nn.BatchNorm2d(16)
        self.relu5 = nn.ReLU()
        self.fc = nn.Linear(16 * -(-height // 2) * -(-width // 2), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        residual = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(residual)) + x)
        x = self.relu4(self.bn4(self.conv4(x)))
        x = self.relu5(self.bn5(self.conv5(x)))
        out: Tensor = self.fc(x.flatten(1))
        return out
