"""Many oblivious transfers from a few base ones.

Y. Ishai, J. Kilian, K. Nissim, E. Petrank, "Extending Oblivious Transfers Efficiently", CRYPTO 2003 (1 of
2), and V. Kolesnikov, R. Kumaresan, "Improved OT Extension for Transferring Short Secrets", CRYPTO 2013 (1
of 16). Both are one construction with different codes. The receiver holds two keys a column, the sender,
with its secret bits s, one of the two. For choices c the receiver sends

    U = T_0 ^ T_1 ^ C,    row i of C the code word of c_i,

T_0 and T_1 from the keys; the sender's rows are then q_i = t_i ^ (s & code(c_i)), so that it can compute
q_i ^ (s & code(k)) for every k, and the receiver knows the one for k = c_i only. Two code words differ in at
least 128 of the places that s hides. Hashed rows are the pads of the messages.

Rows of 128 bits (repetition code) are hashed as H(i, x) = pi(pi(x) ^ i) ^ pi(x) with AES under a key of the
session (C. Guo, J. Katz, X. Wang, Y. Yu, "Efficient and Secure Multiparty Computation from Fixed-Key Block
Ciphers", IEEE S&P 2020), which also stretches them; rows of 256 bits (Walsh-Hadamard code) with SHA-256.
Counters i and column streams go on through the session, so no pad is used twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core import native
from tradeoff.core.errors import MissingExtra
from tradeoff.engines.transport.prg import BlockLedger, Prg, Stream
from tradeoff.engines.two_party.bits import Words, pack
from tradeoff.engines.two_party.sharing import Ring, Share

WIDTH = 128
"""Columns, and base transfers, of the 1-of-2 extension."""

TABLE_WIDTH = 256
"""The same of the 1-of-16 extension."""

TABLE_BITS = 4
"""Choice bits of a table."""

Bytes = NDArray[np.uint8]


def rounded(count: int) -> int:
    """Transfers that one call extends: whole words of 64."""
    return -(-count // 64) * 64


def request_bytes(count: int, width: int = WIDTH) -> int:
    """Bytes that the receiver sends for ``count`` transfers."""
    return width * rounded(count) // 8


def rows_of(columns: Words) -> Words:
    """Bit transpose: (width, words) of packed columns to (64 words, width / 64) of packed rows."""
    width, words = columns.shape
    rows = np.empty((64 * words, width // 64), np.uint64)
    kernels = _kernels()
    if kernels is not None:
        kernels.ot_transpose(np.ascontiguousarray(columns), rows, native.threads())
        return rows
    step = max(1, (1 << 24) // (64 * width))
    for start in range(0, words, step):
        part = np.ascontiguousarray(columns[:, start : start + step]).view(np.uint8)
        bits = np.unpackbits(part, axis=1, bitorder="little")
        packed = np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little")
        rows[64 * start : 64 * start + len(packed)] = packed.view(np.uint64)
    return rows


class Chooser:
    """The receiver of an extension.

    Args:
        pairs: both keys of every column.
        session: 16 bytes.
        role: names the extension in the names of its streams.
        first: counter of its first transfer.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[bytes, bytes]],
        session: bytes,
        role: str,
        ledger: BlockLedger | None,
        *,
        first: int = 0,
    ) -> None:
        self._columns = tuple(
            _columns([pair[side] for pair in pairs], session, role, ledger) for side in (0, 1)
        )
        self._counter = first

    def request(self, planes: Words) -> tuple[Words, int, Words]:
        """Rows t, the counter of the first one, and the message U for choices (choice bits, words)."""
        width, words = len(self._columns[0]), planes.shape[1]
        zero, one = (_draw(columns, words) for columns in self._columns)
        message = np.bitwise_xor(one, zero, out=one)
        if width == WIDTH:
            message ^= planes[0]
        else:
            for index in range(width):
                for bit, plane in enumerate(planes):
                    if index >> bit & 1:
                        message[index] ^= plane
        first = self._counter
        self._counter += 64 * words
        return rows_of(zero), first, message


class Offerer:
    """The sender of an extension.

    Args:
        secret: s, one bit a column, which chose the keys.
        keys: the chosen key of every column.
        session, role, first: as at the receiver.
    """

    def __init__(
        self,
        secret: NDArray[np.bool_],
        keys: Sequence[bytes],
        session: bytes,
        role: str,
        ledger: BlockLedger | None,
        *,
        first: int = 0,
    ) -> None:
        self.secret = pack(secret)
        self._bits = np.where(secret, ~np.uint64(0), np.uint64(0))[:, None]
        self._columns = _columns(keys, session, role, ledger)
        self._counter = first

    def answer(self, message: Words) -> tuple[Words, int]:
        """Rows q and the counter of the first one, from the receiver's message (width, words)."""
        columns = _draw(self._columns, message.shape[1])
        columns ^= message & self._bits
        first = self._counter
        self._counter += 64 * message.shape[1]
        return rows_of(columns), first


def code_word(choice: int) -> Words:
    """The Walsh-Hadamard code word of a choice: bit j is the parity of choice & j."""
    return pack(np.array([(choice & j).bit_count() & 1 for j in range(TABLE_WIDTH)], bool))


class RowHash:
    """H(i, x) for rows of 128 bits, stretched where more is needed."""

    def __init__(self, session: bytes) -> None:
        key = hashlib.blake2b(session, digest_size=16, person=b"tradeoff-ot-hash").digest()
        self._encryptor = _block_cipher(key)

    def permuted(self, rows: Words) -> Words:
        """pi of every row (n, 2)."""
        rows = np.ascontiguousarray(rows)
        # update_into wants room for one more block than it writes
        out = np.empty(rows.nbytes + 16, np.uint8)
        self._encryptor.update_into(rows.reshape(-1).view(np.uint8).data, out.data)
        return out[: rows.nbytes].view(np.uint64).reshape(rows.shape)

    def blocks(self, permuted: Words, first: int, count: int) -> Words:
        """``count`` blocks of pad a row: (n, count, 2), from :meth:`permuted` rows."""
        tweaked = np.repeat(permuted[:, None], count, axis=1)
        tweaked[:, :, 0] ^= np.arange(first, first + len(permuted), dtype=np.uint64)[:, None]
        tweaked[:, :, 1] ^= np.arange(count, dtype=np.uint64)
        pads = self.permuted(tweaked)
        pads ^= permuted[:, None]
        return pads

    def elements(self, permuted: Words, first: int, count: int, ring: Ring) -> Share:
        """``count`` ring elements of pad a row: (n, count)."""
        wide = -(-count * ring.nbytes // 16)
        blocks = self.blocks(permuted, first, wide)
        return blocks.view(ring.dtype).reshape(len(blocks), wide * 16 // ring.nbytes)[:, :count]


def table_pads(rows: Words, mask: Words, first: int) -> NDArray[np.uint16]:
    """16 bits of pad for every row of 256 bits: SHA-256 of the counter and of row ^ mask."""
    kernels = _kernels()
    if kernels is not None:
        pads = np.empty(len(rows), np.uint16)
        kernels.ot_row_hash(rows, mask, first, pads, native.threads())
        return pads
    data = np.empty((len(rows), 1 + TABLE_WIDTH // 64), np.uint64)
    data[:, 0] = np.arange(first, first + len(rows), dtype=np.uint64)
    data[:, 1:] = rows ^ mask
    view = memoryview(data.tobytes())
    size = data.shape[1] * data.itemsize
    digests = b"".join(
        hashlib.sha256(view[start : start + size]).digest()[:2] for start in range(0, len(view), size)
    )
    return np.frombuffer(digests, "<u2")


def _columns(
    keys: Sequence[bytes], session: bytes, role: str, ledger: BlockLedger | None
) -> tuple[Stream, ...]:
    return tuple(
        Prg(key, ledger).stream(session, None, index, 0, f"columns {role}") for index, key in enumerate(keys)
    )


def _draw(columns: Sequence[Stream], words: int) -> Words:
    out = np.empty((len(columns), words), np.uint64)
    for row, stream in zip(out, columns, strict=True):
        stream.fill(row)
    return out


def _kernels() -> Any:
    """The native module if it holds these kernels."""
    module = native.extension()
    return module if hasattr(module, "ot_transpose") else None


def _block_cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise MissingExtra("cryptography", "private") from error
    return Cipher(algorithms.AES128(key), modes.ECB()).encryptor()  # a permutation, not a mode
