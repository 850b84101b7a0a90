"""What an encrypted evaluation does: operations by layer and level, and the time they take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tradeoff.core.errors import DataError

OPERATIONS = ("rotate", "ct_pt", "ct_ct", "relinearize", "rescale", "add", "add_plain", "lower")
"""Rotations, ciphertext-plaintext and ciphertext-ciphertext products, and what goes with them."""

Key = tuple[str, str, int]
"""(layer, operation, level)."""


@dataclass
class Meter:
    """Counts of operations by (layer, operation, level), and seconds by layer.

    Attributes:
        encodings: plaintexts that were encoded, which a cache may have saved; seconds of it apart.
    """

    counts: Counter[Key] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    encodings: int = 0
    encode_seconds: float = 0.0

    def count(self, layer: str, operation: str, level: int, times: int = 1) -> None:
        """Note that an operation ran on ciphertexts of a level."""
        self.counts[layer, operation, level] += times

    def total(self, operation: str) -> int:
        """How often an operation ran, over all layers and levels."""
        return sum(count for (_, name, _), count in self.counts.items() if name == operation)

    def by_level(self, operation: str) -> dict[int, int]:
        """How often an operation ran, by level."""
        found: Counter[int] = Counter()
        for (_, name, level), count in self.counts.items():
            if name == operation:
                found[level] += count
        return dict(sorted(found.items(), reverse=True))

    def layers(self) -> tuple[str, ...]:
        """Layers in the order in which they ran."""
        return tuple(dict.fromkeys(layer for layer, _, _ in self.counts))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a layer: operations, levels spent, seconds."""
        for layer in self.layers():
            mine = {key: count for key, count in self.counts.items() if key[0] == layer}
            levels = {level for (_, name, level), _ in mine.items() if name == "rescale"}
            counts = {name: sum(c for (_, n, _), c in mine.items() if n == name) for name in OPERATIONS}
            yield {"layer": layer, "levels": len(levels), **counts, "seconds": self.seconds.get(layer, 0.0)}

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": [[*key, count] for key, count in self.counts.items()],
            "seconds": dict(self.seconds),
            "encodings": self.encodings,
            "encode_seconds": self.encode_seconds,
        }

    @classmethod
    def from_json(cls, values: Any) -> Meter:
        """Read what :meth:`to_json` gave, from anybody.

        Raises:
            DataError: it is not that.
        """
        try:
            counts = Counter({_key(row): _whole(row[3]) for row in values["counts"]})
            seconds = {str(k): float(v) for k, v in values["seconds"].items()}
            return cls(counts, seconds, _whole(values["encodings"]), float(values["encode_seconds"]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(f"not a meter: {error}") from None


def format_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of :meth:`Meter.rows` as a table."""
    head = ("layer", "levels", "rotate", "ct_pt", "ct_ct", "rescale", "seconds")
    lines = [head, *(tuple(_cell(row[name]) for name in head) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(value: Any) -> str:
    return (
        f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )


def _key(row: Any) -> Key:
    layer, operation, level, _ = row
    if operation not in OPERATIONS:
        raise ValueError(f"operation {operation!r}")
    return str(layer), operation, _whole(level)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
