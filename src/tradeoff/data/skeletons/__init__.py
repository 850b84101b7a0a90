"""Sequences of joint positions: embedded recordings of human motions, NTU RGB+D, smart-watch recordings."""

from __future__ import annotations

import os
from pathlib import Path

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons.basic_motions import basic_motions
from tradeoff.data.skeletons.graph import Skeleton
from tradeoff.data.skeletons.kinematics import HUMANOID
from tradeoff.data.skeletons.ntu import NTU, convert, ntu
from tradeoff.data.skeletons.recordings import Divide, motions
from tradeoff.data.skeletons.splits import SkeletonData, fit_frames

__all__ = [
    "HUMANOID",
    "NAMES",
    "NTU",
    "Skeleton",
    "SkeletonData",
    "basic_motions",
    "convert",
    "fit_frames",
    "load",
    "motions",
    "ntu",
]

NAMES = ("motions", "motions-view", "motions-25", "ntu", "basic-motions")


def load(name: str, *, frames: int = 32, windows: int = 2500, path: Path | None = None) -> SkeletonData:
    """A data set by name.

    Args:
        name: ``motions`` (embedded; test windows are faster than those of the training), ``motions-view``
            (seen from other headings), ``motions-25`` (with the 25 joints of NTU RGB+D), ``ntu`` or
            ``basic-motions``.
        frames: of a sequence, where that can be chosen; windows: of the training, of the embedded recordings.
        path: of files; else ``TRADEOFF_DATA/NAME`` for the sets that are not embedded.

    Raises:
        DataError: no such set, or its files are not there.
    """
    if name in ("motions", "motions-view", "motions-25"):
        divide: Divide = "view" if name == "motions-view" else "speed"
        joints = 25 if name == "motions-25" else 15
        return motions(frames=frames, divide=divide, joints=joints, train=windows, folder=path)
    root = os.environ.get("TRADEOFF_DATA")
    given = path or (Path(root) / name if root and (Path(root) / name).exists() else None)
    if name == "ntu":
        if given is None:
            raise DataError("NTU RGB+D is not passed on: convert its skeletons and name the folder (path)")
        return ntu(given)
    if name == "basic-motions":
        return basic_motions(given, frames=frames)
    raise DataError(f"there are no skeletons {name!r}; there are {', '.join(NAMES)}")
