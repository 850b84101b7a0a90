"""Graphs without features: SNAP's edge lists and SuiteSparse's Matrix Market files."""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
from scipy.io import mmread

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import RemoteFile, cache_folder, download
from tradeoff.data.graphs.archives import untar
from tradeoff.data.graphs.text import GZIP_MAGIC, table
from tradeoff.nn.graphs import Adjacency, from_edges

SNAP = "https://snap.stanford.edu/data/"
SNAP_COMMUNITIES = f"{SNAP}bigdata/communities/"
SUITESPARSE = "https://suitesparse-collection-website.herokuapp.com/MM/"
EDGE_LISTS = (".txt", ".txt.gz", ".edges", ".edges.gz")
MATRICES = (".mtx", ".mtx.gz")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
MAX_DOWNLOAD = 4 << 30
MAX_ENTRIES = 1 << 32
SMALLEST_ENTRY = 4
"""Bytes of a line ``1 1``."""
GZIP_RATIO = 1032
"""The most that gzip can shrink anything."""


def read_edge_list(path: Path, symmetric: bool = True) -> Adjacency:
    """A graph from lines of two node numbers, ``source target``; nodes are renumbered from 0 in their order.

    Args:
        symmetric: whether to add each edge's mirror image, which the files leave out of undirected graphs.

    Raises:
        DataError: the file is absent or malformed.
    """
    edges = table(path, (2,))
    nodes, ends = np.unique(edges, return_inverse=True)
    source, target = ends.reshape(edges.shape).T
    # Row and column as everywhere: a node aggregates from the sources of its edges.
    return from_edges(target, source, len(nodes), symmetric=symmetric, name=path.name.partition(".")[0])


def read_matrix_market(path: Path) -> Adjacency:
    """A graph from a square sparse matrix in Matrix Market form; one of ``pattern`` has no values.

    Raises:
        DataError: the file is absent or malformed, or its matrix is dense, complex or not square.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as plain:
            compressed = plain.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            banner = file.readline(1025).decode("latin-1").lower().split()
            line = b"%"
            while line.startswith(b"%") or line.isspace():
                line = file.readline(1 << 16)
            sizes = [int(word) for word in line.split()]
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or len(banner) != 5 or len(sizes) != 3:
            raise DataError(f"{path} is no sparse matrix in Matrix Market form")
        rows, columns, entries = sizes
        if rows != columns or rows < 0:
            raise DataError(f"{path} holds a {rows} x {columns} matrix; a graph's is square")
        if banner[3] == "complex":
            raise DataError(f"{path} holds complex numbers")
        if not 0 <= entries <= min(MAX_ENTRIES, size * (GZIP_RATIO if compressed else 1) // SMALLEST_ENTRY):
            raise DataError(f"{path} claims {entries:,} entries, more than a file of its size can hold")
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            matrix = mmread(file)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, ValueError, OverflowError, EOFError, zlib.error, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no sparse matrix in Matrix Market form: {error}") from error
    values = None if banner[3] == "pattern" or not len(matrix.data) else matrix.data.astype(np.float32)
    row, column = (np.asarray(ends, np.int64) for ends in (matrix.row, matrix.col))
    return from_edges(row, column, rows, values=values, name=path.name.partition(".")[0])


def read_structure(path: Path) -> Adjacency:
    """A graph from a file, by its name's end: an edge list or a matrix.

    Raises:
        DataError: the file is absent, malformed, or of another kind.
    """
    if path.name.endswith(MATRICES):
        return read_matrix_market(path)
    if path.name.endswith(EDGE_LISTS):
        return read_edge_list(path)
    raise DataError(f"{path}: graphs are read from {', '.join((*EDGE_LISTS, *MATRICES))} and .npz files")


def snap(name: str, root: Path | None) -> Adjacency:
    """A graph of the SNAP collection, such as ``amazon0601`` or ``com-youtube``, made symmetric.

    Looked for as ``root/snap/<name>.txt`` or ``.txt.gz``, else downloaded to the user's cache.

    Raises:
        DataError: the name is no possible one, or the file is neither here nor to be had, or malformed.
    """
    _check_name(name, "snap:NAME")
    stem = f"{name}.ungraph" if name.startswith("com-") else name
    for file in (f"{stem}.txt", f"{stem}.txt.gz") if root is not None else ():
        if (path := Path(str(root)) / "snap" / file).is_file():
            return read_edge_list(path)
    url = f"{SNAP_COMMUNITIES if name.startswith('com-') else SNAP}{stem}.txt.gz"
    return read_edge_list(_fetched(url, f"snap/{stem}.txt.gz"))


def suitesparse(name: str, root: Path | None) -> Adjacency:
    """A square matrix of the SuiteSparse collection, as ``GROUP/NAME``.

    Looked for as ``root/suitesparse/GROUP/NAME.mtx`` or ``.mtx.gz``, else downloaded to the user's cache.

    Raises:
        DataError: the name is no possible one, or the file is neither here nor to be had, or malformed.
    """
    group, _, matrix = name.partition("/")
    _check_name(group, "suitesparse:GROUP/NAME")
    _check_name(matrix, "suitesparse:GROUP/NAME")
    for file in (f"{matrix}.mtx", f"{matrix}.mtx.gz") if root is not None else ():
        if (path := Path(str(root)) / "suitesparse" / group / file).is_file():
            return read_matrix_market(path)
    target = cache_folder("suitesparse", group) / f"{matrix}.mtx"
    if not target.exists():
        archive = _fetched(f"{SUITESPARSE}{name}.tar.gz", f"suitesparse/{name}.mtx", f"{matrix}.tar.gz")
        untar(archive, f"{matrix}/{matrix}.mtx", target, 8 * MAX_DOWNLOAD)
        archive.unlink(missing_ok=True)
    return read_matrix_market(target)


def _fetched(url: str, local: str, file: str | None = None) -> Path:
    """The file of ``url`` in the cache, or an error that says where a local copy is looked for."""
    folder = Path(local).parent
    try:
        return download(
            RemoteFile(url, MAX_DOWNLOAD), cache_folder(folder.as_posix()) / (file or Path(local).name)
        )
    except DataError as error:
        raise DataError(f"set TRADEOFF_DATA to a folder that holds {local}; {error}") from error


def _check_name(name: str, usage: str) -> None:
    if not NAME.fullmatch(name):
        raise DataError(f"{name!r} is no name of that collection; write {usage}")
