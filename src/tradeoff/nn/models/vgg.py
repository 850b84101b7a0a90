"""VGG (Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015)."""

from torch import Tensor, nn

from tradeoff.nn.models.resnet import initialize
from tradeoff.nn.models.stem import is_small

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
HIDDEN = 4096
HEAD_SIZE = 7
"""Pixels of the feature map that the ImageNet head takes."""


class VGG16(nn.Module):
    """VGG-16 with batch norm (Ioffe, Szegedy, ICML 2015) after each convolution.

    Inputs from 96 pixels get the paper's head of two hidden layers of 4,096 (138,365,992 parameters at 224
    pixels and 1,000 classes, names as in torchvision); smaller ones a single linear layer (14,728,266 at
    10 classes), and no more max poolings than their size allows.

    Shape: ``(batch, channels, height, width)`` to ``(batch, num_classes)``.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *sides = input_shape
        layers: list[nn.Module] = []
        for block in CHANNELS:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            if min(sides) >= 2:
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
        self.features = nn.Sequential(*layers)
        self.avgpool: nn.Module
        self.classifier: nn.Module
        if is_small(input_shape):
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(channels, num_classes)
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(HEAD_SIZE)
            self.classifier = nn.Sequential(
                nn.Linear(channels * HEAD_SIZE**2, HIDDEN),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(HIDDEN, HIDDEN),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(HIDDEN, num_classes),
            )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return out
