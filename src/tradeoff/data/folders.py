"""Folders of images with one subfolder per class; what does not fit in memory is decoded batch by batch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from tradeoff.core.errors import DataError
from tradeoff.data.decoding import EXTENSIONS, open_image, to_pixels
from tradeoff.data.splits import ImageData, ImageSplit, Split, carve, normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, the usual choice for photographs."""
IN_MEMORY_BYTES = 2 << 30
"""A split whose float32 tensor is smaller is decoded at once."""
EVALUATION_CROP = 224 / 256
"""Part of the shorter side that evaluation keeps, in the middle."""
LARGEST_DEFAULT_SIZE = 224
THREADS = 8
PART_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclass(frozen=True)
class FolderSplit:
    """Images on disk, decoded batch by batch; used like :class:`~tradeoff.data.splits.Split` by index.

    Attributes:
        paths: one file per image.
        y: int64 labels ``(images,)``.
        size: pixels of the side of the square that each image becomes.
        crop: part of the shorter side that is kept, in the middle; 1 for all of it.
    """

    paths: tuple[Path, ...]
    y: Int64[Tensor, " images"]
    size: int
    crop: float = 1.0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: "Tensor | slice | list[int]") -> tuple[Tensor, Tensor]:
        """Images and labels of several positions, resized and cut in the middle."""
        return self._decode(index, None)

    def augmented(self, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """As by index, but each image is a random part (8 to 100 % of the area, aspect 3:4 to 4:3), resized.

        The crop of Szegedy et al., "Going deeper with convolutions" (CVPR 2015), without its color changes.
        """
        return self._decode(index, np.random.Generator(np.random.PCG64(seed)))

    @property
    def x(self) -> Float[Tensor, "images channels height width"]:
        """All images at once.

        Raises:
            DataError: they do not fit in memory; index in batches.
        """
        needed = len(self) * 3 * self.size**2 * 4
        if needed > IN_MEMORY_BYTES:
            raise DataError(
                f"{len(self):,} images of {self.size} pixels take {needed / 2**30:.0f} GiB; take batches"
            )
        return self[:][0]

    def take(self, count: int) -> Split:
        """The first ``count`` images, decoded."""
        return Split(*self[:count])

    def _decode(
        self, index: "Tensor | slice | list[int]", generator: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        positions = torch.arange(len(self))[index].tolist()
        boxes = generator.random((len(positions), 4)) if generator is not None else [None] * len(positions)
        with ThreadPoolExecutor(THREADS) as pool:  # decoding releases the interpreter lock
            pixels = list(pool.map(lambda p, b: self._one(self.paths[p], b), positions, boxes))
        shape = (0, 3, self.size, self.size)
        return normalize(np.stack(pixels) if pixels else np.empty(shape), MEAN, STD), self.y[positions]

    def _one(self, path: Path, draw: np.ndarray | None) -> np.ndarray:
        image = open_image(path)
        box = _central_box(image.size, self.crop) if draw is None else _random_box(image.size, draw)
        return to_pixels(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box))


def _central_box(size: tuple[int, int], crop: float) -> tuple[float, float, float, float]:
    side = min(size) * crop
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side


def _random_box(size: tuple[int, int], draw: np.ndarray) -> tuple[float, float, float, float]:
    """A part of the image from four numbers in [0, 1): area, aspect, horizontal and vertical place."""
    area = size[0] * size[1] * (0.08 + 0.92 * draw[0])
    aspect = (3 / 4) * (16 / 9) ** draw[1]
    width = min((area * aspect) ** 0.5, size[0])
    height = min((area / aspect) ** 0.5, size[1])
    left, top = (size[0] - width) * draw[2], (size[1] - height) * draw[3]
    return left, top, left + width, top + height


def load_folder(folder: Path, size: int | None = None) -> ImageData:
    """A folder with one subfolder of images per class, or with ``train``, ``val``, ``test`` folders of such.

    Parts that are not there are carved from the training images, a tenth for each, always the same.

    Args:
        size: pixels of the side that every image is resized to (its middle square); when not given, the
            shorter side of the first image, at most 224.

    Raises:
        DataError: there are no class folders, or none with images.
    """
    folders = {part: _part_folder(folder, part) for part in PART_NAMES}
    train_folder = folders["train"] or folder
    classes = class_folders(train_folder)
    paths, y = list_images(train_folder, classes)
    if size is None:
        size = min(*open_image(paths[0]).size, LARGEST_DEFAULT_SIZE)
    carved = {part for part in ("validation", "test") if folders[part] is None}
    kept = np.arange(len(y))
    listed = {}
    for part in sorted(carved):
        inner, held_out = carve(y[kept], max(1, len(y) // 10))
        listed[part] = ([paths[i] for i in kept[held_out]], y[kept[held_out]])
        kept = kept[inner]
    listed["train"] = ([paths[i] for i in kept], y[kept])
    if not len(kept):
        raise DataError(f"{folder} holds {len(y)} images; too few to train, validate and test on")
    for part in {"validation", "test"} - carved:
        part_folder = folders[part]
        assert part_folder is not None
        listed[part] = list_images(part_folder, classes)
    return assemble(folder.name, listed, classes, size)


def assemble(
    name: str,
    listed: dict[str, tuple[list[Path], np.ndarray]],
    classes: Sequence[str],
    size: int,
    crop: float = 1.0,
) -> ImageData:
    """Splits of listed files, in memory where they fit."""
    splits: dict[str, ImageSplit] = {}
    for part, (paths, y) in listed.items():
        lazy = FolderSplit(tuple(paths), torch.from_numpy(y), size, crop)
        fits = len(lazy) * 3 * size**2 * 4 <= IN_MEMORY_BYTES
        splits[part] = lazy.take(len(lazy)) if fits else lazy
    return ImageData(
        splits["train"], splits["validation"], splits["test"],
        len(classes), (3, size, size), name, MEAN, STD, tuple(classes),
    )  # fmt: skip


def _part_folder(folder: Path, part: str) -> Path | None:
    return next((folder / name for name in PART_NAMES[part] if (folder / name).is_dir()), None)


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders, sorted: a class's label is its position."""
    classes = _visible_folders(folder)
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} subfolders; expected one per class, at least 2")
    return classes


def _visible_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def list_images(folder: Path, classes: Sequence[str], inner: str = "") -> tuple[list[Path], np.ndarray]:
    """Files and labels of ``folder/<class>/<inner>``, shuffled, the same on every call.

    Raises:
        DataError: a class has no image, or the folder holds a class that is not listed.
    """
    foreign = set(_visible_folders(folder)) - set(classes)
    if foreign:
        raise DataError(f"{folder} has class folders that training has not: {', '.join(sorted(foreign)[:5])}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = folder / name / inner
        found = (
            sorted(p for p in inside.rglob("*") if p.suffix.lower() in EXTENSIONS) if inside.is_dir() else []
        )
        if not found:
            raise DataError(f"{inside} holds no image ({', '.join(sorted(EXTENSIONS))})")
        paths += found
        labels += [label] * len(found)
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(paths))
    return [paths[i] for i in order], np.array(labels, dtype=np.int64)[order]
