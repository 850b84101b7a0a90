"""Graphs by name: ``load("cora")``; without features ``load_structure("pl200k")``; timed ``load_events``."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tradeoff.core.errors import DataError
from tradeoff.core.suggest import did_you_mean
from tradeoff.data.graphs import debian, graphsaint, keyring, ogb, planetoid, reddit, structures, temporal
from tradeoff.data.graphs.node_data import NodeData
from tradeoff.data.graphs.temporal import LinkPairs, LinkSplits, TemporalEvents, split_links
from tradeoff.nn.graphs import Adjacency, generate

__all__ = [
    "EVENT_LOADERS",
    "LOADERS",
    "LinkPairs",
    "LinkSplits",
    "NodeData",
    "TemporalEvents",
    "load",
    "load_events",
    "load_structure",
    "split_links",
]

T = TypeVar("T")

LOADERS: dict[str, Callable[[Path | None], NodeData]] = {
    "debian-small": debian.load_small,
    "debian": debian.load,
    **{name: planetoid.loader(name) for name in planetoid.FOLDERS},
    **{name: graphsaint.loader(name) for name in graphsaint.SOURCES},
    "reddit": reddit.load,
    **{name: ogb.loader(name) for name in ogb.SOURCES},
}
"""Graphs with features and labels: name -> loader, which is given the local root where there is one."""

EVENT_LOADERS: dict[str, Callable[[Path | None], TemporalEvents]] = {
    "community-messages": lambda root: temporal.community_messages(),
    "debian-keyring": keyring.load,
    **{name: temporal.loader(name) for name in temporal.FILES},
}
"""Timed events: name -> loader, which is given the local root where there is one."""

COLLECTIONS: dict[str, Callable[[str, Path | None], Adjacency]] = {
    "snap": structures.snap,
    "suitesparse": structures.suitesparse,
}


def load(name: str, root: Path | str | None = None) -> NodeData:
    """A graph with features, labels and disjoint train, validation and test nodes.

    Args:
        name: a key of :data:`LOADERS`; ``debian-small`` is embedded.
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: the name is unknown, or the data is absent or malformed; the message says what to do.
    """
    return _named(name, LOADERS, "graph")(_local(root))


def load_events(name: str, root: Path | str | None = None) -> TemporalEvents:
    """Timed events between nodes, for :func:`split_links`.

    Args:
        name: a key of :data:`EVENT_LOADERS`, or the path of a text file with ``source target time`` in a
            line; ``community-messages`` is generated.
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: the name is unknown, or the data is absent or malformed; the message says what to do.
    """
    if name not in EVENT_LOADERS and Path(name).is_file():
        return temporal.read_events(Path(name), Path(name).stem)
    return _named(name, EVENT_LOADERS, "set of events or file")(_local(root))


def load_structure(text: str, root: Path | str | None = None, seed: int = 0) -> Adjacency:
    """An adjacency matrix alone.

    Args:
        text: a key of :data:`LOADERS`; what :func:`tradeoff.nn.graphs.generate` makes, such as ``rmat:20:16``
            or ``like:arxiv``; ``snap:NAME`` or ``suitesparse:GROUP/NAME`` of these collections; or the path
            of an edge list (``.txt``, ``.edges``), a Matrix Market file (``.mtx``) or a sparse matrix
            (``.npz``).
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.
        seed: of generated graphs.

    Raises:
        DataError: the text names nothing, or the data is absent or malformed; the message says what to do.
    """
    if text in LOADERS:
        return load(text, root).graph
    collection, _, name = text.partition(":")
    if collection in COLLECTIONS:
        return COLLECTIONS[collection](name, _local(root))
    if text.endswith((*structures.EDGE_LISTS, *structures.MATRICES)):
        return structures.read_structure(Path(text))
    try:
        return generate(text, seed)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{error}; graphs with features are: {', '.join(LOADERS)}") from error


def _named(name: str, loaders: Mapping[str, T], kind: str) -> T:
    if name in loaders:
        return loaders[name]
    raise DataError(f"no {kind} {name!r}{did_you_mean(name, loaders)}")


def _local(root: Path | str | None) -> Path | None:
    """The folder of local copies: the given one, else that of ``TRADEOFF_DATA``."""
    root = root or os.environ.get("TRADEOFF_DATA") or None
    return Path(root) if root is not None else None
