"""Scikit-learn's 8x8 handwritten digits and the two-digit sum task made of them: nothing to download."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from tradeoff.data.splits import ImageData, Split, normalize

TRAIN_DIGITS, VALIDATION_DIGITS, TEST_DIGITS = 1000, 200, 597
TRAIN_PAIRS, VALIDATION_PAIRS, TEST_PAIRS = 40_000, 2_000, 4_000
MEAN, STD = (0.305,), (0.376,)


def digits() -> ImageData:
    """1,797 digits (1x8x8): 1,000 to train, 200 to validate, 597 to test, in a fixed shuffled order."""
    parts = [Split(normalize(x, MEAN, STD, scale=16.0), torch.from_numpy(y)) for x, y in _disjoint_digits()]
    return _ten_classes(parts, (1, 8, 8), "digits")


def digit_pairs() -> ImageData:
    """Two digits side by side (1x8x16), labelled with the last digit of their sum.

    The sum needs a non-linear network, which single digits hardly do. The pairs of each split are drawn with
    replacement from its own digits: no digit of the test pairs was seen in training.
    """
    counts = (TRAIN_PAIRS, VALIDATION_PAIRS, TEST_PAIRS)
    parts = []
    for seed, (count, (x, y)) in enumerate(zip(counts, _disjoint_digits(), strict=True)):
        left, right = np.random.Generator(np.random.PCG64(seed)).integers(0, len(y), (2, count))
        pairs = np.concatenate([x[left], x[right]], axis=-1)
        labels = torch.from_numpy((y[left] + y[right]) % 10)
        parts.append(Split(normalize(pairs, MEAN, STD, scale=16.0), labels))
    return _ten_classes(parts, (1, 8, 16), "digit-pairs")


def _ten_classes(parts: list[Split], shape: tuple[int, int, int], name: str) -> ImageData:
    train, validation, test = parts
    return ImageData(train, validation, test, 10, shape, name, MEAN, STD, tuple("0123456789"))


def _disjoint_digits() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels 0 to 16 ``(n, 1, 8, 8)`` and labels of the train, validation and test digits."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    pixels = pixels[order].reshape(-1, 1, 8, 8)
    labels = labels[order].astype(np.int64)
    ends = np.cumsum([TRAIN_DIGITS, VALIDATION_DIGITS, TEST_DIGITS])
    return [
        (pixels[end - n : end], labels[end - n : end])
        for end, n in zip(ends, np.diff(ends, prepend=0), strict=True)
    ]
