"""Graphs by name: ``load("debian-small")``, ``load("cora")``, ``load_structure("pl200k")``."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from tradeoff.core.errors import DataError
from tradeoff.data.graphs import debian
from tradeoff.data.graphs.node_data import NodeData
from tradeoff.nn.graphs import Adjacency, generate

__all__ = ["LOADERS", "NodeData", "load", "load_structure"]

LOADERS: dict[str, Callable[[Path | None], NodeData]] = {
    "debian-small": debian.load_small,
    "debian": debian.load,
}
"""Name -> loader, which is given the local root where there is one."""


def load(name: str, root: Path | str | None = None) -> NodeData:
    """A graph with features, labels and disjoint train, validation and test nodes.

    Args:
        name: a key of :data:`LOADERS`.
        root: where local copies lie; the environment variable ``TRADEOFF_DATA`` when not given.

    Raises:
        DataError: the name is unknown, or the data is absent or malformed; the message says what to do.
    """
    if name in LOADERS:
        return LOADERS[name](local_root(root))
    nearest = difflib.get_close_matches(name, LOADERS, n=1, cutoff=0.0)[0]
    raise DataError(f"no graph {name!r}; did you mean {nearest!r}? There are: {', '.join(LOADERS)}")


def load_structure(text: str, root: Path | str | None = None) -> Adjacency:
    """The adjacency matrix alone: of a set of :data:`LOADERS`, or as :func:`tradeoff.nn.graphs.generate` makes it.

    Raises:
        DataError: the text names neither, or the data is absent or malformed; the message says what to do.
    """
    if text in LOADERS:
        return load(text, root).graph
    try:
        return generate(text)
    except ValueError as error:
        raise DataError(f"{error}; graphs with features are: {', '.join(LOADERS)}") from error


def local_root(root: Path | str | None) -> Path | None:
    """The folder of local copies: the given one, else that of ``TRADEOFF_DATA``."""
    root = root or os.environ.get("TRADEOFF_DATA") or None
    return Path(root) if root is not None else None
