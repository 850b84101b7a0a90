"""Coverage-guided fuzzing of the frame parser and of what is done with a frame's contents.

Run it with atheris installed::

    python tests/engines/transport/fuzz_frames.py -max_total_time=600

Any exception but FrameError, any frame that does not add up, and any array that is handed out before it is
complete is a finding.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import types
import zlib
from pathlib import Path

import atheris
import numpy as np

from tradeoff.engines.transport import failures, frames, handshake
from tradeoff.engines.transport.failures import understand
from tradeoff.engines.transport.frames import (
    HEADER_BYTES,
    FrameError,
    FrameParser,
    FrameType,
    decode_array,
    encode_array,
    encode_header,
    encode_json,
)
from tradeoff.engines.transport.handshake import Hello

MAX_MESSAGE = 1 << 20


def repaired(data: bytes) -> bytes:
    """The stream with magic, sequence and checksum of its frames made right, to reach what lies behind."""
    out = bytearray(data)
    at = sequence = 0
    while at + HEADER_BYTES <= len(out):
        out[at : at + 4] = b"TDF1"
        struct.pack_into("<Q", out, at + 16, sequence)
        out[at + 5] &= 1
        out[at + 32 : at + 36] = b"\0" * 4
        struct.pack_into("<I", out, at + 36, zlib.crc32(out[at : at + 36]))
        (length,) = struct.unpack_from("<Q", out, at + 28)
        at += HEADER_BYTES + length
        sequence += 1
    return bytes(out)


def check(stream: bytes, cut: int) -> None:
    """Parse the stream in pieces of ``cut`` bytes, then do with its frames what a link does."""
    parser = FrameParser(MAX_MESSAGE)
    parsed = []
    try:
        for start in range(0, len(stream), cut):
            parsed += parser.feed(stream[start : start + cut])
    except FrameError:
        pass
    total = sum(frame.payload_bytes + frame.overhead_bytes for frame in parsed)
    assert total <= len(stream)
    for frame in parsed:
        try:
            if frame.type is FrameType.HELLO:
                Hello.decode(frame.value)
            elif frame.type is FrameType.ERROR:
                understand(0, 1, frame.value, 1.0)("scope")
        except FrameError:
            continue
        if frame.type is FrameType.DATA:
            descriptor, payload = encode_array(frame.value)
            assert payload.nbytes == frame.payload_bytes
            assert HEADER_BYTES + len(descriptor) == frame.overhead_bytes
            assert bytes(encode_array(decode_array(descriptor, payload))[1]) == bytes(payload)


def one_input(data: bytes) -> None:
    """The fuzzer's entry: the first byte chooses how the rest is cut and whether it is repaired."""
    if not data:
        return
    stream = data[1:]
    check(repaired(stream) if data[0] & 1 else stream, 1 + (data[0] >> 1) * 3)


def seeds() -> list[bytes]:
    """Short valid streams, one a kind of contents."""
    hello = Hello(1, 0, 2, "program", ("radix4",)).encode()
    contents = [
        (FrameType.HELLO, encode_json(hello)),
        (FrameType.ERROR, encode_json({"reason": "PeerLost", "peer": 2})),
        (FrameType.PING, b""),
    ]
    arrays = [np.zeros((2, 3), kind) for kind in ("u1", "u4", "u8", "i8", "f4", "f8")]
    for value in (*arrays, b"bytes", np.zeros((0, 4), "u8"), np.array(1.0)):
        descriptor, payload = encode_array(value)
        contents.append((FrameType.DATA, descriptor + bytes(payload)))
    frames_ = [
        encode_header(kind, session=1, sequence=0, length=len(payload)) + payload
        for kind, payload in contents
    ]
    return [*frames_, b"".join(frames_)]


def instrument() -> None:
    """Make the functions under test report their coverage, however the package is installed."""
    for module in (failures, frames, handshake):
        for holder in [module, *(value for value in vars(module).values() if isinstance(value, type))]:
            for function in vars(holder).values():
                if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                    function.__code__ = atheris.instrument_func(function).__code__


if __name__ == "__main__":
    instrument()
    with tempfile.TemporaryDirectory() as corpus:
        for number, stream in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(b"\1" + stream)
        atheris.Setup([*sys.argv, corpus], one_input)
        atheris.Fuzz()
