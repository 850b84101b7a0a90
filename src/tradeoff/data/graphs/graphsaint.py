"""Flickr and Yelp in the layout of GraphSAINT (Zeng et al., ICLR 2020)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import RemoteFile, cache_folder, download
from tradeoff.data.graphs.node_data import NodeData, masks
from tradeoff.nn.graphs import read_adjacency
from tradeoff.nn.graphs.arrays import load_npy

FILES = ("adj_full.npz", "feats.npy", "class_map.json", "role.json")
DRIVE = "https://drive.usercontent.google.com/download?confirm=t&id="
MAX_BYTES = 4 << 30
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Source:
    """Where one of the two sets is.

    Attributes:
        folder: under the local root, as PyTorch Geometric names it.
        identifiers: of :data:`FILES` in the authors' folder.
    """

    folder: str
    identifiers: tuple[str, str, str, str]


SOURCES = {
    "flickr": Source(
        "Flickr",
        (
            "1crmsTbd1-2sEXsGwa2IKnIB7Zd3TmUsy",
            "1join-XdvX3anJU_MLVtick7MgeAQiWIZ",
            "1uxIkbtg5drHTsKt-PAsZZ4_yJmgFmle9",
            "1htXCtuktuCW8TR8KiKfrFDAxUgekQoV7",
        ),
    ),
    "yelp": Source(
        "Yelp",
        (
            "1Juwx8HtDwSzmVIJ31ooVa1WljI4U5JnA",
            "1Zy6BZH_zLEjKlEFSduKE5tV9qqA_8VtM",
            "1VUcBGr0T0-klqerjAjxRmAqFuld_SMWU",
            "1NI5pa5Chpd-52eSmLW60OnB3WS5ikxq_",
        ),
    ),
}


def loader(name: str) -> Callable[[Path | None], NodeData]:
    """The function that loads one of :data:`SOURCES` given a local root, for the table of data sets."""
    return lambda root: load(name, root)


def load(name: str, root: Path | None) -> NodeData:
    """Flickr (89,250 images, 7 classes) or Yelp (716,847 users, any of 100 classes).

    Looked for in ``root/<Name>/raw`` and ``root/<name>``, else downloaded to the user's cache. Features are
    standardized by the training nodes, as the authors' code does.

    Raises:
        DataError: the files are neither here nor to be had, or are malformed.
    """
    source = SOURCES[name]
    for folder in (root / source.folder / "raw", root / name) if root is not None else ():
        if all((folder / file).is_file() for file in FILES):
            return read(folder, name)
    folder = cache_folder(name)
    try:
        for file, identifier in zip(FILES, source.identifiers, strict=True):
            download(RemoteFile(DRIVE + identifier, MAX_BYTES), folder / file)
    except DataError as error:
        raise DataError(
            f"{name} is not here: set TRADEOFF_DATA to a folder that holds {source.folder}/raw with "
            f"{', '.join(FILES)}; {error}"
        ) from error
    return read(folder, name)


def read(folder: Path, name: str) -> NodeData:
    """A set from a folder of :data:`FILES`.

    Labels are classes where the map gives a number for each node, and several of them where it gives lists of
    zeros and ones.

    Raises:
        DataError: a file is malformed, or they do not fit together.
    """
    graph = read_adjacency(folder / "adj_full.npz")
    features = load_npy(folder / "feats.npy")
    if features.ndim != 2 or features.dtype.kind != "f" or not np.isfinite(features).all():
        raise DataError(f"{folder / 'feats.npy'} must hold finite numbers (nodes, features)")
    if len(features) != graph.num_nodes:
        raise DataError(f"{folder}: {len(features):,} rows of features for {graph.num_nodes:,} nodes")
    roles = _json(folder / "role.json")
    train, validation, test = masks(
        graph.num_nodes, _nodes(roles, "tr", folder), _nodes(roles, "va", folder), _nodes(roles, "te", folder)
    )
    y = _labels(_json(folder / "class_map.json"), graph.num_nodes, folder)
    x = torch.from_numpy(features.astype(np.float32))
    if train.any():
        seen = x[train].double()
        x = ((x - seen.mean(0)) / seen.std(0, correction=0).clamp_min(1e-12)).float()
    multi_label = y.ndim == 2
    num_classes = y.shape[1] if multi_label else int(y.max()) + 1
    return NodeData(
        name, graph, x, y, train, validation, test, num_classes, multi_label=multi_label, origin=str(folder)
    )


def _labels(classes: object, num_nodes: int, folder: Path) -> torch.Tensor:
    path = folder / "class_map.json"
    if not isinstance(classes, dict) or set(classes) != {str(node) for node in range(num_nodes)}:
        raise DataError(f"{path} must map each node, as text from '0' to '{num_nodes - 1}', to its classes")
    try:
        y = np.array([classes[str(node)] for node in range(num_nodes)])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if y.dtype.kind not in "iu" or y.ndim not in (1, 2) or y.min() < 0:
        raise DataError(f"{path} must give a class, or a list of zeros and ones, for each node")
    if y.ndim == 2:
        if y.max() > 1:
            raise DataError(f"{path} must give lists of zeros and ones")
        return torch.from_numpy(y.astype(np.float32))
    if y.max() >= MAX_CLASSES:
        raise DataError(f"{path} has a class above {MAX_CLASSES:,}")
    return torch.from_numpy(y.astype(np.int64))


def _nodes(roles: object, key: str, folder: Path) -> np.ndarray:
    nodes = roles.get(key) if isinstance(roles, dict) else None
    if not isinstance(nodes, list) or not all(type(node) is int and abs(node) < 1 << 62 for node in nodes):
        raise DataError(f"{folder / 'role.json'} must list the numbers of nodes under {key!r}")
    return np.array(nodes, np.int64)


def _json(path: Path) -> object:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has more than {MAX_BYTES:,} bytes")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no JSON: {error}") from error
