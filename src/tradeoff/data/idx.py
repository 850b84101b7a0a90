"""The IDX format of the MNIST family: a magic number, big-endian sizes, then bytes; often gzip-compressed."""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tradeoff.core.errors import DataError

MAX_ELEMENTS = 1 << 30
UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array of unsigned bytes in an IDX file of the given number of dimensions.

    Raises:
        DataError: the file is not IDX, is truncated or longer than its header says, or holds another element
            type or number of dimensions, or more than 2^30 elements.
    """
    with path.open("rb") as plain:
        compressed = plain.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _shape(header, dimensions, path)
            elements = prod(shape)
            if elements > MAX_ELEMENTS:
                raise DataError(f"{path} claims {elements:,} elements, more than {MAX_ELEMENTS:,}")
            content = file.read(elements)
            rest = file.read(1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}") from error
    if len(content) != elements or rest:
        problem = "is longer than" if rest else "ends before"
        raise DataError(f"{path} {problem} the {elements:,} bytes its header claims")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(header: bytes, dimensions: int, path: Path) -> tuple[int, ...]:
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path} is too short for an IDX header of {dimensions} dimensions")
    zeros, element, count = struct.unpack(">HBB", header[:4])
    if zeros != 0 or element != UNSIGNED_BYTE or count != dimensions:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes in {dimensions} dimensions: "
            f"it starts with {header[:4].hex()}"
        )
    return struct.unpack(f">{dimensions}I", header[4:])
