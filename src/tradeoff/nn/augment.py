"""Augmentation of image batches as tensors: random crops after zero padding, flips, and resizing."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def random_crop(
    x: Float[Tensor, "batch channels height width"], padding: int, offsets: Int[Tensor, "batch 2"]
) -> Float[Tensor, "batch channels height width"]:
    """Zero-pad by ``padding`` on every side and cut each image back to size at its own (row, column) offset.

    Offsets run from 0 to ``2 * padding``; ``padding`` itself gives the image back.
    """
    height, width = x.shape[2:]
    windows = functional.pad(x, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x), device=x.device), :, offsets[:, 0], offsets[:, 1]]


def flip(x: Float[Tensor, "batch channels height width"], flipped: Bool[Tensor, " batch"]) -> Tensor:
    """Mirror the images marked in ``flipped`` left to right."""
    return torch.where(flipped.view(-1, 1, 1, 1), x.flip(3), x)


def progressive_scale(progress: float, initial_scale: float, full_fraction: float) -> float:
    """Scale of the sides at ``progress`` in [0, 1): from ``initial_scale`` linearly to 1, then 1 for the
    last ``full_fraction`` of training (progressive resizing: Howard et al., DAWNBench 2018)."""
    growth = min(1.0, progress / (1 - full_fraction)) if full_fraction < 1 else 1.0
    return initial_scale + (1 - initial_scale) * growth


def resize(x: Float[Tensor, "batch channels height width"], scale: float, multiple: int = 4) -> Tensor:
    """Images with sides ``scale`` times as long, rounded down to a multiple of ``multiple`` pixels."""
    height, width = (max(multiple, int(side * scale) // multiple * multiple) for side in x.shape[2:])
    if scale >= 1 or (height, width) == x.shape[2:]:
        return x
    return functional.interpolate(x, (height, width), mode="bilinear", antialias=True)


def crop_and_flip(
    x: Float[Tensor, "batch channels height width"], padding: int, mirror: bool, generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Random crop (when ``padding`` > 0) and flip of half the images (when ``mirror``)."""
    if padding > 0:
        offsets = torch.randint(0, 2 * padding + 1, (len(x), 2), generator=generator)
        x = random_crop(x, padding, offsets.to(x.device))
    if mirror:
        x = flip(x, (torch.rand(len(x), generator=generator) < 0.5).to(x.device))
    return x
