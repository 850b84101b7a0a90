"""ImageNet (Deng et al., CVPR 2009) and Tiny-ImageNet (Stanford CS231n), from a local root: neither may be
downloaded without its owner's terms.

The labelled validation part serves as the test split of both, as the literature does; our validation split is
carved from the training images.
"""

from pathlib import Path

import numpy as np

from tradeoff.core.errors import DataError
from tradeoff.data.folders import EVALUATION_CROP, assemble, class_folders, list_images
from tradeoff.data.splits import ImageData, carve

VALIDATION_IMAGES = 10_000
ANNOTATIONS = "val_annotations.txt"
MAX_ANNOTATION_BYTES = 10_000_000


def load_imagenet(root: Path | None) -> ImageData:
    """``imagenet/train/<class>/*.JPEG`` and ``imagenet/val/<class>/*.JPEG``, at 224 pixels.

    Raises:
        DataError: the folders are not there.
    """
    folder = _local(root, "imagenet", ("imagenet",), "train and val, each with one folder per class")
    classes = class_folders(folder / "train")
    test = list_images(folder / "val", classes)
    return _with_carved_validation("imagenet", list_images(folder / "train", classes), test, classes, 224)


def load_tiny_imagenet(root: Path | None) -> ImageData:
    """``tiny-imagenet-200`` as published (``train/<class>/images``, annotated ``val``), at 64 pixels.

    Raises:
        DataError: the folder is not there or incomplete.
    """
    names = ("tiny-imagenet-200", "tiny-imagenet")
    folder = _local(root, "tiny-imagenet", names, "train, and val with val_annotations.txt")
    classes = class_folders(folder / "train")
    train = list_images(folder / "train", classes, "images")
    test = _annotated(folder / "val", classes)
    return _with_carved_validation("tiny-imagenet", train, test, classes, 64)


def _local(root: Path | None, name: str, folders: tuple[str, ...], layout: str) -> Path:
    for folder in folders:
        if root is not None and (root / folder / "train").is_dir() and (root / folder / "val").is_dir():
            return root / folder
    where = f"not in {root}" if root is not None else "TRADEOFF_DATA is not set"
    raise DataError(
        f"{name} must be on this machine ({where}): set TRADEOFF_DATA to the folder that holds {folders[0]}, "
        f"which holds {layout}"
    )


def _with_carved_validation(
    name: str,
    train: tuple[list[Path], np.ndarray],
    test: tuple[list[Path], np.ndarray],
    classes: list[str],
    size: int,
) -> ImageData:
    paths, y = train
    kept, held_out = carve(y, min(VALIDATION_IMAGES, len(y) // 10))
    listed = {
        "train": ([paths[i] for i in kept], y[kept]),
        "validation": ([paths[i] for i in held_out], y[held_out]),
        "test": test,
    }
    return assemble(name, listed, classes, size, EVALUATION_CROP if size == 224 else 1.0)


def _annotated(folder: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """Files of ``val/images`` and their labels, from lines of ``file <tab> class <tab> box``."""
    path = folder / ANNOTATIONS
    if not path.is_file() or path.stat().st_size > MAX_ANNOTATION_BYTES:
        raise DataError(f"{path} is missing, or too long to be the published annotation file")
    label_of = {name: label for label, name in enumerate(classes)}
    files, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = label_of.get(rest.split("\t")[0])
        if label is None or Path(name).name != name:
            raise DataError(f"{path}, line {number}: expected a file name and one of the training classes")
        files.append(folder / "images" / name)
        labels.append(label)
    if not files:
        raise DataError(f"{path} lists no image")
    return files, np.array(labels, dtype=np.int64)
