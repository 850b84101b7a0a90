"""Transfers whose messages are correlated, so that both parties get shares of a product.

1 of 2: the sender has a difference delta (ring elements or bits), the receiver a choice bit b. Pads h_0, h_1
come from the extension; the sender sends h_0 - h_1 + delta and keeps -h_0, the receiver keeps h_b plus b
times what it got: shares of b delta. 1 of 16: the sender sends every message under its pad, the receiver
opens one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.two_party.bits import Words, pack
from tradeoff.engines.two_party.ot.extension import (
    TABLE_BITS,
    TABLE_WIDTH,
    WIDTH,
    Chooser,
    Offerer,
    RowHash,
    code_word,
    table_pads,
)
from tradeoff.engines.two_party.sharing import Ring, Share

Bits = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Chosen:
    """Transfers that this party receives: pads of its choices.

    Args:
        pads: pi of the rows, (n, 2).
        first: counter of the first one.
        bits: the choices.
    """

    hash: RowHash
    pads: Words
    first: int
    bits: Bits

    def elements(self, at: slice, corrections: Share, ring: Ring) -> Share:
        """Shares of choice * delta, (n, count), from the sender's corrections of that shape."""
        result = self.hash.elements(self.pads[at], self.first + at.start, corrections.shape[1], ring).copy()
        np.add(result, corrections, out=result, where=self.bits[at, None])
        return result

    def planes(self, at: slice, corrections: Words) -> Words:
        """The same for bits: corrections and result are (count, words), shares by xor."""
        pads = _pad_planes(self.hash, self.pads[at], self.first + at.start, len(corrections))
        return pads ^ (corrections & pack(self.bits[at]))


@dataclass(frozen=True)
class Offered:
    """Transfers in which this party sends: both pads.

    Args:
        zero, one: pi of the rows for choices 0 and 1, (n, 2).
    """

    hash: RowHash
    zero: Words
    one: Words
    first: int

    def elements(self, at: slice, delta: Share, ring: Ring) -> tuple[Share, Share]:
        """This party's shares of choice * delta, (n, count), and the corrections to send."""
        first, count = self.first + at.start, delta.shape[1]
        share = self.hash.elements(self.zero[at], first, count, ring)
        corrections = share - self.hash.elements(self.one[at], first, count, ring)
        corrections += delta
        return -share, corrections

    def planes(self, at: slice, delta: Words) -> tuple[Words, Words]:
        """The same for bits: delta is (count, words), shares by xor."""
        share, other = (
            _pad_planes(self.hash, pads[at], self.first + at.start, len(delta))
            for pads in (self.zero, self.one)
        )
        return share, share ^ other ^ delta


@dataclass(frozen=True)
class ChosenTables:
    """Tables of 16 entries of which this party opens one each; ``planes`` (4, words) are its choices."""

    pads: Words
    planes: Words

    def open(self, at: slice, entries: Words) -> Words:
        """The chosen entries, (bits, words), of encrypted ones, (16, bits, words); ``at`` counts words."""
        planes = self.planes[:, at]
        result = self.pads[: entries.shape[1], at].copy()
        for value, entry in enumerate(entries):
            result ^= _equal(planes, value) & entry
        return result


@dataclass(frozen=True)
class OfferedTables:
    """Tables of 16 entries that this party fills: ``pads`` (16, 16 bits, words)."""

    pads: Words

    def encrypt(self, at: slice, entries: Words) -> Words:
        """Entries (16, bits, words) under their pads; ``at`` counts words."""
        return entries ^ self.pads[:, : entries.shape[1], at]


class Transfers:
    """One party's end of all extensions of a session.

    Args:
        chooser, offerer: of the 1-of-2 extensions in both directions.
        tables: of the 1-of-16 extension: party 1 chooses, party 0 offers; None if nothing needs it.
    """

    def __init__(
        self, rank: int, hash: RowHash, chooser: Chooser, offerer: Offerer, tables: Chooser | Offerer | None
    ) -> None:
        self.rank = rank
        self._hash = hash
        self._chooser = chooser
        self._offerer = offerer
        self._tables = tables

    def choose(self, bits: Sequence[Bits]) -> tuple[Chosen, Bytes]:
        """Ask for transfers by choice bits, all lists one after another; returns what to send, too."""
        joined = np.concatenate([np.asarray(part, bool).ravel() for part in bits]) if bits else _NO_BITS
        rows, first, message = self._chooser.request(pack(joined)[None])
        return Chosen(self._hash, self._hash.permuted(rows), first, joined), flat([message])

    def offer(self, message: Bytes) -> Offered:
        """What the peer asked for with :meth:`choose`."""
        rows, first = self._offerer.answer(_matrix(message, WIDTH))
        permuted = self._hash.permuted(rows), self._hash.permuted(rows ^ self._offerer.secret)
        return Offered(self._hash, *permuted, first)

    def choose_tables(self, planes: Words) -> tuple[ChosenTables, Bytes]:
        """Ask for one entry of each table by choices (4, words)."""
        assert isinstance(self._tables, Chooser)
        rows, first, message = self._tables.request(planes)
        return ChosenTables(_bit_planes(table_pads(rows, np.zeros(4, np.uint64), first)), planes), flat(
            [message]
        )

    def offer_tables(self, message: Bytes) -> OfferedTables:
        """What the peer asked for with :meth:`choose_tables`."""
        assert isinstance(self._tables, Offerer)
        rows, first = self._tables.answer(_matrix(message, TABLE_WIDTH))
        secret = self._tables.secret
        pads = [
            _bit_planes(table_pads(rows, secret & code_word(value), first))
            for value in range(1 << TABLE_BITS)
        ]
        return OfferedTables(np.stack(pads))


def low_bits(elements: Share, count: int) -> Bits:
    """The ``count`` lowest bits of every element, the lowest first, flat."""
    shifts = np.arange(count, dtype=elements.dtype)
    bits: Bits = (elements.reshape(-1, 1) >> shifts & elements.dtype.type(1)).astype(bool)
    return bits.ravel()


_NO_BITS = np.zeros(0, bool)


def flat(parts: Sequence[NDArray[np.unsignedinteger]]) -> Bytes:
    """Arrays one after another, as the bytes of one message."""
    views = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]
    return np.concatenate(views) if views else np.zeros(0, np.uint8)


class Reader:
    """Takes a message apart in the order in which :func:`flat` joined it."""

    def __init__(self, message: Bytes) -> None:
        self._message = message
        self._at = 0

    def bytes(self, count: int) -> Bytes:
        """The next ``count`` bytes."""
        self._at += count
        return self._message[self._at - count : self._at]

    def array(self, shape: tuple[int, ...], dtype: np.dtype[np.unsignedinteger]) -> Share:
        """The next array of a shape and type."""
        count = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(self.bytes(count).tobytes(), dtype).reshape(shape)


def _matrix(message: Bytes, width: int) -> Words:
    return np.frombuffer(message.tobytes(), "<u8").reshape(width, -1)


def _pad_planes(hash: RowHash, permuted: Words, first: int, count: int) -> Words:
    """``count`` bits of pad a row as packed planes (count, words)."""
    pads = hash.blocks(permuted, first, 1)[:, 0, 0]
    return np.stack([pack(pads >> np.uint64(bit) & np.uint64(1)) for bit in range(count)])


def _bit_planes(pads: NDArray[np.uint16]) -> Words:
    """All 16 bits of every pad as packed planes (16, words)."""
    bits = np.unpackbits(pads.view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")
    return np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little").view(np.uint64)


def _equal(planes: Words, value: int) -> Words:
    """Where the choices are ``value``."""
    result = np.full(planes.shape[1], ~np.uint64(0))
    for bit, plane in enumerate(planes):
        result &= plane if value >> bit & 1 else ~plane
    return result
