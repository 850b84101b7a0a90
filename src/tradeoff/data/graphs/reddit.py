"""Reddit posts joined by common commenters (Hamilton et al., NeurIPS 2017), as DGL and PyG ship it."""

from pathlib import Path

import numpy as np
import torch

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import RemoteFile, cache_folder, download
from tradeoff.data.graphs.archives import unzip
from tradeoff.data.graphs.node_data import NodeData, masks
from tradeoff.nn.graphs import Adjacency, from_edges
from tradeoff.nn.graphs.arrays import load_npz

URL = "https://data.dgl.ai/dataset/reddit.zip"
FILES = ("reddit_data.npz", "reddit_graph.npz")
MAX_BYTES = 4 << 30
TRAIN, VALIDATION, TEST = 1, 2, 3
"""In ``node_types``."""


def load(root: Path | None) -> NodeData:
    """232,965 posts in 41 communities, split by day.

    Looked for in ``root/Reddit/raw`` and ``root/reddit``, else downloaded to the user's cache.

    Raises:
        DataError: the files are neither here nor to be had, or are malformed.
    """
    for folder in (root / "Reddit" / "raw", root / "reddit") if root is not None else ():
        if all((folder / file).is_file() for file in FILES):
            return read(folder)
    folder = cache_folder("reddit")
    if not all((folder / file).is_file() for file in FILES):
        try:
            archive = download(RemoteFile(URL, MAX_BYTES), folder / "reddit.zip")
        except DataError as error:
            raise DataError(
                f"reddit is not here: set TRADEOFF_DATA to a folder that holds Reddit/raw with "
                f"{' and '.join(FILES)}; {error}"
            ) from error
        unzip(archive, FILES, folder, MAX_BYTES)
        archive.unlink(missing_ok=True)
    return read(folder)


def read(folder: Path) -> NodeData:
    """The set from a folder of :data:`FILES`.

    Raises:
        DataError: a file is malformed, or they do not fit together.
    """
    arrays = load_npz(folder / "reddit_data.npz", ("feature", "label", "node_types"))
    features, labels, kinds = (arrays[name] for name in ("feature", "label", "node_types"))
    if (
        features.ndim != 2
        or features.dtype.kind != "f"
        or any(v.ndim != 1 or v.dtype.kind not in "iu" for v in (labels, kinds))
    ):
        raise DataError(f"{folder / FILES[0]} must hold numbers (nodes, features), labels and node types")
    graph = _graph(folder / "reddit_graph.npz")
    if not len(labels) == len(kinds) == len(features) == graph.num_nodes:
        raise DataError(f"the files in {folder} are of different numbers of nodes")
    train, validation, test = (np.flatnonzero(kinds == kind) for kind in (TRAIN, VALIDATION, TEST))
    return NodeData(
        "reddit",
        graph,
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(labels.astype(np.int64)),
        *masks(len(labels), train, validation, test),
        num_classes=int(labels.max(initial=0)) + 1,
        origin=str(folder),
    )


def _graph(path: Path) -> Adjacency:
    """From the coordinate form of ``scipy.sparse.save_npz``."""
    arrays = load_npz(path, ("row", "col", "shape"))
    row, column, shape = (arrays[name] for name in ("row", "col", "shape"))
    if any(v.ndim != 1 or v.dtype.kind not in "iu" for v in (row, column, shape)):
        raise DataError(f"{path} must hold whole numbers")
    if len(shape) != 2 or shape[0] != shape[1]:
        raise DataError(f"{path} holds a matrix of shape {tuple(shape.tolist())}; a graph's is square")
    try:
        return from_edges(row, column, int(shape[0]), name="reddit")
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
