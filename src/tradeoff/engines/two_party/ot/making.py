"""What the makings of all correlations have in common.

A making is a generator that both parties run: it yields what this party sends in a flight and is resumed with
what the peer sent in it. How many bytes each flight has is declared beside it; the predicted cost and the
check of every message come from there.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tradeoff.engines.transport.prg import Stream
from tradeoff.engines.two_party.correlations import Field, Fields, split
from tradeoff.engines.two_party.ot.extension import request_bytes
from tradeoff.engines.two_party.ot.transfers import (
    Bits,
    Bytes,
    Chosen,
    Offered,
    Transfers,
    low_bits,
)
from tradeoff.engines.two_party.sharing import Ring, Share

Making = Generator[Bytes, Bytes, dict[str, Share]]
"""Yields own messages, receives the peer's, returns this party's share of the correlation."""

Flight = tuple[int, int]
"""Bytes that party 0 and party 1 send at once; a flight of no bytes does not take place."""

NOTHING: Bytes = np.zeros(0, np.uint8)


class Maker(Protocol):
    """Makes one kind of correlation."""

    @property
    def flights(self) -> tuple[Flight, ...]:
        """Bytes of every flight."""
        ...

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        """One party's side."""
        ...


@dataclass(frozen=True)
class Draw:
    """A party's own randomness, and its static operands in the clear."""

    stream: Stream
    statics: Fields

    def fields(self, ring: Ring, *fields: Field) -> dict[str, Share]:
        """Uniform arrays."""
        return split(fields, self.stream.words(sum(field.nbytes(ring) for field in fields) // 8), ring)

    def elements(self, ring: Ring, shape: tuple[int, ...]) -> Share:
        """Uniform ring elements."""
        return self.fields(ring, Field("", shape))[""]


@dataclass(frozen=True)
class MaskBits:
    """The bits of ``count`` words that the parties hold by xor, on the way to arithmetic shares of each.

    b_0 ^ b_1 = b_0 + b_1 - 2 b_0 b_1: one transfer a bit. The shares of r, r >> f and the top bit of r are
    sums of those of the bits, so nothing is compared to truncate.
    """

    ring: Ring
    count: int

    @property
    def transfers(self) -> int:
        return self.count * self.ring.bits

    @property
    def flights(self) -> tuple[Flight, ...]:
        """Party 1 chooses by its bits, party 0 offers."""
        return (0, request_bytes(self.transfers)), (self.transfers * self.ring.nbytes, 0)

    def bits(self, words: Share) -> Bits:
        """A party's bits, word by word, the lowest first."""
        return low_bits(words, self.ring.bits)

    def offer(self, words: Share, offered: Offered, start: int) -> tuple[Share, Share]:
        """Party 0's shares (count, bits), and what it sends, from the transfer ``start`` on."""
        bits = self.bits(words).astype(self.ring.dtype)
        at = slice(start, start + self.transfers)
        share, payload = offered.elements(at, -(bits + bits)[:, None], self.ring)
        return (bits + share[:, 0]).reshape(-1, self.ring.bits), payload

    def receive(self, words: Share, chosen: Chosen, start: int, payload: Share) -> Share:
        """Party 1's shares (count, bits)."""
        share = chosen.elements(slice(start, start + self.transfers), payload.reshape(-1, 1), self.ring)
        return (self.bits(words) + share[:, 0]).reshape(-1, self.ring.bits)

    def shifted(self, shares: Share, shift: int) -> Share:
        """Shares of r >> shift from those of the bits of r."""
        weights = np.arange(self.ring.bits - shift, dtype=self.ring.dtype)
        total: Share = (shares[:, shift:] << weights).sum(axis=1, dtype=self.ring.dtype)
        return total


def times_bit(values: Share, bit: Bits) -> tuple[Share, Share]:
    """For shares of values (n, count) times a bit that is shared by xor: the local part, and what to offer.

    v_p (s_0 ^ s_1) = v_p s_p + s_{1-p} v_p (1 - 2 s_p): the peer chooses by its part of the bit.
    """
    own = bit.astype(values.dtype)[:, None]
    return values * own, values * (1 - own - own)
