"""Microsoft SEAL through its binding ``tenseal.sealapi``: the server's half, without any secret key.

SEAL's objects are written to and read from paths only; an anonymous file in memory serves as one.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tradeoff.core.errors import EngineError, MissingExtra
from tradeoff.engines.ckks.backends.backend import Evaluator, Slots
from tradeoff.engines.ckks.errors import CorruptMessage, MissingRotationKey
from tradeoff.engines.ckks.parameters import Parameters

_PARTS = struct.Struct("<QQ")
_HEADER_BYTES = 16
"""Of SEAL's serialization: magic, versions, compression, and from byte 8 the length of it all."""
_COMPRESSION, _ZSTANDARD = 5, 2
_MAX_WINDOW = 8 << 20
"""Where SEAL's own files need 2 MiB."""


def sealapi() -> Any:
    """The binding.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import tenseal.sealapi as api
    except ImportError:
        raise MissingExtra("tenseal", "private") from None
    return api


def seal_context(parameters: Parameters) -> Any:
    """SEAL's own object for the parameters; it checks their security again."""
    api = sealapi()
    chosen = api.EncryptionParameters(api.SCHEME_TYPE.CKKS)
    chosen.set_poly_modulus_degree(parameters.n)
    chosen.set_coeff_modulus([api.Modulus(prime) for prime in parameters.primes])
    level = api.SEC_LEVEL_TYPE.TC128 if parameters.secure else api.SEC_LEVEL_TYPE.NONE
    context = api.SEALContext(chosen, True, level)
    if not context.parameters_set():
        raise EngineError(f"SEAL refuses {parameters.describe()}: {context.parameters_error_message()}")
    return context


def levels(context: Any, depth: int) -> list[list[int]]:
    """SEAL's name of each level, by level."""
    names = []
    data = context.first_context_data()
    while data is not None:
        names.append(data.parms_id())
        data = data.next_context_data()
    if len(names) != depth + 1:
        raise EngineError(f"SEAL made {len(names) - 1} levels, not {depth}")
    return names[::-1]


@contextlib.contextmanager
def memory_file(data: bytes | memoryview = b"") -> Iterator[tuple[int, str]]:
    """A file that is in memory only, and a path by which this process alone can open it."""
    number = os.memfd_create("ckks")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(number, view) :]
        os.lseek(number, 0, os.SEEK_SET)
        yield number, f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def saved(thing: Any) -> bytes:
    """SEAL's serialization of one of its objects."""
    with memory_file() as (number, path):
        thing.save(path)
        size = os.fstat(number).st_size
        parts, at = [], 0
        while at < size:
            part = os.pread(number, size - at, at)
            parts.append(part)
            at += len(part)
        return b"".join(parts)


def loaded(thing: Any, context: Any, data: bytes | memoryview, what: str) -> Any:
    """Fill one of SEAL's objects, with its validation.

    Raises:
        CorruptMessage: SEAL refuses the bytes.
    """
    if len(data) < _HEADER_BYTES or int.from_bytes(data[8:_HEADER_BYTES], "little") != len(data):
        raise CorruptMessage(f"{what}: of another length than SEAL's header says")
    if (
        data[_COMPRESSION] == _ZSTANDARD
        and _window(bytes(data[_HEADER_BYTES : _HEADER_BYTES + 18])) > _MAX_WINDOW
    ):
        raise CorruptMessage(f"{what}: its compression asks for too much memory")
    with memory_file(data) as (_, path):
        try:
            thing.load(context, path)
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            raise CorruptMessage(f"{what}: SEAL cannot read it ({error})") from None
    return thing


def _window(frame: bytes) -> int:
    """Memory that a Zstandard frame asks for (RFC 8878, 3.1.1.1); 0 for what is none, which SEAL refuses."""
    if len(frame) < 18 or frame[:4] != b"\x28\xb5\x2f\xfd":
        return 0
    descriptor = frame[4]
    if not descriptor & 0x20:
        exponent, mantissa = frame[5] >> 3, frame[5] & 7
        return (1 << (10 + exponent)) // 8 * (8 + mantissa)
    start = 5 + (0, 1, 2, 4)[descriptor & 3]
    size = (1, 2, 4, 8)[descriptor >> 6]
    return int.from_bytes(frame[start : start + size], "little")


def galois_element(step: int, n: int) -> int:
    """The automorphism that moves slots ``step`` places to the left.

    SEAL's key generator takes these, not steps, from a list of whole numbers.
    """
    return pow(3, step % (n // 2), 2 * n)


def tiled(values: Slots, slots: int) -> list[float]:
    """A vector repeated over all slots."""
    repeated: list[float] = np.tile(values, slots // len(values)).tolist()
    return repeated


class SealEvaluator(Evaluator[Any, Any]):
    """SEAL's encoder and evaluator."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__(parameters)
        self._api = sealapi()
        self._context = seal_context(parameters)
        self._levels = levels(self._context, parameters.depth)
        self._level_of = {tuple(name): level for level, name in enumerate(self._levels)}
        self._encoder = self._api.CKKSEncoder(self._context)
        self._evaluator = self._api.Evaluator(self._context)
        self._relinearize: Any = None
        self._galois: Any = None

    def load_keys(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if len(view) < _PARTS.size:
            raise CorruptMessage("evaluation keys: truncated")
        first, second = _PARTS.unpack(view[: _PARTS.size])
        if first + second + _PARTS.size != len(view):
            raise CorruptMessage("evaluation keys: of a wrong length")
        parts = view[_PARTS.size : _PARTS.size + first], view[_PARTS.size + first :]
        api, context = self._api, self._context
        self._relinearize = (
            loaded(api.RelinKeys(), context, parts[0], "relinearization key") if first else None
        )
        self._galois = loaded(api.GaloisKeys(), context, parts[1], "rotation keys") if second else None

    def require_steps(self, steps: Sequence[int], relinearize: bool) -> None:
        if relinearize and self._relinearize is None:
            raise MissingRotationKey(0)
        for step in steps:
            self._require(step)

    def encode(self, values: Slots, level: int, scale: float) -> Any:
        plain = self._api.Plaintext()
        self._encoder.encode(tiled(values, self.parameters.slots), self._levels[level], scale, plain)
        return plain

    def plain_bytes(self, level: int) -> int:
        return 8 * self.parameters.n * (level + 1)

    def add(self, x: Any, y: Any) -> Any:
        result = self._api.Ciphertext()
        self._evaluator.add(x, y, result)
        return result

    def subtract(self, x: Any, y: Any) -> Any:
        result = self._api.Ciphertext()
        self._evaluator.sub(x, y, result)
        return result

    def accumulate(self, x: Any, y: Any) -> None:
        self._evaluator.add_inplace(x, y)

    def negate(self, x: Any) -> Any:
        result = self._api.Ciphertext()
        self._evaluator.negate(x, result)
        return result

    def add_plain(self, x: Any, y: Any) -> Any:
        result = self._api.Ciphertext()
        self._evaluator.add_plain(x, y, result)
        return result

    def multiply_plain(self, x: Any, y: Any) -> Any:
        result = self._api.Ciphertext()
        self._evaluator.multiply_plain(x, y, result)
        return result

    def multiply(self, x: Any, y: Any) -> Any:
        if self._relinearize is None:
            raise MissingRotationKey(0)
        result = self._api.Ciphertext()
        if x is y:
            self._evaluator.square(x, result)
        else:
            self._evaluator.multiply(x, y, result)
        self._evaluator.relinearize_inplace(result, self._relinearize)
        return result

    def rescale(self, x: Any) -> Any:
        result = self._api.Ciphertext()
        self._evaluator.rescale_to_next(x, result)
        return result

    def lower(self, x: Any, level: int) -> Any:
        result = self._api.Ciphertext()
        self._evaluator.mod_switch_to(x, self._levels[level], result)
        return result

    def rotate(self, x: Any, step: int) -> Any:
        self._require(step)
        result = self._api.Ciphertext()
        # By element and not by step, for which SEAL would put together several rotations where keys allow.
        self._evaluator.apply_galois(x, galois_element(step, self.parameters.n), self._galois, result)
        return result

    def level(self, x: Any) -> int:
        return self._level_of[tuple(x.parms_id())]

    def scale(self, x: Any) -> float:
        return float(x.scale)

    def reinterpret_scale(self, x: Any, scale: float) -> None:
        x.scale = scale

    def save(self, x: Any) -> bytes:
        return saved(x)

    def load(self, data: bytes) -> Any:
        result = loaded(self._api.Ciphertext(), self._context, data, "ciphertext")
        if result.size() != 2 or tuple(result.parms_id()) not in self._level_of or not result.is_ntt_form():
            raise CorruptMessage("ciphertext: not of two polynomials at a level of the plan")
        return result

    def _require(self, step: int) -> None:
        if self._galois is None or not self._galois.has_key(galois_element(step, self.parameters.n)):
            raise MissingRotationKey(step)
