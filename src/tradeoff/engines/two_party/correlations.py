"""Correlated randomness: what the dealer makes and each party uses once.

A correlation is a set of *fields*. Random fields are uniform: each party draws its own share from its own
generator. Derived fields are functions of the random ones (a product, a truncated value): party 0 draws its
share from its generator, party 1 gets ``derived - share of party 0`` from the dealer, the *correction*. So
party 0 receives nothing but a seed, and the stream to party 1 holds the derived fields only.

Ring fields are shared additively, bit fields (packed words) by xor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.transport.prg import Stream
from tradeoff.engines.two_party.sharing import WORD, Ring, Share

Fields = Mapping[str, Share]


@dataclass(frozen=True)
class Field:
    """One array of a correlation: ring elements, or words of packed bits.

    Args:
        owner: the party that alone draws a random field, whole; None if both hold shares.
    """

    name: str
    shape: tuple[int, ...]
    packed: bool = False
    owner: int | None = None

    def dtype(self, ring: Ring) -> np.dtype[Any]:
        return WORD if self.packed else ring.dtype

    def nbytes(self, ring: Ring) -> int:
        """Bytes, rounded up to whole words so that every field of a buffer stays aligned."""
        return -(-prod(self.shape) * self.dtype(ring).itemsize // 8) * 8


@dataclass(frozen=True)
class Correlation:
    """Base of all correlations; ``ring`` fixes the element type.

    Subclasses name their fields, compute the derived ones, and say what a party sends when it uses them.
    """

    ring: Ring

    speakers: ClassVar[tuple[int, ...]] = (0, 1)  # who sends in the rounds of the protocol

    @property
    def random(self) -> tuple[Field, ...]:
        raise NotImplementedError

    @property
    def derived(self) -> tuple[Field, ...]:
        raise NotImplementedError

    @property
    def openings(self) -> tuple[int, ...]:
        """Payload bytes that each speaker sends in each round of the protocol that uses this correlation."""
        raise NotImplementedError

    def derive(self, values: Fields, static: Fields) -> dict[str, Share]:
        """The derived fields from the random ones and the operator's static masks, all in the clear."""
        raise NotImplementedError

    def correct(self, zero: Fields, one: Fields, static: Fields) -> NDArray[np.uint64]:
        """What party 1 needs: the derived fields less party 0's shares of them (dealer only).

        Args:
            zero: party 0's shares of all fields.
            one: party 1's shares of the random fields.
            static: the operator's static masks in the clear.
        """
        derived = self.derive({field.name: _whole(field, zero, one) for field in self.random}, static)
        buffer = np.zeros(self.correction_bytes // 8, np.uint64)
        for name, out in split(self.derived, buffer, self.ring).items():
            np.subtract(derived[name], zero[name], out=out)
        return buffer

    @cached_property
    def correction_bytes(self) -> int:
        """Bytes that the dealer sends to party 1."""
        return sum(field.nbytes(self.ring) for field in self.derived)

    def random_of(self, rank: int) -> tuple[Field, ...]:
        """The random fields of which a party holds a share."""
        return tuple(field for field in self.random if field.owner in (None, rank))


def split(fields: tuple[Field, ...], buffer: NDArray[np.uint64], ring: Ring) -> dict[str, Share]:
    """Views of the fields that lie one after another in a buffer of words."""
    views: dict[str, Share] = {}
    start = 0
    for field in fields:
        stop = start + field.nbytes(ring) // 8
        views[field.name] = (
            buffer[start:stop].view(field.dtype(ring))[: prod(field.shape)].reshape(field.shape)
        )
        start = stop
    return views


def join(correlation: Correlation, derived: list[Share]) -> NDArray[np.uint64]:
    """Arrays of the derived fields, in order, as the buffer that :func:`split` takes apart."""
    buffer = np.zeros(correlation.correction_bytes // 8, np.uint64)
    for view, array in zip(
        split(correlation.derived, buffer, correlation.ring).values(), derived, strict=True
    ):
        view[...] = array
    return buffer


def expand_zero(correlation: Correlation, stream: Stream) -> dict[str, Share]:
    """Party 0's share: all of it comes from its generator."""
    return _draw(correlation.random_of(0) + correlation.derived, stream, correlation.ring)


def expand_one(correlation: Correlation, stream: Stream, corrections: NDArray[np.uint64]) -> dict[str, Share]:
    """Party 1's share: random fields from its generator, derived ones from the dealer."""
    shares = _draw(correlation.random_of(1), stream, correlation.ring)
    return shares | split(correlation.derived, corrections, correlation.ring)


def deal(correlation: Correlation, zero: Stream, one: Stream, static: Fields) -> NDArray[np.uint64]:
    """The dealer's work for one correlation: the corrections for party 1, as words."""
    others = _draw(correlation.random_of(1), one, correlation.ring)
    return correlation.correct(expand_zero(correlation, zero), others, static)


def _draw(fields: tuple[Field, ...], stream: Stream, ring: Ring) -> dict[str, Share]:
    """Uniform fields, all from one stretch of the stream."""
    return split(fields, stream.words(sum(field.nbytes(ring) for field in fields) // 8), ring)


def _whole(field: Field, zero: Fields, one: Fields) -> Share:
    """A random field in the clear."""
    if field.owner is not None:
        return (zero, one)[field.owner][field.name]
    if field.packed:
        return np.bitwise_xor(zero[field.name], one[field.name])
    return np.add(zero[field.name], one[field.name])
