"""What every image data set is once loaded: disjoint train, validation and test splits of tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images in memory.

    Attributes:
        x: float32 images ``(images, channels, height, width)``, normalized by the set's mean and deviation.
        y: int64 labels ``(images,)``.
    """

    x: Float[Tensor, "images channels height width"]
    y: Int64[Tensor, " images"]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: "Tensor | slice | list[int]") -> tuple[Tensor, Tensor]:
        """Images and labels of several positions at once."""
        return self.x[index], self.y[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.x, self.y, strict=True)

    def take(self, count: int) -> "Split":
        """The first ``count`` images (all when there are fewer); splits are stored in a shuffled order."""
        return Split(self.x[:count], self.y[:count])


class ImageSplit(Protocol):
    """What every split offers, in memory or not; a large one refuses ``x`` and is read by index."""

    @property
    def x(self) -> Tensor: ...

    @property
    def y(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: "Tensor | slice | list[int]", /) -> tuple[Tensor, Tensor]: ...

    def take(self, count: int) -> Split: ...


@dataclass(frozen=True)
class ImageData:
    """One data set.

    Attributes:
        name: the name it was loaded by.
        num_classes: labels run from 0 to ``num_classes - 1``.
        input_shape: ``(channels, height, width)`` of one image.
        mean, std: per channel, of pixels in [0, 1]; a split holds ``(pixel - mean) / std``.
        class_names: where the source has them.
    """

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    num_classes: int
    input_shape: tuple[int, int, int]
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()


def normalize(
    pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], scale: float = 255.0
) -> Float[Tensor, "images channels height width"]:
    """``(pixels / scale - mean) / std`` per channel of ``(images, channels, height, width)``, as float32."""
    x = torch.from_numpy(pixels.astype(np.float32))
    shift = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
    factor = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
    return x.div_(scale).sub_(shift).div_(factor)


def carve(labels: np.ndarray, held_out: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions to keep and ``held_out`` others for validation, shuffled, the same on every call."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    return order[held_out:], order[:held_out]
