"""BasicMotions: four activities recorded by a smart watch (UEA archive), as the package aeon ships it.

The six sensor axes are the joints of a small graph: those of accelerometer and gyroscope are linked with each
other, and the two first axes join them.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.data.skeletons.graph import Skeleton
from tradeoff.data.skeletons.splits import SkeletonData, fit_frames
from tradeoff.data.splits import Split, carve

NAMES = ("BasicMotions_TRAIN.ts", "BasicMotions_TEST.ts")
_MAX_BYTES = 4 << 20
SENSORS = Skeleton(
    ("acceleration x", "acceleration y", "acceleration z", "rotation x", "rotation y", "rotation z"),
    ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (0, 3)),
    center=0,
)


def read_series(text: str, name: str) -> tuple[NDArray[np.float64], list[str]]:
    """The series (series, dimensions, length) and labels of a ``.ts`` file of equal lengths.

    Raises:
        DataError: it is no such file.
    """
    _, found, body = text.partition("@data")
    if not found:
        raise DataError(f"{name} is no .ts file")
    rows, labels = [], []
    try:
        for line in filter(None, map(str.strip, body.splitlines())):
            *dimensions, label = line.split(":")
            rows.append([[float(number) for number in dimension.split(",")] for dimension in dimensions])
            labels.append(label)
        return np.asarray(rows, np.float64), labels
    except ValueError as error:
        raise DataError(f"{name} is no .ts file of equal lengths: {error}") from None


def basic_motions(folder: Path | None = None, *, frames: int = 100, validation: int = 8) -> SkeletonData:
    """40 recordings to train and validate, 40 to test.

    Args:
        folder: with the two files, or a wheel of aeon; the installed package if None.

    Raises:
        DataError: the files are nowhere.
    """
    train, test = (read_series(_text(name, folder), name) for name in NAMES)
    names = tuple(sorted(set(train[1])))
    mean, deviation = train[0].mean(axis=(0, 2)), train[0].std(axis=(0, 2))

    def split(series: NDArray[np.float64], labels: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = (series - mean[:, None]) / deviation[:, None]
        cut = np.stack([fit_frames(one.T, frames) for one in scaled])  # (series, frames, axes)
        y = torch.tensor([names.index(label) for label in labels])
        return torch.from_numpy(cut[:, None, :, :, None].astype(np.float32)), y

    x, y = split(*train)
    kept, held = carve(np.arange(len(y)), validation)
    parts = Split(x[kept], y[kept]), Split(x[held], y[held]), Split(*split(*test))
    return SkeletonData("basic-motions", *parts, SENSORS, names)


def _text(name: str, folder: Path | None) -> str:
    if folder is None:
        found = importlib.util.find_spec("aeon")
        if found is None or not found.submodule_search_locations:
            raise DataError(
                "BasicMotions comes with the package aeon: run pip install aeon, or name a folder with "
                f"{' and '.join(NAMES)}"
            )
        folder = Path(found.submodule_search_locations[0])
    if zipfile.is_zipfile(folder):
        with zipfile.ZipFile(folder) as wheel:
            for info in wheel.infolist():
                if Path(info.filename).name == name and info.file_size <= _MAX_BYTES:
                    return wheel.read(info).decode()
    path = next(iter(sorted(Path(folder).rglob(name))), None) if Path(folder).is_dir() else None
    if path is None or path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{folder} holds no {name}")
    return path.read_text()
