"""The dealer's correlations, made by the two parties from oblivious transfers.

What a correlation holds is the same as with a dealer, so the online protocols do not notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from tradeoff.core.errors import EngineError
from tradeoff.engines.two_party.activations import Quadratic
from tradeoff.engines.two_party.arithmetic import Elementwise, Square, StaticTriple, Triple
from tradeoff.engines.two_party.comparison import Comparison
from tradeoff.engines.two_party.correlations import Correlation, Fields
from tradeoff.engines.two_party.ot.arithmetic import (
    SquareMaker,
    StaticTripleMaker,
    TripleMaker,
    TruncationMaker,
)
from tradeoff.engines.two_party.ot.comparison import ComparisonMaker
from tradeoff.engines.two_party.ot.making import Draw, Flight, Maker, Making
from tradeoff.engines.two_party.ot.quadratic import QuadraticMaker
from tradeoff.engines.two_party.ot.transfers import Transfers
from tradeoff.engines.two_party.truncation import Truncation

_MAKERS: dict[type[Correlation], Callable[[Any], Maker]] = {
    Square: SquareMaker,
    Triple: TripleMaker,
    StaticTriple: StaticTripleMaker,
    Truncation: TruncationMaker,
    Comparison: ComparisonMaker,
    Quadratic: QuadraticMaker,
}


PIECE = 1 << 13
"""Elements of a correlation that are made at a time: a ReLU takes some 10 KB while it is made."""


@dataclass(frozen=True)
class PiecesMaker:
    """Makes a large correlation piece by piece; its arrays are those of the pieces, joined along an axis."""

    pieces: tuple[Maker, ...]
    axis: int

    @property
    def flights(self) -> tuple[Flight, ...]:
        return tuple(flight for piece in self.pieces for flight in piece.flights)

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        parts = []
        for piece in self.pieces:
            parts.append((yield from piece.make(transfers, draw)))
        return {name: np.concatenate([part[name] for part in parts], self.axis) for name in parts[0]}


def maker(kind: Correlation) -> Maker:
    """Who makes a correlation."""
    make = _MAKERS[type(kind)]
    if isinstance(kind, Square | Truncation | Comparison) and kind.count > PIECE:
        return PiecesMaker(tuple(make(replace(kind, count=n)) for n in _parts(kind.count, PIECE)), axis=-1)
    if isinstance(kind, Triple) and isinstance(kind.map, Elementwise) and len(kind.left) == 1:
        parts = [make(replace(kind, left=(n,), right=(n,))) for n in _parts(kind.left[0], PIECE)]
        return PiecesMaker(tuple(parts), axis=0)
    if isinstance(kind, Quadratic) and prod(kind.shape) > PIECE:
        images, positions = kind.shape
        sizes = _parts(images, max(1, PIECE // positions))
        return PiecesMaker(tuple(make(replace(kind, shape=(n, positions))) for n in sizes), axis=0)
    return make(kind)


def _parts(count: int, step: int) -> list[int]:
    return [min(step, count - start) for start in range(0, count, step)]


def flights(kind: Correlation) -> tuple[Flight, ...]:
    """Bytes of every flight in the making of a correlation."""
    return maker(kind).flights


def uses_tables(kind: Correlation) -> bool:
    """Whether its making needs the 1-of-16 extension."""
    return isinstance(kind, Comparison) and any(level.radix == 4 for level in kind.tree.levels)


def check(kind: Correlation, rank: int, fields: Fields) -> Fields:
    """The fields, if they are all that a party holds of a correlation.

    Raises:
        EngineError: an array is absent, or of another shape or type.
    """
    for field in kind.random_of(rank) + kind.derived:
        array = fields.get(field.name)
        if array is None or array.shape != field.shape or array.dtype != field.dtype(kind.ring):
            raise EngineError(f"{type(kind).__name__} was made without a proper {field.name}")
    return fields
