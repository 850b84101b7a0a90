"""Arrays out of pickle files that a stranger may have written, without running anything that they say.

A pickle is a program. This reader accepts the handful of instructions that arrays, sparse matrices and lists
of neighbors are written with, and gives it nothing to call: every name of the allow-list stands for a class
of this module that only keeps what it is handed. Arrays are then made here, from bytes, after their sizes
were compared.
"""

import io
import pickle
import pickletools
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from tradeoff.core.errors import DataError

MAX_BYTES = 64 << 20
DTYPES = frozenset(("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
OPCODES = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT",
    "LONG_BINPUT", "MEMOIZE", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1",
    "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE", "BINUNICODE",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT",
    "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD",
))  # fmt: skip
"""Instructions that such files consist of; the others make objects, extensions or buffers that none needs."""


class _Inert:
    """Keeps what a pickle would have called something with."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Inert): ...


class _Dtype(_Inert): ...


class _Matrix(_Inert): ...


class _ListType: ...


class _ArrayType: ...


def _neighbors(*factory: Any) -> dict[Any, Any]:
    """In the place of ``defaultdict(list)``."""
    return {}


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "defaultdict"): _neighbors,
    **{(module, "list"): _ListType for module in ("__builtin__", "builtins")},
    **{(f"numpy.{core}multiarray", "_reconstruct"): _Array for core in ("core.", "_core.")},
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Dtype,
    **{(f"scipy.sparse.{module}", "csr_matrix"): _Matrix for module in ("csr", "_csr")},
}
"""What a pickle may name, and the harmless thing that it gets."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed") from None


def read_matrix(path: Path) -> csr_matrix:
    """A sparse matrix, such as the features of Planetoid.

    Raises:
        DataError: see :func:`read_pickle`; or the pickle holds something else.
    """
    made = read_pickle(path)
    state = made.state if isinstance(made, _Matrix) else None
    if not isinstance(state, dict):
        raise DataError(f"{path} does not hold a sparse matrix")
    fields = {_text(key): value for key, value in state.items()}
    try:
        indptr, indices, data = (_array(fields[name], path) for name in ("indptr", "indices", "data"))
        rows, columns = fields["_shape"]
        if type(rows) is not int or type(columns) is not int or min(rows, columns) < 0:
            raise ValueError(f"its shape is {rows!r} x {columns!r}")
        for name, array in (("indptr", indptr), ("indices", indices)):
            if array.ndim != 1 or array.dtype.kind != "i":
                raise ValueError(f"{name} is no vector of integers")
        if (
            len(indptr) != rows + 1
            or indptr[0] != 0
            or (np.diff(indptr) < 0).any()
            or data.shape != indices.shape
        ):
            raise ValueError("its arrays do not fit together")
        if indptr[-1] != len(indices) or (len(indices) and not 0 <= indices.min() <= indices.max() < columns):
            raise ValueError("a column is out of range")
        return csr_matrix((data, indices, indptr), shape=(rows, columns))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} holds a malformed sparse matrix: {error}") from error


def read_array(path: Path) -> np.ndarray:
    """A dense array of numbers.

    Raises:
        DataError: see :func:`read_pickle`; or the pickle holds something else.
    """
    return _array(read_pickle(path), path)


def read_neighbors(path: Path) -> dict[int, list[int]]:
    """The neighbors of each node, as ``{node: [node, ...]}``.

    Raises:
        DataError: see :func:`read_pickle`; or the pickle holds something else.
    """
    made = read_pickle(path)
    if not isinstance(made, dict) or not all(
        type(node) is int and type(ends) is list and all(type(end) is int for end in ends)
        for node, ends in made.items()
    ):
        raise DataError(f"{path} does not hold lists of neighbors")
    return made


def read_pickle(path: Path) -> Any:
    """What a pickle file holds, with inert objects in the place of arrays and matrices.

    Raises:
        DataError: the file is absent, longer than :data:`MAX_BYTES`, damaged, or uses a name or an
            instruction that arrays of numbers do not need; nothing that it names is called.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES:,} bytes")
    try:
        _check_instructions(content)
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(f"{path} is refused: {error}") from error
    except (EOFError, MemoryError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is a damaged pickle: {error or type(error).__name__}") from error


def _check_instructions(content: bytes) -> None:
    """Refuse instructions outside :data:`OPCODES`, and memo slots above the file's size: they take memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it uses the instruction {opcode.name}, which arrays do not need")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it uses memo slot {argument:,}")


def _array(made: Any, path: Path) -> np.ndarray:
    """The array of ``ndarray.__setstate__``'s arguments: version, shape, type, order, bytes."""
    if not isinstance(made, _Array) or not isinstance(made.state, tuple) or len(made.state) != 5:
        raise DataError(f"{path} does not hold an array of numbers")
    _, shape, dtype, fortran, content = made.state
    if not isinstance(dtype, _Dtype) or not dtype.arguments or not isinstance(shape, tuple):
        raise DataError(f"{path} holds a malformed array")
    code = _text(dtype.arguments[0])
    order = _text(dtype.state[1]) if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "|"
    if code not in DTYPES or order not in ("<", ">", "|"):
        raise DataError(f"{path} holds an array of type {code!r}; only numbers are read")
    if not all(type(size) is int and size >= 0 for size in shape) or type(content) is not bytes:
        raise DataError(f"{path} holds a malformed array")
    kind = np.dtype(order + code)
    if prod(shape) * kind.itemsize != len(content):
        raise DataError(f"{path} holds {len(content):,} bytes for an array of shape {shape}")
    array = np.frombuffer(content, kind).astype(code)
    return array.reshape(shape, order="F" if fortran else "C")


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
