"""Pseudorandom streams for shares and masks: AES-128 in counter mode.

Two holders of one seed read the same stream by naming it: session, inference, operator, chunk and purpose.
All five enter the derivation of the stream's key (BLAKE2b keyed by the seed, RFC 7693), so two names never
share a key, and within a stream the counter only moves forward: no block of the generator is used twice.
"""

import hashlib
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tradeoff.core.errors import EngineError, MissingExtra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

SEED_BYTES = 16
SESSION_BYTES = 16
_ZEROS = bytes(1 << 18)
_STATIC = 0xFFFF_FFFF_FFFF_FFFF


class BlockReuse(EngineError):
    """A part of a pseudorandom stream was about to be used a second time."""


class BlockLedger:
    """Remembers which bytes of which key's stream were used and refuses a second use; for tests."""

    def __init__(self) -> None:
        self._used: dict[bytes, list[tuple[int, int]]] = {}

    @property
    def streams(self) -> int:
        """How many different keys were used."""
        return len(self._used)

    @property
    def blocks(self) -> int:
        """How many different 16-byte blocks were used, in part or whole."""
        return sum(_blocks(ranges) for ranges in self._used.values())

    def record(self, key: bytes, start: int, stop: int) -> None:
        """Mark bytes ``start`` to ``stop`` of the stream of ``key`` as used.

        Raises:
            BlockReuse: some of them were used before.
        """
        used = self._used.setdefault(key, [])
        for low, high in used:
            if start < high and low < stop:
                first, last = max(start, low) // 16, (min(stop, high) - 1) // 16
                raise BlockReuse(f"blocks {first} to {last} of a stream are used twice")
        if used and used[-1][1] == start:
            used[-1] = (used[-1][0], stop)
        else:
            used.append((start, stop))


class Stream:
    """One named pseudorandom stream; reading moves it forward. Made by :meth:`Prg.stream`."""

    def __init__(self, key: bytes, ledger: BlockLedger | None = None) -> None:
        self._key = key
        self._ledger = ledger
        self._encryptor = _counter_mode(key)
        self._position = 0

    def fill(self, out: NDArray[Any]) -> NDArray[Any]:
        """Fill a contiguous array with the next bytes of the stream, without a copy; returns it.

        Values are little-endian, so both parties read the same numbers on any machine.
        """
        if not out.flags.c_contiguous or out.dtype.kind != "u":
            raise ValueError("a stream fills contiguous arrays of unsigned integers")
        if out.size == 0:
            return out
        if self._ledger is not None:
            self._ledger.record(self._key, self._position, self._position + out.nbytes)
        self._position += out.nbytes
        view = out.reshape(-1).data.cast("B")
        zeros = memoryview(_ZEROS)
        for start in range(0, len(view), len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            self._encryptor.update_into(zeros[: len(part)], part)
        return out

    def words(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint64) -> NDArray[Any]:
        """A new array of uniformly random unsigned integers, by default 64-bit words."""
        return self.fill(np.empty(shape, dtype))

    def bits(self, count: int) -> NDArray[np.uint64]:
        """``count`` random bits, packed 64 a word, rounded up to whole words."""
        return self.words(-(-count // 64))


class Prg:
    """A seed that two holders share, and the streams that grow from it.

    Args:
        seed: 16 bytes, from :func:`secrets.token_bytes` or an agreement of both.
        ledger: if given, every byte used is recorded there and a second use raises :class:`BlockReuse`.

    Example:
        >>> mine, yours = Prg(bytes(16)), Prg(bytes(16))
        >>> name = dict(session=bytes(16), inference=0, operator=3, chunk=0, purpose="mask")
        >>> bool((mine.stream(**name).words(4) == yours.stream(**name).words(4)).all())
        True
    """

    def __init__(self, seed: bytes, ledger: BlockLedger | None = None) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._seed = bytes(seed)
        self._ledger = ledger

    def stream(
        self, session: bytes, inference: int | None, operator: int, chunk: int, purpose: str
    ) -> Stream:
        """The stream of one name.

        Args:
            session: 16 bytes, fresh for each session.
            inference: counts the inferences of a session; None for the mask of a static weight only, which is
            drawn
                once a session.
            operator: index of the operator in the plan.
            chunk: index of the part of a large tensor.
            purpose: what the numbers are for, for example ``"mask"``; up to 255 bytes in UTF-8.
        """
        return Stream(self.derive(session, inference, operator, chunk, purpose), self._ledger)

    def derive(self, session: bytes, inference: int | None, operator: int, chunk: int, purpose: str) -> bytes:
        """The key of the stream of one name: no two names have the same encoding."""
        if len(session) != SESSION_BYTES:
            raise ValueError(f"a session id has {SESSION_BYTES} bytes, not {len(session)}")
        if inference == _STATIC:
            raise ValueError("the inference number is out of range")
        try:
            numbers = struct.pack("<QQQ", _STATIC if inference is None else inference, operator, chunk)
        except struct.error as error:
            raise ValueError(f"a number of the stream's name is out of range: {error}") from error
        name = purpose.encode()
        if len(name) > 255:
            raise ValueError("a purpose has at most 255 bytes")
        return hashlib.blake2b(
            session + numbers + name, key=self._seed, digest_size=16, person=b"tradeoff-prg"
        ).digest()


def agree(seed0: bytes, seed1: bytes) -> bytes:
    """The common seed of two parties from the 16 bytes that each sent to the other."""
    if len(seed0) != SEED_BYTES or len(seed1) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes")
    return hashlib.blake2b(seed0 + seed1, digest_size=SEED_BYTES, person=b"tradeoff-agree").digest()


def _counter_mode(key: bytes) -> "CipherContext":
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise MissingExtra("cryptography", "private") from error
    return Cipher(algorithms.AES128(key), modes.CTR(bytes(16))).encryptor()


def _blocks(ranges: list[tuple[int, int]]) -> int:
    """Blocks touched by disjoint byte ranges; a block that two ranges share counts once."""
    touched = 0
    last = -1
    for start, stop in sorted(ranges):
        first = max(start // 16, last + 1)
        last = max(last, (stop - 1) // 16)
        touched += max(0, last - first + 1)
    return touched
