"""Fifteen recorded human motions, seen from random headings: which motion is it?

The recordings are the clips ``humanoid3d_*.txt`` that the package pybullet ships (zlib license, see
``motions.LICENSE.txt``), here as 32-bit numbers. Motions are real; headings, body sizes, playback speeds and
noise are generated.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons.kinematics import FRAME_NUMBERS, HUMANOID, kinect_positions, positions
from tradeoff.data.skeletons.ntu import NTU
from tradeoff.data.skeletons.splits import SkeletonData, reflected
from tradeoff.data.splits import Split

Floats = NDArray[np.float64]
Divide = Literal["speed", "view"]
EMBEDDED = Path(__file__).with_name("motions.npz")
PREFIX = "humanoid3d_"
_MAX_BYTES = 4 << 20
_MAX_FRAMES = 100_000
SECONDS = 1 / 15
"""Between two frames of a window."""
NOISE = 0.02
SIZES = (0.9, 1.1)
SKELETONS = {15: HUMANOID, 25: NTU}
_RANGES = {
    "speed": {"train": ((0.7, 1.1), (-60.0, 60.0)), "test": ((1.1, 1.4), (-60.0, 60.0))},
    "view": {"train": ((0.7, 1.1), (-60.0, 60.0)), "test": ((0.7, 1.1), (75.0, 105.0))},
}
"""Playback speeds, and headings in degrees, by way of splitting and part."""


def clips(folder: Path | None = None) -> dict[str, Floats]:
    """The recordings by name, frames of 44 numbers each.

    Args:
        folder: with files ``humanoid3d_NAME.txt``, or a wheel of pybullet; the embedded clips if None.

    Raises:
        DataError: a file is no recording, or there is none.
    """
    if folder is None:
        with np.load(EMBEDDED, allow_pickle=False) as stored:
            return {name: stored[name].astype(np.float64) for name in sorted(stored.files)}
    texts = _texts(folder)
    if not texts:
        raise DataError(f"{folder} holds no {PREFIX}*.txt")
    return {name: read_clip(text, name) for name, text in sorted(texts.items())}


def read_clip(text: bytes, name: str) -> Floats:
    """The frames (frames, 44) of a recording.

    Raises:
        DataError: it is none.
    """
    try:
        frames = np.asarray(json.loads(text)["Frames"], np.float64)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{name} is no recording of a motion: {error}") from None
    if frames.ndim != 2 or frames.shape[1] != FRAME_NUMBERS or not 2 <= len(frames) <= _MAX_FRAMES:
        raise DataError(f"{name}: frames of shape {frames.shape}, not (frames, {FRAME_NUMBERS})")
    if not np.isfinite(frames).all() or (frames[:, 0] < 0).any():
        raise DataError(f"{name}: a number that is not finite, or a negative duration")
    return frames


def _texts(folder: Path) -> Mapping[str, bytes]:
    if zipfile.is_zipfile(folder):
        with zipfile.ZipFile(folder) as wheel:
            found = [i for i in wheel.infolist() if Path(i.filename).name.startswith(PREFIX)]
            chosen = [i for i in found if i.filename.endswith(".txt") and i.file_size <= _MAX_BYTES]
            return {_name(Path(i.filename)): wheel.read(i) for i in chosen}
    paths = [p for p in Path(folder).rglob(f"{PREFIX}*.txt") if p.stat().st_size <= _MAX_BYTES]
    return {_name(path): path.read_bytes() for path in paths}


def _name(path: Path) -> str:
    return path.stem.removeprefix(PREFIX)


def motions(
    *,
    frames: int = 32,
    divide: Divide = "speed",
    joints: int = 15,
    train: int = 2500,
    validation: int = 300,
    test: int = 600,
    seed: int = 0,
    folder: Path | None = None,
) -> SkeletonData:
    """Windows of the recordings, balanced over the 15 motions.

    Args:
        frames: of a window, 1/15 s apart.
        divide: test windows are played faster than those of the training (``speed``), or seen from headings
            that it never had (``view``).
        joints: 15 as recorded, or 25 as in NTU RGB+D, ten of them fixed to others.
        train, validation, test: windows; the validation's are of the training's kind.
        folder: see :func:`clips`.

    Raises:
        DataError: no window, or an unknown way of splitting.
    """
    if divide not in _RANGES:
        raise DataError(f"windows are split by {' or '.join(_RANGES)}, not {divide!r}")
    if joints not in SKELETONS:
        raise DataError(f"there are skeletons of 15 and 25 joints, not {joints}")
    if frames < 2 or min(train, validation, test) < 1:
        raise DataError(f"{train}, {validation} and {test} windows of {frames} frames")
    recorded = _tracks(folder, joints)
    names = tuple(recorded)
    generator = np.random.default_rng([seed, 11])
    parts = []
    for part, count in (("train", train), ("train", validation), ("test", test)):
        y = generator.permutation(np.arange(count) % len(names))
        x = np.stack(
            [_window(recorded[names[label]], frames, *_RANGES[divide][part], generator) for label in y]
        )
        parts.append(Split(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))))
    return SkeletonData("motions", parts[0], parts[1], parts[2], SKELETONS[joints], names)


@lru_cache(maxsize=2)
def _tracks(folder: Path | None, joints: int) -> dict[str, tuple[Floats, Floats]]:
    """By motion, the times of its frames and the joints' positions."""
    found = {}
    for name, frames in clips(folder).items():
        times = np.concatenate([[0.0], np.cumsum(frames[:-1, 0])])
        if times[-1] <= 0:
            raise DataError(f"{name}: a recording of no duration")
        found[name] = (times, positions(frames) if joints == 15 else kinect_positions(frames))
    return found


def _window(
    track: tuple[Floats, Floats],
    frames: int,
    speeds: tuple[float, float],
    headings: tuple[float, float],
    generator: np.random.Generator,
) -> Floats:
    """One window (3, frames, 15, 1): from a random start, back and forth where the recording is too short."""
    times, joints = track
    wanted = np.arange(frames) * SECONDS * generator.uniform(*speeds)
    start = generator.uniform(0, max(times[-1] - wanted[-1], 0.0))
    at = reflected(start + wanted, times[-1] + 1)
    flat = joints.reshape(len(joints), -1)
    seen = np.stack([np.interp(at, times, column) for column in flat.T], axis=1).reshape(frames, -1, 3)
    seen = seen - seen[:1, :1] * np.array([1.0, 0.0, 1.0])  # it starts at the origin; heights stay
    angle = math.radians(generator.uniform(*headings))
    cos, sin = math.cos(angle), math.sin(angle)
    seen = seen @ np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
    seen = seen * generator.uniform(*SIZES) + generator.normal(0.0, NOISE, seen.shape)
    window: Floats = np.moveaxis(seen, 2, 0)[..., None]
    return window
