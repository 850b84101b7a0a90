"""Graphs by a short text: ``rmat:20:16``, ``road:1000``, ``pl200k``, ``like:arxiv``, ``some/file.npz``."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tradeoff.nn.graphs.adjacency import Adjacency, read_adjacency
from tradeoff.nn.graphs.generators import community, power_law, rmat, road
from tradeoff.nn.graphs.published import like_published


@dataclass(frozen=True)
class Family:
    """A family of generated graphs.

    Attributes:
        make: takes the numbers of the text in order, then ``seed``.
        numbers: name and type of each number.
        required: how many of them must be given.
    """

    make: Callable[..., Adjacency]
    numbers: tuple[tuple[str, type], ...]
    required: int

    def usage(self, name: str) -> str:
        """How to write it, as ``rmat:SCALE[:EDGE_FACTOR]``."""
        words = [label.upper() for label, _ in self.numbers]
        return ":".join([name, *words[: self.required]]) + "".join(
            f"[:{word}]" for word in words[self.required :]
        )


FAMILIES = {
    "rmat": Family(rmat, (("scale", int), ("edge_factor", int)), 1),
    "pl": Family(
        power_law, (("nodes", int), ("average_degree", float), ("exponent", float), ("max_degree", int)), 2
    ),
    "road": Family(road, (("side", int), ("removed", float)), 1),
    "community": Family(
        community,
        (
            ("nodes", int),
            ("average_degree", float),
            ("communities", int),
            ("deviation", float),
            ("inside", float),
        ),
        2,
    ),
}
"""Families by the first word of a text."""

NAMED = {
    "pl200k": "pl:200000:15.45:2.2:12450",
    "pl1m": "pl:1000000:9.8:2.2:28500",
    "road1m": "road:1000:0.3",
    "reddit23k": "community:23000:311.7:41:1.2:0.5",
}
"""The graphs that kernels are compared on: 3.09M, 9.8M, 2.80M and 7.17M stored entries."""

EXAMPLES = "rmat:20:16, pl:200000:15:2.2, road:1000, community:23000:312, like:arxiv"


def generate(text: str, seed: int = 0) -> Adjacency:
    """The graph that a text describes.

    ``rmat:SCALE[:EDGE_FACTOR]``, ``pl:NODES:AVERAGE_DEGREE[:EXPONENT[:MAX_DEGREE]]``,
    ``road:SIDE[:REMOVED]``, ``community:NODES:AVERAGE_DEGREE[:COMMUNITIES[:DEVIATION[:INSIDE]]]``,
    ``like:NAME`` for a stand-in of a published graph, a name of :data:`NAMED`, or the path of an ``.npz``.

    Raises:
        ValueError: the text is none of these, or a number is wrong; the message says which.
        DataError: a file is malformed (also a ValueError).

    Example:
        >>> generate("road:10:0").nnz
        360
    """
    if text.endswith(".npz"):
        return read_adjacency(Path(text))
    name, *words = NAMED.get(text, text).split(":")
    if name == "like" and len(words) == 1:
        return like_published(words[0].lower(), seed)
    if name not in FAMILIES:
        known = [*NAMED, *FAMILIES, "like"]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(
            f"no graph {text!r}{hint} Write for example {EXAMPLES}, {', '.join(NAMED)}, or a file.npz"
        )
    family = FAMILIES[name]
    if not family.required <= len(words) <= len(family.numbers):
        raise ValueError(f"{text!r} has {len(words)} numbers; write {family.usage(name)}")
    numbers = [_number(word, *number, text) for word, number in zip(words, family.numbers, strict=False)]
    try:
        graph = family.make(*numbers, seed=seed)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error
    except MemoryError:
        raise ValueError(f"{text!r} takes more memory than there is") from None
    return Adjacency(graph.indptr, graph.indices, graph.values, text)


def _number(word: str, label: str, kind: type, text: str) -> int | float:
    try:
        number: int | float = kind(word)
    except ValueError:
        raise ValueError(
            f"{text!r}: {label} must be {'an integer' if kind is int else 'a number'}, not {word!r}"
        ) from None
    if number != number or abs(number) > 1e15:
        raise ValueError(f"{text!r}: {label} is out of range")
    return number
