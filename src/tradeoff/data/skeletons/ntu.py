"""NTU RGB+D: skeletons of two persons, 60 actions, three cameras (Shahroudy et al., CVPR 2016).

The data set's license forbids passing it on: users fetch the skeleton files themselves and name their folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons.graph import Skeleton
from tradeoff.data.skeletons.splits import SkeletonData, without_missing
from tradeoff.data.splits import Split, carve

JOINTS, PERSONS, LONGEST = 25, 2, 300
WINDOW = slice(22, 278)
"""Frames of the published runs."""
_FILE = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})\.skeleton")
_MAX_BYTES = 64 << 20
TRAIN_CAMERAS = (2, 3)

_BONES = (
    (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
    (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (22, 23), (23, 8), (24, 25),
    (25, 12),
)  # fmt: skip
NTU = Skeleton(
    tuple(f"joint {i + 1}" for i in range(JOINTS)), tuple((a - 1, b - 1) for a, b in _BONES), center=20
)


def read_skeleton(text: str, name: str) -> NDArray[np.float32]:
    """The positions (3, 300, 25, 2) of a ``.skeleton`` file; absent frames and persons are zero.

    Where more than two bodies were tracked, the two that move most stay.

    Raises:
        DataError: it is no such file.
    """
    words = iter(text.split())
    try:
        frames = _count(words, LONGEST * 10)
        bodies: dict[str, NDArray[np.float32]] = {}
        for frame in range(frames):
            for _ in range(_count(words, 16)):
                body = next(words)
                for _ in range(9):
                    next(words)
                if _count(words, JOINTS) != JOINTS:
                    raise ValueError("a body without 25 joints")
                places = np.array([[float(next(words)) for _ in range(12)][:3] for _ in range(JOINTS)])
                if frame < LONGEST:
                    track = bodies.setdefault(body, np.zeros((LONGEST, JOINTS, 3), np.float32))
                    track[frame] = places
    except (StopIteration, ValueError) as error:
        raise DataError(f"{name} is no skeleton file: {error or 'it ends early'}") from None
    if not bodies:
        raise DataError(f"{name}: nobody is in it")
    moving = sorted(bodies.values(), key=lambda track: -float(track.std(axis=0).sum()))[:PERSONS]
    stacked = np.zeros((PERSONS, LONGEST, JOINTS, 3), np.float32)
    stacked[: len(moving)] = moving
    return stacked.transpose(3, 1, 2, 0)


def convert(folder: Path, out: Path, skip: Collection[str] = ()) -> int:
    """Write ``x.npy`` (sequences, 3, 300, 25, 2), ``labels.npy`` and ``cameras.npy`` from a folder of files.

    Args:
        skip: names (``S001C002P005R002A008``) that the data set's authors list as broken.

    Returns:
        how many sequences there are; unreadable ones are left out.

    Raises:
        DataError: there is no file.
    """
    paths = [p for p in sorted(folder.rglob("*.skeleton")) if _FILE.fullmatch(p.name) and p.stem not in skip]
    if not paths:
        raise DataError(f"{folder} holds no files SsssCcccPpppRrrrAaaa.skeleton")
    out.mkdir(parents=True, exist_ok=True)
    x = np.lib.format.open_memmap(out / "x.npy", "w+", np.float32, (len(paths), 3, LONGEST, JOINTS, PERSONS))
    labels, cameras = np.zeros(len(paths), np.int64), np.zeros(len(paths), np.int64)
    kept = 0
    for path in paths:
        found = _FILE.fullmatch(path.name)
        assert found is not None
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise DataError(f"{path} is too large")
            x[kept] = read_skeleton(path.read_text(), path.name)
        except (DataError, UnicodeDecodeError):
            continue
        labels[kept], cameras[kept] = int(found[5]) - 1, int(found[2])
        kept += 1
    x.flush()
    np.save(out / "labels.npy", labels[:kept])
    np.save(out / "cameras.npy", cameras[:kept])
    return kept


def ntu(folder: Path, *, validation: int = 2000) -> SkeletonData:
    """The cross-view split of a converted folder: cameras 2 and 3 train, camera 1 tests.

    Raises:
        DataError: the folder was not converted.
    """
    paths = [Path(folder) / f"{name}.npy" for name in ("x", "labels", "cameras")]
    if not all(path.is_file() for path in paths):
        raise DataError(
            f"{folder} holds no x.npy, labels.npy and cameras.npy: fetch the NTU RGB+D skeletons from their "
            "authors and convert them (`tradeoff lingcn convert`)"
        )
    x = np.load(paths[0], mmap_mode="r", allow_pickle=False)
    labels, cameras = (np.load(path, allow_pickle=False) for path in paths[1:])
    if (
        x.ndim != 5
        or x.shape[1:] != (3, LONGEST, JOINTS, PERSONS)
        or len(labels) != len(cameras)
        or len(labels) > len(x)
    ):
        raise DataError(f"{folder}: arrays of shapes {x.shape}, {labels.shape} and {cameras.shape}")
    train = np.isin(cameras, TRAIN_CAMERAS)
    kept, held = carve(np.flatnonzero(train), min(validation, int(train.sum()) // 5))
    places = np.flatnonzero(train)
    skipped = 0
    parts: list[Split] = []
    for chosen in (places[kept], places[held], np.flatnonzero(~train)):
        part, y, missing = without_missing(
            np.array(x[np.sort(chosen)][:, :, WINDOW]), labels[np.sort(chosen)]
        )
        skipped += missing
        parts.append(Split(torch.from_numpy(part), torch.from_numpy(y)))
    names = tuple(f"action {i + 1}" for i in range(int(labels.max(initial=0)) + 1))
    return SkeletonData("ntu", parts[0], parts[1], parts[2], NTU, names, skipped)


def _count(words: Iterator[str], most: int) -> int:
    number = int(next(words))
    if not 0 <= number <= most:
        raise ValueError(f"a count of {number}")
    return number
