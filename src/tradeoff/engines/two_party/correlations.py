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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.two_party.errors import PoolReused
from tradeoff.engines.two_party.prg import Stream
from tradeoff.engines.two_party.sharing import WORD, Ring, Share

Fields = Mapping[str, Share]


@dataclass(frozen=True)
class Field:
    """One array of a correlation: ring elements, or words of packed bits."""

    name: str
    shape: tuple[int, ...]
    packed: bool = False

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

    @property
    def random(self) -> tuple[Field, ...]:
        raise NotImplementedError

    @property
    def derived(self) -> tuple[Field, ...]:
        raise NotImplementedError

    @property
    def openings(self) -> tuple[int, ...]:
        """Payload bytes that each party sends in each round of the protocol that uses this correlation."""
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
        values = {
            field.name: zero[field.name] ^ one[field.name]
            if field.packed
            else zero[field.name] + one[field.name]
            for field in self.random
        }
        derived = self.derive(values, static)
        buffer = np.zeros(self.correction_bytes // 8, np.uint64)
        for name, out in split(self.derived, buffer, self.ring).items():
            np.subtract(derived[name], zero[name], out=out)
        return buffer

    @cached_property
    def correction_bytes(self) -> int:
        """Bytes that the dealer sends to party 1."""
        return sum(field.nbytes(self.ring) for field in self.derived)

    @cached_property
    def random_bytes(self) -> int:
        return sum(field.nbytes(self.ring) for field in self.random)


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
    buffer = stream.words((correlation.random_bytes + correlation.correction_bytes) // 8)
    return split(correlation.random + correlation.derived, buffer, correlation.ring)


def expand_one(correlation: Correlation, stream: Stream, corrections: NDArray[np.uint64]) -> dict[str, Share]:
    """Party 1's share: random fields from its generator, derived ones from the dealer."""
    shares = split(correlation.random, stream.words(correlation.random_bytes // 8), correlation.ring)
    return shares | split(correlation.derived, corrections, correlation.ring)


def deal(correlation: Correlation, zero: Stream, one: Stream, static: Fields) -> NDArray[np.uint64]:
    """The dealer's work for one correlation: the corrections for party 1, as words."""
    others = split(correlation.random, one.words(correlation.random_bytes // 8), correlation.ring)
    return correlation.correct(expand_zero(correlation, zero), others, static)


class Material:
    """One party's share of one correlation, good for one use: :meth:`take` empties it."""

    def __init__(self, shares: dict[str, Share]) -> None:
        self._shares: dict[str, Share] | None = shares

    def take(self) -> dict[str, Share]:
        """The shares. A second call is an error: a mask used twice reveals what it hides."""
        if self._shares is None:
            raise PoolReused("this correlation has been used")
        shares, self._shares = self._shares, None
        return shares
