"""Node-classification sets of the Open Graph Benchmark (Hu et al., NeurIPS 2020), from their raw files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import torch

from tradeoff.core.errors import DataError
from tradeoff.data.downloads import RemoteFile, cache_folder, download
from tradeoff.data.graphs.archives import unzip
from tradeoff.data.graphs.node_data import NodeData, masks
from tradeoff.nn.graphs import from_edges

URL = "https://snap.stanford.edu/ogb/data/nodeproppred/"
MAX_BYTES = 16 << 30
MAX_NODES = 1 << 28
MAX_EDGES = 1 << 31
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Source:
    """One of the sets.

    Attributes:
        archive: name of its file and top folder.
        split: folder of its split.
        features: columns of its node features; 0 where edges have the features.
        edge_features: columns of those.
        classes: of the labels.
        multi_label: whether labels are several zeros and ones.
    """

    archive: str
    split: str
    features: int
    edge_features: int
    classes: int
    multi_label: bool = False


SOURCES = {
    "ogbn-arxiv": Source("arxiv", "time", 128, 0, 40),
    "ogbn-products": Source("products", "sales_ranking", 100, 0, 47),
    "ogbn-proteins": Source("proteins", "species", 0, 8, 112, multi_label=True),
}


def loader(name: str) -> Callable[[Path | None], NodeData]:
    """The function that loads one of :data:`SOURCES` given a local root, for the table of data sets."""
    return lambda root: load(name, root)


def load(name: str, root: Path | None) -> NodeData:
    """One of the sets, made undirected, with its official split.

    The nodes of ogbn-proteins have no features: the sums of those of their edges stand in, as is usual.

    Looked for in ``root/<name>`` (also with an underscore, as OGB's own package writes it, and without
    ``ogbn``), else downloaded to the user's cache.

    Raises:
        DataError: the files are neither here nor to be had, or are malformed.
    """
    source = SOURCES[name]
    folders = (name, name.replace("-", "_"), source.archive)
    for folder in (root / folder for folder in folders) if root is not None else ():
        if (folder / "raw").is_dir() and (folder / "split").is_dir():
            return read(folder, name, source)
    folder = cache_folder(name)
    members = _members(source)
    if not all((folder / member).is_file() for member in members):
        try:
            archive = download(
                RemoteFile(f"{URL}{source.archive}.zip", MAX_BYTES), folder / f"{source.archive}.zip"
            )
        except DataError as error:
            raise DataError(
                f"{name} is not here: set TRADEOFF_DATA to a folder that holds {name}/raw and {name}/split "
                f"as OGB publishes them; {error}"
            ) from error
        unzip(archive, members, folder, MAX_BYTES)
        archive.unlink(missing_ok=True)
    return read(folder, name, source)


def _members(source: Source) -> list[str]:
    raw = [
        "num-node-list",
        "num-edge-list",
        "edge",
        "node-label",
        "node-feat" if source.features else "edge-feat",
    ]
    return [f"raw/{file}.csv.gz" for file in raw] + [
        f"split/{source.split}/{part}.csv.gz" for part in ("train", "valid", "test")
    ]


def read(folder: Path, name: str, source: Source) -> NodeData:
    """A set from its folders ``raw`` and ``split``.

    Raises:
        DataError: a file is absent or malformed, or they do not fit together.
    """
    raw = folder / "raw"
    num_nodes = _count(raw / "num-node-list.csv.gz", MAX_NODES)
    num_edges = _count(raw / "num-edge-list.csv.gz", MAX_EDGES)
    ends = _table(raw / "edge.csv.gz", num_edges, 2, np.int64)
    try:
        graph = from_edges(ends[:, 1], ends[:, 0], num_nodes, symmetric=True, name=name)
    except ValueError as error:
        raise DataError(f"{raw / 'edge.csv.gz'}: {error}") from error
    if source.features:
        x = _table(raw / "node-feat.csv.gz", num_nodes, source.features, np.float32)
    else:
        edge_features = _table(raw / "edge-feat.csv.gz", num_edges, source.edge_features, np.float32)
        x = np.zeros((num_nodes, source.edge_features), np.float32)
        for column in range(source.edge_features):
            # Each edge is listed once and counts for both of its ends.
            for side in (0, 1):
                x[:, column] += np.bincount(ends[:, side], edge_features[:, column], num_nodes)
    label_type = np.float32 if source.multi_label else np.int64
    y = _table(raw / "node-label.csv.gz", num_nodes, source.classes if source.multi_label else 1, label_type)
    split = folder / "split" / source.split
    train, validation, test = (
        _table(split / f"{part}.csv.gz", None, 1, np.int64)[:, 0] for part in ("train", "valid", "test")
    )
    return NodeData(
        name,
        graph,
        torch.from_numpy(x),
        torch.from_numpy(y if source.multi_label else y[:, 0]),
        *masks(num_nodes, train, validation, test),
        num_classes=source.classes,
        multi_label=source.multi_label,
        origin=str(folder),
    )


def _count(path: Path, largest: int) -> int:
    count = int(_table(path, 1, 1, np.int64)[0, 0])
    if not 0 < count <= largest:
        raise DataError(f"{path} says {count:,}; expected from 1 to {largest:,}")
    return count


def _table(path: Path, rows: int | None, columns: int, dtype: type) -> np.ndarray:
    """Numbers ``(rows, columns)`` of a CSV file without header, which must have exactly as many.

    Raises:
        DataError: the file is absent or malformed.
    """
    names = [str(column) for column in range(columns)]
    kind = pyarrow.from_numpy_dtype(np.dtype(dtype))
    bound = MAX_NODES if rows is None else rows
    blocks, read = [], 0
    try:
        with pyarrow.csv.open_csv(
            path,
            pyarrow.csv.ReadOptions(column_names=names, block_size=BLOCK_BYTES),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, kind), null_values=[]
            ),
        ) as file:
            for batch in file:
                read += batch.num_rows
                if read > bound:
                    break
                blocks.append(
                    np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], 1)
                )
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is no table of {columns} numbers a line: {error}") from error
    if read > bound or (rows is not None and read != rows):
        raise DataError(f"{path} has {'more' if read > bound else read} lines; expected {bound:,}")
    return np.concatenate([np.zeros((0, columns), dtype), *blocks])
