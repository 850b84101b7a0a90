"""What every set of skeleton sequences is once loaded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons.graph import Skeleton
from tradeoff.data.splits import Split


@dataclass(frozen=True)
class SkeletonData:
    """Sequences of joints with labels; ``split.x`` is (sequences, channels, frames, joints, persons).

    Attributes:
        skipped: sequences that were left out because a skeleton is missing in them.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    skeleton: Skeleton
    class_names: tuple[str, ...]
    skipped: int = 0

    @property
    def num_classes(self) -> int:
        """Labels run from 0 to this, less 1."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(channels, frames, joints, persons)."""
        channels, frames, joints, persons = self.train.x.shape[1:]
        return int(channels), int(frames), int(joints), int(persons)


def fit_frames(
    x: NDArray[np.floating[Any]], frames: int, *, strict: bool = False
) -> NDArray[np.floating[Any]]:
    """A sequence (frames, ...) cut in the middle, or continued by its reflection, to ``frames``.

    Raises:
        DataError: it is shorter and ``strict`` is set, or has no frame.
    """
    have = len(x)
    if have == 0:
        raise DataError("a sequence without frames")
    if have >= frames:
        start = (have - frames) // 2
        cut: NDArray[np.floating[Any]] = x[start : start + frames]
        return cut
    if strict:
        raise DataError(f"a sequence of {have} frames, shorter than the window of {frames}")
    warnings.warn(f"a sequence of {have} frames is continued by its reflection to {frames}", stacklevel=2)
    longer: NDArray[np.floating[Any]] = x[reflected(np.arange(frames), have).astype(int)]
    return longer


def reflected(position: NDArray[Any], length: float) -> NDArray[np.float64]:
    """Positions brought into [0, length - 1] by going back and forth."""
    span = max(length - 1, 1e-9)
    folded = np.mod(np.asarray(position, np.float64), 2 * span)
    return np.minimum(folded, 2 * span - folded)


def without_missing(x: NDArray[np.floating[Any]], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Sequences all of whose joints are there, their labels, and how many were not."""
    whole = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    return x[whole], y[whole], int((~whole).sum())
