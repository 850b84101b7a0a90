"""Cora, CiteSeer and PubMed with the public split (Yang, Cohen, Salakhutdinov, ICML 2016).

Read from the ``ind.*`` files of the paper's repository, which are pickles: see :mod:`.unpickling`.
"""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import vstack

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import RemoteFile, cache_folder, download
from tradeoff.data.graphs.node_data import NodeData, masks
from tradeoff.data.graphs.unpickling import read_array, read_matrix, read_neighbors
from tradeoff.nn.graphs import Adjacency, from_edges

FOLDERS = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
"""Name -> folder under ``planetoid``, as PyTorch Geometric's ``Planetoid`` names it."""
PARTS = ("x", "tx", "allx", "ty", "ally", "graph", "test.index")
URL = "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/"
MAX_BYTES = 32 << 20
VALIDATION_NODES = 500
MAX_NODES = 1 << 20
DIGESTS = {
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ind.citeseer.x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
    "ind.pubmed.ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
    "ind.pubmed.graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
    "ind.pubmed.test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    "ind.pubmed.tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
    "ind.pubmed.ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
    "ind.pubmed.x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
}
"""SHA-256 of the published files, where known."""


def loader(name: str) -> Callable[[Path | None], NodeData]:
    """The function that loads one of :data:`FOLDERS` given a local root, for the table of data sets."""
    return lambda root: load(name, root)


def load(name: str, root: Path | None) -> NodeData:
    """20 labeled nodes a class to train, 500 to validate, 1,000 to test; features as published, not
    normalized.

    Looked for in ``root/planetoid/<Name>/raw``, else downloaded to the user's cache.

    Raises:
        DataError: the files are neither here nor to be had, or are malformed.
    """
    return read({part: _find(name, part, root) for part in PARTS}, name)


def read(paths: dict[str, Path], name: str) -> NodeData:
    """One of the sets from its files: the test nodes lie behind all others, in an order of their own.

    CiteSeer's numbers of test nodes have gaps: nodes without features, labels or a part in the split.

    Raises:
        DataError: a file is malformed, or they do not fit together.
    """
    features, test_features = read_matrix(paths["allx"]), read_matrix(paths["tx"])
    labels, test_labels = read_array(paths["ally"]), read_array(paths["ty"])
    labeled = read_matrix(paths["x"]).shape[0]
    test = _test_nodes(paths["test.index"])
    folder = paths["allx"].parent
    if (
        labels.ndim != 2
        or labels.shape != (features.shape[0], test_labels.shape[-1])
        or test_labels.shape[0] != test_features.shape[0]
        or len(test) != test_features.shape[0]
        or test_features.shape[1] != features.shape[1]
        or labeled + VALIDATION_NODES > features.shape[0]
        or len(np.unique(test)) != len(test)
        or not len(test)
        or test.min() < features.shape[0]
    ):
        raise DataError(f"the files in {folder} do not fit together")
    num_nodes = int(test.max()) + 1
    graph = _graph(read_neighbors(paths["graph"]), num_nodes, name, folder)
    x = np.zeros((num_nodes, features.shape[1]), np.float32)
    y = np.zeros(num_nodes, np.int64)
    rows = np.concatenate([np.arange(features.shape[0]), test])
    x[rows] = vstack([features, test_features]).toarray()
    y[rows] = np.concatenate([labels, test_labels]).argmax(1)
    train, validation, held_out = masks(
        num_nodes, np.arange(labeled), np.arange(labeled, labeled + VALIDATION_NODES), test
    )
    return NodeData(
        name,
        graph,
        torch.from_numpy(x),
        torch.from_numpy(y),
        train,
        validation,
        held_out,
        labels.shape[1],
        origin=str(folder),
    )


def _graph(neighbors: dict[int, list[int]], num_nodes: int, name: str, folder: Path) -> Adjacency:
    counts = [len(ends) for ends in neighbors.values()]
    rows = np.repeat(np.fromiter(neighbors, np.int64, len(neighbors)), counts)
    columns = np.fromiter(chain.from_iterable(neighbors.values()), np.int64, len(rows))
    try:
        return from_edges(rows, columns, num_nodes, symmetric=True, self_loops=False, name=name)
    except ValueError as error:
        raise DataError(f"the graph in {folder}: {error}") from error


def _test_nodes(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has more than {MAX_BYTES:,} bytes")
        nodes = np.array([int(line) for line in path.read_text("ascii").split()], np.int64)
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no list of node numbers: {error}") from error
    if len(nodes) and not 0 <= nodes.min() <= nodes.max() < MAX_NODES:
        raise DataError(f"{path} names a node out of range")
    return nodes


def _find(name: str, part: str, root: Path | None) -> Path:
    file = f"ind.{name}.{part}"
    folder = Path("planetoid") / FOLDERS[name] / "raw"
    if root is not None and (root / folder / file).is_file():
        return root / folder / file
    try:
        remote = RemoteFile(URL + file, MAX_BYTES, DIGESTS.get(file))
        return download(remote, cache_folder(folder.as_posix()) / file)
    except DataError as error:
        looked = f" (looked in {root / folder})" if root is not None else ""
        raise DataError(
            f"{name}: no {file}{looked}; set TRADEOFF_DATA to a folder that holds {folder / file}; {error}"
        ) from error
