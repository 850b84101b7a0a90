"""NumPy's own files from strangers: never unpickled, and no larger in memory than their sizes say."""

import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from tradeoff.core.errors import DataError

MAX_BYTES = 1 << 36
"""Of all arrays of a file, unpacked."""
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_npz(path: Path, names: Sequence[str], max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """The named arrays of an ``.npz`` file; others are not read.

    Raises:
        DataError: the file is absent, damaged, lacks an array, holds Python objects, or unpacks to more than
            ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
            missing = [name for name in names if name not in sizes]
            if missing:
                raise DataError(
                    f"{path} holds no array {', '.join(missing)}; it has {', '.join(sorted(sizes)[:9])}"
                )
            if sum(sizes[name] for name in names) > max_bytes:
                raise DataError(f"{path} unpacks to more than {max_bytes:,} bytes")
            arrays = {}
            for name in names:
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = _read(member, sizes[name])
            return arrays
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _as_data_error(error, path) from error


def load_npy(path: Path, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array of an ``.npy`` file.

    Raises:
        DataError: the file is absent, damaged, holds Python objects, or has more than ``max_bytes``.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(f"{path} has more than {max_bytes:,} bytes")
        with path.open("rb") as file:
            return _read(file, size)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, ValueError, EOFError) as error:
        raise _as_data_error(error, path) from error


def _read(file: "IO[bytes]", size: int) -> np.ndarray:
    """An array whose header does not claim more than the ``size`` bytes that there are."""
    version = np.lib.format.read_magic(file)
    if version not in HEADER_READERS:
        raise ValueError(f"unknown version {version} of the array format")
    shape, fortran, dtype = HEADER_READERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    count = prod(shape)
    if count < 0 or count * dtype.itemsize > size:
        raise ValueError(f"an array claims {count:,} elements, more than its file holds")
    content = file.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize or file.read(1):
        raise ValueError("an array is shorter or longer than its header claims")
    array = np.frombuffer(bytearray(content), dtype=dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _as_data_error(error: Exception, path: Path) -> DataError:
    return error if isinstance(error, DataError) else DataError(f"{path} is no file of NumPy arrays: {error}")
