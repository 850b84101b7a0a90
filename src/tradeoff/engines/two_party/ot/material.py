"""The dealer's correlations, made by the two parties from oblivious transfers.

What a correlation holds is the same as with a dealer, so the online protocols do not notice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tradeoff.core.errors import EngineError
from tradeoff.engines.two_party.activations import Quadratic
from tradeoff.engines.two_party.arithmetic import Square, StaticTriple, Triple
from tradeoff.engines.two_party.comparison import Comparison
from tradeoff.engines.two_party.correlations import Correlation, Fields
from tradeoff.engines.two_party.ot.arithmetic import (
    SquareMaker,
    StaticTripleMaker,
    TripleMaker,
    TruncationMaker,
)
from tradeoff.engines.two_party.ot.comparison import ComparisonMaker
from tradeoff.engines.two_party.ot.making import Flight, Maker
from tradeoff.engines.two_party.ot.quadratic import QuadraticMaker
from tradeoff.engines.two_party.truncation import Truncation

_MAKERS: dict[type[Correlation], Callable[[Any], Maker]] = {
    Square: SquareMaker,
    Triple: TripleMaker,
    StaticTriple: StaticTripleMaker,
    Truncation: TruncationMaker,
    Comparison: ComparisonMaker,
    Quadratic: QuadraticMaker,
}


def maker(kind: Correlation) -> Maker:
    """Who makes a correlation."""
    return _MAKERS[type(kind)](kind)


@cache
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
