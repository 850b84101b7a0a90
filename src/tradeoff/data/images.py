"""Image data sets by name: ``load("digits")``, ``load("cifar10")``, ``load("path/to/folder")``."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from tradeoff.core.errors import DataError
from tradeoff.data import cifar, digits, fashion, imagenet
from tradeoff.data.folders import FolderSplit, load_folder
from tradeoff.data.splits import ImageData, Split

__all__ = ["LOADERS", "FolderSplit", "ImageData", "Split", "load"]

LOADERS: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": lambda root: digits.digits(),
    "digit-pairs": lambda root: digits.digit_pairs(),
    "fashion-mnist": fashion.load,
    "cifar10": cifar.loader(cifar.CIFAR10),
    "cifar100": cifar.loader(cifar.CIFAR100),
    "tiny-imagenet": imagenet.load_tiny_imagenet,
    "imagenet": imagenet.load_imagenet,
}
"""Name -> loader, which is given the local root where there is one."""


def check_name(name: str) -> None:
    """Check that :func:`load` knows the name, or that it is a folder, without reading any data.

    Raises:
        DataError: it is neither; the message gives the nearest name.
    """
    if name in LOADERS or Path(name).is_dir():
        return
    nearest = difflib.get_close_matches(name, LOADERS, n=1, cutoff=0.0)[0]
    raise DataError(
        f"no data set or folder {name!r}; did you mean {nearest!r}? There are: {', '.join(LOADERS)}, "
        "and any folder with one subfolder of images per class"
    )


def load(name: str, root: Path | str | None = None) -> ImageData:
    """A data set with disjoint train, validation and test splits.

    Args:
        name: a key of :data:`LOADERS`, or the path of a folder with one subfolder of images per class.
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: the name is unknown, or the data is absent or malformed; the message says what to do.
    """
    root = root or os.environ.get("TRADEOFF_DATA") or None
    local = Path(root) if root is not None else None
    check_name(name)
    return LOADERS[name](local) if name in LOADERS else load_folder(Path(name))
