"""Which stem a network gets: that of its ImageNet paper, or one that keeps the size of small images."""

LARGE_INPUT = 96
"""Pixels of the shorter side from which a network gets its ImageNet stem."""


def is_small(input_shape: tuple[int, int, int]) -> bool:
    """Whether images of ``(channels, height, width)`` are too small for the ImageNet stem."""
    return min(input_shape[1:]) < LARGE_INPUT
