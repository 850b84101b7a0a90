"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

Read from parquet files as the Hugging Face hub holds them: a column ``img`` of encoded images
(``{bytes, path}``) and one of labels.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors
import torch
from safetensors.numpy import load_file, save_file

from tradeoff.core.errors import DataError
from tradeoff.data.decoding import open_image, to_pixels
from tradeoff.data.downloads import cache_folder, download, hub_file, under_lock
from tradeoff.data.splits import ImageData, Split, carve, normalize

SIZE = 32
VALIDATION_IMAGES = 5_000
MAX_FILE_BYTES = 500_000_000
MAX_IMAGE_BYTES = 100_000


@dataclass(frozen=True)
class Source:
    """Where one of the two sets is, and what it must hold."""

    name: str
    repository: str
    folder: str
    label: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rows: tuple[tuple[str, int], ...] = (("train", 50_000), ("test", 10_000))


CIFAR10 = Source(
    "cifar10",
    "uoft-cs/cifar10",
    "plain_text",
    "label",
    10,
    (0.4914, 0.4822, 0.4465),
    (0.2470, 0.2435, 0.2616),
)
CIFAR100 = Source(
    "cifar100",
    "uoft-cs/cifar100",
    "cifar100",
    "fine_label",
    100,
    (0.5071, 0.4865, 0.4409),
    (0.2673, 0.2564, 0.2762),
)


def loader(source: Source) -> Callable[[Path | None], ImageData]:
    """The function that loads ``source`` given a local root, for the table of data sets."""
    return lambda root: load(source, root)


def load(source: Source, root: Path | None) -> ImageData:
    """45,000 images to train, 5,000 of the same file to validate, the official 10,000 to test.

    Looked for in ``root/<name>``, else downloaded to the user's cache. Decoded pixels are cached by content.

    Raises:
        DataError: the files are neither here nor to be had, or are not CIFAR.
    """
    pixels = {}
    for part, rows in source.rows:
        path = _find(source, part, root)
        pixels[part] = _decoded(path, source, rows)
    x, y = pixels["train"]
    kept, held_out = carve(y, VALIDATION_IMAGES)
    parts = [
        Split(normalize(px, source.mean, source.std), torch.from_numpy(labels))
        for px, labels in ((x[kept], y[kept]), (x[held_out], y[held_out]), pixels["test"])
    ]
    train, validation, test = parts
    shape = (3, SIZE, SIZE)
    return ImageData(train, validation, test, source.num_classes, shape, source.name, source.mean, source.std)


def _find(source: Source, part: str, root: Path | None) -> Path:
    name = f"{part}-00000-of-00001.parquet"
    if root is not None:
        for folder in (root / source.name / source.folder, root / source.name):
            if (folder / name).is_file():
                return folder / name
    remote = hub_file(source.repository, f"{source.folder}/{name}", MAX_FILE_BYTES)
    try:
        return download(remote, cache_folder(source.name) / name)
    except DataError as error:
        looked = f" (looked in {root / source.name})" if root is not None else ""
        raise DataError(
            f"{source.name} is not here{looked}: set TRADEOFF_DATA to a folder that holds "
            f"{source.name}/{source.folder}/{name}, as {source.repository} on the hub has it; {error}"
        ) from error


def _decoded(path: Path, source: Source, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 ``(images, 3, 32, 32)`` and labels int64 of a parquet file, decoded once per content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cached = cache_folder("decoded") / f"{source.name}-{digest[:32]}.safetensors"
    with under_lock(cached) as temporary:
        if cached.exists():
            try:
                tensors = load_file(cached)
                return tensors["pixels"], tensors["labels"]
            except (safetensors.SafetensorError, KeyError):
                pass  # a damaged cache is decoded anew and replaced
        pixels, labels = read_parquet(path, source.label, rows, source.num_classes)
        save_file({"pixels": pixels, "labels": labels}, temporary)
    return pixels, labels


def read_parquet(path: Path, label: str, rows: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode a file of the hub's image layout.

    Args:
        label: name of the label column.
        rows: how many images it must hold.

    Raises:
        DataError: not parquet, other columns, another number of images, a label or an image out of bounds.
    """
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            if file.metadata.num_rows != rows:
                raise DataError(f"{path} holds {file.metadata.num_rows} images; {rows} were expected")
            missing = {"img", label} - set(file.schema_arrow.names)
            if missing:
                raise DataError(f"{path} has no column {', '.join(sorted(missing))}")
            pixels: list[np.ndarray] = []
            labels: list[np.ndarray] = []
            with ThreadPoolExecutor(2) as pool:  # decoding releases the interpreter lock
                for batch in file.iter_batches(1000, columns=["img", label]):
                    encoded = batch.column("img").field("bytes").to_pylist()
                    pixels.extend(pool.map(lambda content: _decode(content, path), encoded))
                    labels.append(batch.column(label).to_numpy(zero_copy_only=False))
    except (pyarrow.ArrowException, KeyError, AttributeError, OSError) as error:
        raise DataError(f"{path} is not a parquet file of encoded images: {error}") from error
    y = np.concatenate(labels)
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= num_classes:
        raise DataError(f"{path}: labels must be integers from 0 to {num_classes - 1}")
    return np.stack(pixels), y.astype(np.int64)


def _decode(content: bytes | None, path: Path) -> np.ndarray:
    if not content or len(content) > MAX_IMAGE_BYTES:
        raise DataError(f"{path}: an image is empty or longer than {MAX_IMAGE_BYTES:,} bytes")
    image = open_image(content)
    if image.size != (SIZE, SIZE):
        raise DataError(f"{path}: an image has {image.width}x{image.height} pixels, not {SIZE}x{SIZE}")
    return to_pixels(image)
