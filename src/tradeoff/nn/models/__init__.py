"""The networks that the papers use, for inputs of 8 to 224 pixels.

``build("resnet18", num_classes=10, input_shape=(3, 32, 32))`` gives a freshly initialized module in which
every call of an activation is a module of its own, so that methods can replace one site at a time.
"""

import difflib
import importlib

from torch import nn

from tradeoff.core.errors import TradeoffError
from tradeoff.nn.models.weights import ArchMismatch, load_weights, save_weights

__all__ = ["ARCHITECTURES", "ArchMismatch", "InvalidArch", "build", "load_weights", "save_weights"]

ARCHITECTURES: dict[str, tuple[str, str]] = {
    "resnet18": ("resnet", "ResNet18"),
    "resnet20": ("resnet", "ResNet20"),
    "wrn22_8": ("wide_resnet", "WideResNet22x8"),
    "vgg16": ("vgg", "VGG16"),
    "mobilenet_v2": ("mobilenet", "MobileNetV2"),
    "efficientnet_b2": ("efficientnet", "EfficientNetB2"),
    "lenet_300_100": ("small", "LeNet300"),
    "small_cnn": ("small", "SmallCNN"),
    "pair_cnn": ("small", "PairCNN"),
    "pooled_cnn": ("small", "PooledCNN"),
}
"""Architecture name -> (module of this package, class)."""


class InvalidArch(TradeoffError, ValueError):
    """No architecture has this name, or it cannot be built for these classes or this input."""


SMALLEST_INPUT = 8
"""Pixels of the shorter side below which no architecture is built."""


def build(arch: str, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """A freshly initialized network.

    Args:
        arch: a key of :data:`ARCHITECTURES`.
        num_classes: outputs of the last layer, at least 2.
        input_shape: ``(channels, height, width)`` of one image, at least 8 pixels each way.

    Raises:
        InvalidArch: an unknown architecture (the message names the nearest), too few classes or a bad shape.
    """
    if arch not in ARCHITECTURES:
        nearest = difflib.get_close_matches(arch.lower().replace("-", "_"), ARCHITECTURES, n=1, cutoff=0.0)
        raise InvalidArch(
            f"unknown architecture {arch!r}; did you mean {nearest[0]!r}? "
            f"There are: {', '.join(ARCHITECTURES)}"
        )
    if num_classes < 2:
        raise InvalidArch(f"num_classes is {num_classes}; a classifier needs at least 2")
    shape = tuple(input_shape)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < SMALLEST_INPUT:
        raise InvalidArch(
            f"input_shape is {shape}; expected (channels, height, width), "
            f"at least {SMALLEST_INPUT} pixels each way"
        )
    module, name = ARCHITECTURES[arch]
    network: nn.Module = getattr(importlib.import_module(f"{__name__}.{module}"), name)(num_classes, shape)
    return network
