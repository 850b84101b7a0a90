"""The frame: what crosses a link between two parties, and a bounded parser for it.

A frame is a header of 40 bytes, little endian, and a payload:

====================  ====  =============================================================
field                 type  meaning
====================  ====  =============================================================
magic                 u32   ``TDF1``
type                  u8    :class:`FrameType`
flags                 u8    bit 0: offline-phase traffic; the others are zero
round                 u16   the sender's round counter, modulo 2^16
session               u64   drawn once a session
sequence              u64   per direction, from 0
tag                   u32   the protocol's own label (the operator index, say)
length                u64   bytes of payload
checksum              u32   CRC32 of the header's first 36 bytes
====================  ====  =============================================================

A DATA payload is one C-contiguous array: dtype code u8, number of dimensions u8, the shape as u64 each, then
the raw elements. HELLO and ERROR carry JSON with a fixed set of keys. Nothing is ever unpickled, and every
length is checked before memory is taken for it.
"""

from __future__ import annotations

import enum
import json
import math
import struct
import time
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from tradeoff.engines.transport.errors import UnsupportedArray

MAGIC = int.from_bytes(b"TDF1", "little")
HEADER = struct.Struct("<IBBHQQIQI")
HEADER_BYTES = HEADER.size
OFFLINE = 0x01
MAX_DIMENSIONS = 8
MAX_JSON_BYTES = 16 * 1024
UNAUTHENTICATED_LIMIT = 64 * 1024
DEFAULT_MAX_MESSAGE = 1 << 30
MAX_TAG = (1 << 32) - 1
_CHECKSUM = struct.Struct("<I")
_DESCRIPTORS = [struct.Struct(f"<BB{ndim}Q") for ndim in range(MAX_DIMENSIONS + 1)]
_SHAPES = [struct.Struct(f"<{ndim}Q") for ndim in range(MAX_DIMENSIONS + 1)]
_SCRATCH_BYTES = 64 * 1024

_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u4"),
    3: np.dtype("<u8"),
    4: np.dtype("<i8"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
}
_BYTES_CODE = 7
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class FrameType(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1
    READY = 2
    DATA = 3
    ERROR = 4
    PING = 5
    PONG = 6
    BYE = 7


_TYPES = {int(kind): kind for kind in FrameType}
_EMPTY_TYPES = (FrameType.READY, FrameType.PING, FrameType.PONG, FrameType.BYE)
_JSON_TYPES = (FrameType.HELLO, FrameType.ERROR)


class FrameError(ValueError):
    """Bytes that are no valid frame; the message says which rule they break."""


@dataclass(slots=True)
class Frame:
    """One parsed frame.

    Attributes:
        value: the array (or bytes) of a DATA frame, the object of a HELLO or ERROR frame, else None.
        payload_bytes: bytes of array elements; overhead_bytes: header and descriptor. For every other type
            than DATA all bytes are overhead.
        started: monotonic time at which the header had arrived.
    """

    type: FrameType
    offline: bool
    round: int
    session: int
    sequence: int
    tag: int
    value: Any
    payload_bytes: int
    overhead_bytes: int
    started: float


def encode_header(
    kind: FrameType, *, session: int, sequence: int, length: int, tag: int = 0, round: int = 0, flags: int = 0
) -> bytes:
    """The 40 bytes before a payload of ``length`` bytes."""
    fields = (MAGIC, kind, flags, round & 0xFFFF, session, sequence, tag, length)
    start = HEADER.pack(*fields, 0)[:-4]
    return start + _CHECKSUM.pack(zlib.crc32(start))


def encode_array(value: np.ndarray | bytes | bytearray | memoryview) -> tuple[bytes, memoryview]:
    """Descriptor and raw element bytes of an array; the bytes are a view, not a copy, where they can be.

    Raises:
        UnsupportedArray: the dtype is not one of uint8, uint32, uint64, int64, float32, float64 and bytes, or
            there are more than eight dimensions.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        view = memoryview(value).cast("B") if len(value) else memoryview(b"")
        return struct.pack("<BBQ", _BYTES_CODE, 1, view.nbytes), view
    array = np.asarray(value)
    code = _CODES.get(array.dtype) or _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        allowed = ", ".join(dtype.name for dtype in _CODES)
        raise UnsupportedArray(f"cannot send an array of dtype {array.dtype}; allowed: {allowed} and bytes")
    if array.ndim > MAX_DIMENSIONS:
        raise UnsupportedArray(f"cannot send an array of {array.ndim} dimensions, at most {MAX_DIMENSIONS}")
    descriptor = _DESCRIPTORS[array.ndim].pack(code, array.ndim, *array.shape)
    if array.size == 0:
        return descriptor, memoryview(b"")
    return descriptor, np.ascontiguousarray(array, dtype=_DTYPES[code]).data.cast("B")


def decode_array(descriptor: bytes, payload: memoryview) -> np.ndarray | bytes:
    """A copy of the array that :func:`encode_array` described; it shares no memory with ``payload``."""
    code, ndim = descriptor[0], descriptor[1]
    if code == _BYTES_CODE:
        return bytes(payload)
    shape = struct.unpack_from(f"<{ndim}Q", descriptor, 2)
    return np.frombuffer(payload, _DTYPES[code]).reshape(shape).copy()


def describe(value: np.ndarray | bytes) -> str:
    """Dtype and shape of a message, for error texts."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name}{list(value.shape)}"
    return f"bytes[{len(value)}]"


def encode_json(value: dict[str, Any]) -> bytes:
    """The payload of a HELLO or ERROR frame."""
    text = json.dumps(value, separators=(",", ":")).encode()
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{len(text)} bytes of JSON, at most {MAX_JSON_BYTES} fit a frame")
    return text


def decode_json(text: bytes) -> dict[str, Any]:
    """The object of a HELLO or ERROR payload.

    Raises:
        FrameError: not UTF-8, not JSON, nested too deep, or no object.
    """
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"payload is no JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise FrameError("payload is no JSON object")
    return value


@dataclass(slots=True)
class _Body:
    """A DATA frame whose elements are still arriving, straight into their array."""

    frame: Frame
    view: memoryview
    filled: int


class FrameParser:
    """Turns the bytes of one direction of a link into frames.

    The caller fills :meth:`buffer` and reports how much with :meth:`advance`; the elements of a large array
    land directly in the array that is handed out. At most one frame beyond the scratch space is in memory.

    Args:
        max_message: the largest payload accepted.
        session: the session id that every frame must carry; None until it is known.
    """

    def __init__(self, max_message: int = DEFAULT_MAX_MESSAGE, session: int | None = None) -> None:
        self.max_message = max_message
        self.session = session
        self.next_sequence = 0
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._space = memoryview(self._scratch)
        self._start = 0
        self._end = 0
        self._body: _Body | None = None

    @property
    def in_flight(self) -> int:
        """Payload bytes of the array that is arriving now."""
        body = self._body  # read once: another thread asks
        return body.frame.payload_bytes if body else 0

    @property
    def idle(self) -> bool:
        """Whether the stream stands exactly between two frames."""
        return self._body is None and self._start == self._end

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._body:
            return self._body.view[self._body.filled :]
        if self._start:
            rest = self._end - self._start
            self._space[:rest] = self._space[self._start : self._end]
            self._start, self._end = 0, rest
        return self._space[self._end :]

    def advance(self, count: int) -> list[Frame]:
        """Account for ``count`` bytes written into :meth:`buffer` and return the frames they complete.

        Raises:
            FrameError: the bytes break a rule of the format. The parser is of no use afterwards.
        """
        if self._body:
            self._body.filled += count
            if self._body.filled < self._body.view.nbytes:
                return []
            complete, self._body = self._body.frame, None
            return [_finish(complete)]
        self._end += count
        frames: list[Frame] = []
        while self._body is None and (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """:meth:`buffer` and :meth:`advance` for bytes that are in memory already."""
        frames, rest = [], memoryview(data)
        while rest.nbytes:
            space = self.buffer()
            count = min(space.nbytes, rest.nbytes)
            space[:count] = rest[:count]
            frames += self.advance(count)
            rest = rest[count:]
        return frames

    def _next(self) -> Frame | None:
        available = self._end - self._start
        if available < HEADER_BYTES:
            return None
        frame, length = self._header()
        if frame.type is FrameType.DATA:
            return self._data(frame, length, available)
        if available < HEADER_BYTES + length:
            return None
        payload = bytes(self._space[self._start + HEADER_BYTES : self._start + HEADER_BYTES + length])
        if frame.type in _JSON_TYPES:
            frame.value = decode_json(payload)
        frame.overhead_bytes = HEADER_BYTES + length
        self._accept(HEADER_BYTES + length)
        return frame

    def _header(self) -> tuple[Frame, int]:
        magic, kind, flags, round_, session, sequence, tag, length, checksum = HEADER.unpack_from(
            self._scratch, self._start
        )
        if magic != MAGIC:
            raise FrameError(f"bad magic 0x{magic:08x}")
        if zlib.crc32(self._space[self._start : self._start + HEADER_BYTES - 4]) != checksum:
            raise FrameError("header checksum does not match")
        if flags & ~OFFLINE:
            raise FrameError(f"unknown flags 0x{flags:02x}")
        type_ = _TYPES.get(kind)
        if type_ is None:
            raise FrameError(f"unknown frame type {kind}")
        if self.session is not None and session != self.session:
            raise FrameError(f"frame of session {session:016x}")
        if sequence != self.next_sequence:
            raise FrameError(f"sequence number {sequence}, expected {self.next_sequence}")
        self._check_length(type_, length)
        offline = bool(flags & OFFLINE)
        return Frame(type_, offline, round_, session, sequence, tag, None, 0, 0, time.monotonic()), length

    def _check_length(self, kind: FrameType, length: int) -> None:
        if kind in _EMPTY_TYPES and length:
            raise FrameError(f"{kind.name} with a payload of {length} bytes")
        if kind in _JSON_TYPES and length > MAX_JSON_BYTES:
            raise FrameError(f"{kind.name} of {length} bytes, at most {MAX_JSON_BYTES}")
        if kind is FrameType.DATA and length < 2:
            raise FrameError("DATA without a descriptor")
        if length > self.max_message:
            raise FrameError(f"payload of {length} bytes, at most {self.max_message}")

    def _data(self, frame: Frame, length: int, available: int) -> Frame | None:
        if available < HEADER_BYTES + 2:
            return None
        at = self._start + HEADER_BYTES
        code, ndim = self._scratch[at], self._scratch[at + 1]
        if ndim > MAX_DIMENSIONS:
            raise FrameError(f"{ndim} dimensions, at most {MAX_DIMENSIONS}")
        descriptor_bytes = 2 + 8 * ndim
        if length < descriptor_bytes:
            raise FrameError("payload shorter than its descriptor")
        if available < HEADER_BYTES + descriptor_bytes:
            return None
        shape = _SHAPES[ndim].unpack_from(self._scratch, at + 2)
        frame.value, view = _allocate(code, shape, length - descriptor_bytes)
        frame.payload_bytes = view.nbytes
        frame.overhead_bytes = HEADER_BYTES + descriptor_bytes
        self._accept(frame.overhead_bytes)
        ready = min(view.nbytes, self._end - self._start)
        if ready:
            view[:ready] = self._space[self._start : self._start + ready]
            self._start += ready
        if ready < view.nbytes:
            self._body = _Body(frame, view, ready)
            self._start = self._end = 0
            return None
        return _finish(frame)

    def _accept(self, count: int) -> None:
        self._start += count
        self.next_sequence += 1


def _allocate(code: int, shape: tuple[int, ...], length: int) -> tuple[np.ndarray | bytearray, memoryview]:
    """The empty array that a descriptor announces, if it announces exactly ``length`` bytes."""
    if code == _BYTES_CODE:
        if len(shape) != 1 or shape[0] != length:
            raise FrameError(f"bytes of shape {list(shape)} in {length} bytes")
        data = bytearray(length)
        return data, memoryview(data)
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise FrameError(f"unknown dtype code {code}")
    if math.prod(shape) * dtype.itemsize != length:
        raise FrameError(f"shape {list(shape)} of {dtype.name} in {length} bytes")
    if length == 0:
        if math.prod(max(size, 1) for size in shape) > DEFAULT_MAX_MESSAGE:
            raise FrameError(f"shape {list(shape)} is out of range")
        return np.empty(shape, dtype), memoryview(b"")
    array = np.empty(shape, dtype)
    return array, array.data.cast("B")


def _finish(frame: Frame) -> Frame:
    if isinstance(frame.value, bytearray):
        frame.value = bytes(frame.value)
    return frame
