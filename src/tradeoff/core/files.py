"""Files that survive a kill: written whole or not at all, read with bounds, named by their content."""

import hashlib
import json
import math
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import StoreError

JSON_LIMIT = 8 * 2**20
"""Bytes that a JSON file of the store may have."""

Scalar = str | int | float | bool | None
"""A JSON scalar."""


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, finite numbers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """16 hexadecimal characters that name a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_file(path: Path) -> None:
    """Make the folder of a file that is to be written at the end of long work, and see that it can be.

    Raises:
        StoreError: it cannot be written.
    """
    if path.is_dir():
        raise StoreError(f"cannot write {path}: it is a folder")
    prepare_folder(path.parent)


def prepare_folder(folder: Path) -> None:
    """Make a folder, and see that files can be written into it.

    Raises:
        StoreError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror or error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON document atomically, indented for people."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def parse_json(data: bytes, source: str) -> Any:
    """Parse JSON of unknown origin: bounded in size and depth, finite numbers only.

    Args:
        data: the text as UTF-8.
        source: what to call it in an error.

    Raises:
        StoreError: too large, not UTF-8, not JSON, nested too deep, or holding a number that is not finite
            or a text that is no Unicode.
    """
    if len(data) > JSON_LIMIT:
        raise StoreError(f"{source}: larger than {JSON_LIMIT} bytes")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
        # Escapes can spell half a character (a lone surrogate), which could never be written again.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise StoreError(f"{source}: nested too deep") from None
    except ValueError as error:  # also undecodable text and integers of absurd length
        raise StoreError(f"{source}: not valid JSON ({error})") from None


def read_bounded(path: Path) -> bytes:
    """Read a file up to :data:`JSON_LIMIT` bytes, and one more of a larger one for the parser to refuse.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(JSON_LIMIT + 1)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file with :func:`parse_json`'s bounds.

    Raises:
        StoreError: the file cannot be read, or is not the JSON that :func:`parse_json` accepts.
    """
    return parse_json(read_bounded(path), str(path))


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)
