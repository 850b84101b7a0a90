"""Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): 70,000 grayscale pictures of clothes, 28x28, ten classes."""

from pathlib import Path

import numpy as np
import torch

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import RemoteFile, cache_folder, download
from tradeoff.data.idx import read_idx
from tradeoff.data.splits import ImageData, Split, carve, normalize

PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Of the Debian package dataset-fashion-mnist."""
URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
MAX_BYTES = 40_000_000
DIGESTS = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""MD5 of the published files; Debian compressed the same arrays anew."""
VALIDATION_IMAGES = 5_000
MEAN, STD = (0.2860,), (0.3530,)
CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def load(root: Path | None) -> ImageData:
    """55,000 images to train, 5,000 of the same file to validate, the official 10,000 to test (1x28x28).

    Looked for in ``root/fashion-mnist``, then where the Debian package puts it, else downloaded.

    Raises:
        DataError: the files are neither here nor to be had, or are malformed.
    """
    x, y = _read("train", root)
    kept, held_out = carve(y, min(VALIDATION_IMAGES, len(y) // 6))
    train, validation, test = (
        Split(normalize(pixels, MEAN, STD), torch.from_numpy(labels))
        for pixels, labels in ((x[kept], y[kept]), (x[held_out], y[held_out]), _read("t10k", root))
    )
    return ImageData(train, validation, test, 10, (1, 28, 28), "fashion-mnist", MEAN, STD, CLASSES)


def _read(part: str, root: Path | None) -> tuple[np.ndarray, np.ndarray]:
    images = _find(f"{part}-images-idx3-ubyte.gz", root)
    labels = _find(f"{part}-labels-idx1-ubyte.gz", root)
    pixels, classes = read_idx(images, 3), read_idx(labels, 1)
    if pixels.shape != (len(classes), 28, 28) or not len(classes) or classes.max() > 9:
        raise DataError(f"{images} and {labels} are not 28x28 images with as many labels from 0 to 9")
    return pixels[:, None], classes.astype(np.int64)


def _find(name: str, root: Path | None) -> Path:
    folders = [PACKAGE_FOLDER] if root is None else [root / "fashion-mnist", PACKAGE_FOLDER]
    for folder in folders:
        for path in (folder / name, folder / name.removesuffix(".gz")):
            if path.is_file():
                return path
    try:
        return download(
            RemoteFile(URL + name, MAX_BYTES, DIGESTS[name]), cache_folder("fashion-mnist") / name
        )
    except DataError as error:
        raise DataError(
            f"fashion-mnist: no {name} in {' or '.join(map(str, folders))}; run: "
            "apt install dataset-fashion-mnist, or set TRADEOFF_DATA to a folder that holds "
            f"fashion-mnist/{name}; {error}"
        ) from error
