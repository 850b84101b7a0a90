"""Tables of numbers in text files, plain or gzip-compressed, within bounds."""

import gzip
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tradeoff.core.errors import DataError

MAX_BYTES = 1 << 33
"""Of a file, unpacked."""
MAX_LINE = 1 << 16
GZIP_MAGIC = b"\x1f\x8b"
COMMENTS = (b"#", b"%")


def lines(path: Path, max_bytes: int = MAX_BYTES, max_line: int = MAX_LINE) -> Iterator[bytes]:
    """The lines of a file that may be compressed; empty ones and comments (``#``, ``%``) are left out.

    Raises:
        DataError: the file is absent, damaged, unpacks to more than ``max_bytes`` or has a line over
            ``max_line``.
    """
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == GZIP_MAGIC
        read = 0
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            while line := file.readline(max_line + 1):
                read += len(line)
                if len(line) > max_line:
                    raise DataError(f"{path} has a line of more than {max_line:,} bytes")
                if read > max_bytes:
                    raise DataError(f"{path} unpacks to more than {max_bytes:,} bytes")
                line = line.strip()
                if line and not line.startswith(COMMENTS):
                    yield line
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def table(
    path: Path,
    columns: Sequence[int],
    dtype: Any = np.int64,
    delimiter: str | None = None,
    max_bytes: int = MAX_BYTES,
    max_line: int = MAX_LINE,
) -> np.ndarray:
    """Numbers ``(rows, columns)`` of a file whose lines all have one of some numbers of columns.

    Args:
        columns: how many a line may have; all lines have as many as the first.
        delimiter: between numbers; white space when not given.

    Raises:
        DataError: see :func:`lines`; or there are no lines, or one is not such numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")  # told below
            rows = np.loadtxt(
                lines(path, max_bytes, max_line),
                dtype,
                comments=None,
                delimiter=delimiter,
                ndmin=2,
                encoding="latin-1",
            )
    except (ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no table of {np.dtype(dtype).name} numbers: {error}") from error
    if not len(rows) or rows.shape[1] not in columns:
        wanted = " or ".join(map(str, columns))
        raise DataError(
            f"{path} has {rows.shape[1] if len(rows) else 0} numbers in a line; expected {wanted}"
        )
    return rows
