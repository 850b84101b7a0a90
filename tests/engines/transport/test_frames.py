"""The frame format: what is encoded comes back, what breaks a rule is refused before memory is taken."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tradeoff.engines.transport import UnsupportedArray
from tradeoff.engines.transport.frames import (
    HEADER,
    HEADER_BYTES,
    FrameError,
    FrameParser,
    FrameType,
    decode_array,
    decode_json,
    encode_array,
    encode_header,
)

DTYPES = ["uint8", "uint32", "uint64", "int64", "float32", "float64"]
SESSION = 0x1122334455667788
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
)


def data_frame(value, sequence=0, **fields):
    descriptor, payload = encode_array(value)
    length = len(descriptor) + payload.nbytes
    header = encode_header(FrameType.DATA, session=SESSION, sequence=sequence, length=length, **fields)
    return header + descriptor + bytes(payload)


def raw_frame(kind=FrameType.DATA, payload=b"", *, sequence=0, length=None, flags=0, session=SESSION):
    length = len(payload) if length is None else length
    return encode_header(kind, session=session, sequence=sequence, length=length, flags=flags) + payload


def test_header_has_the_documented_layout():
    header = encode_header(FrameType.DATA, session=SESSION, sequence=5, length=7, tag=9, round=3, flags=1)
    start = struct.pack("<4sBBHQQIQ", b"TDF1", 3, 1, 3, SESSION, 5, 9, 7)
    assert header == start + struct.pack("<I", zlib.crc32(start))
    assert HEADER_BYTES == HEADER.size == len(header) == 40


@given(st.lists(st.one_of(arrays, st.binary(max_size=200)), min_size=1, max_size=8), st.data())
@settings(max_examples=150, deadline=None)
def test_messages_survive_any_cutting(values, data):
    stream = b"".join(data_frame(value, i, tag=i, round=i) for i, value in enumerate(values))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    parser = FrameParser(session=SESSION)
    frames = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += parser.feed(stream[start:end])
    assert parser.idle
    assert [frame.tag for frame in frames] == list(range(len(values)))
    for frame, value in zip(frames, values, strict=True):
        if isinstance(value, bytes):
            assert frame.value == value
        else:
            assert frame.value.dtype == value.dtype
            assert frame.value.shape == value.shape
            assert frame.value.tobytes() == value.tobytes()
    assert sum(frame.payload_bytes + frame.overhead_bytes for frame in frames) == len(stream)


@given(arrays)
@settings(max_examples=50, deadline=None)
def test_array_copy_equals_array(value):
    copy = decode_array(*encode_array(value))
    assert copy.dtype == value.dtype
    assert copy.shape == value.shape
    assert copy.tobytes() == value.tobytes()


def test_non_contiguous_and_big_endian_arrays_arrive_as_their_values():
    for value in (np.arange(24, dtype=np.uint64).reshape(4, 6)[::2, ::-1].T, np.arange(5, dtype=">u8")):
        frame = FrameParser().feed(data_frame(value))[0]
        assert np.array_equal(frame.value, value)


@pytest.mark.parametrize(
    "value", [np.array([None]), np.zeros(2, bool), np.zeros(2, np.int32), np.zeros((1,) * 9)]
)
def test_other_arrays_cannot_be_sent(value):
    with pytest.raises(UnsupportedArray, match="cannot send"):
        encode_array(value)


def shape_payload(code, shape, content=b""):
    return struct.pack(f"<BB{len(shape)}Q", code, len(shape), *shape) + content


BROKEN = {
    "bad magic": b"\0" + raw_frame(payload=shape_payload(1, (0,)))[1:],
    "checksum": raw_frame(payload=shape_payload(1, (0,)))[:39] + b"\0" + shape_payload(1, (0,)),
    "unknown flags": raw_frame(payload=shape_payload(1, (0,)), flags=2),
    "unknown frame type": raw_frame(9),
    "sequence number 1": raw_frame(payload=shape_payload(1, (0,)), sequence=1),
    "of session": raw_frame(payload=shape_payload(1, (0,)), session=1),
    "PING with a payload": raw_frame(FrameType.PING, b"x"),
    "HELLO of 16385": raw_frame(FrameType.HELLO, length=16385),
    "without a descriptor": raw_frame(payload=b"\1"),
    "at most 1048576": raw_frame(length=(1 << 20) + 1),
    "9 dimensions": raw_frame(payload=shape_payload(1, (1,) * 9, b"x")),
    "shorter than its descriptor": raw_frame(payload=b"\1\2" + b"\0" * 8),
    "unknown dtype code 0": raw_frame(payload=shape_payload(0, (1,), b"x")),
    "unknown dtype code 99": raw_frame(payload=shape_payload(99, (1,), b"x")),
    "uint64 in 7 bytes": raw_frame(payload=shape_payload(3, (1,), b"x" * 7)),
    "uint8 in 2 bytes": raw_frame(payload=shape_payload(1, (1 << 63, 2), b"xx")),
    "out of range": raw_frame(payload=shape_payload(1, (0, 1 << 63))),
    "bytes of shape": raw_frame(payload=shape_payload(7, (1, 1), b"x")),
    "no JSON": raw_frame(FrameType.ERROR, b"\xff"),
    "no JSON object": raw_frame(FrameType.ERROR, b"[]"),
    "RecursionError": raw_frame(FrameType.HELLO, b"[" * 16000),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_frames_are_refused(what):
    parser = FrameParser(1 << 20, session=SESSION)
    with pytest.raises(FrameError, match=what):
        parser.feed(BROKEN[what])


def test_a_refused_length_costs_no_memory():
    huge = raw_frame(length=1 << 40, payload=shape_payload(1, (1 << 40,)))
    lying = raw_frame(length=12, payload=shape_payload(1, (1 << 29,)))
    parsers = [FrameParser(), FrameParser()]
    tracemalloc.start()
    for parser, frame in zip(parsers, (huge, lying), strict=True):
        with pytest.raises(FrameError):
            parser.feed(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_repeated_and_missing_frames_are_refused():
    first, second, third = (data_frame(b"x", sequence) for sequence in range(3))
    for stream in (first + second + second, first + third):
        with pytest.raises(FrameError, match="sequence number"):
            FrameParser().feed(stream)


@given(st.integers(0, 39), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_any_changed_header_byte_is_noticed(offset, change):
    frame = bytearray(data_frame(np.arange(10, dtype=np.uint64)))
    frame[offset] ^= change
    with pytest.raises(FrameError):
        FrameParser().feed(bytes(frame))


@st.composite
def garbled(draw):
    """Valid frames with a patch, a piece left out, or a header whose checksum matches its nonsense."""
    values = draw(st.lists(st.one_of(arrays, st.binary(max_size=40)), min_size=1, max_size=3))
    stream = bytearray(b"".join(data_frame(value, i) for i, value in enumerate(values)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(stream)))
        stream[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    if draw(st.booleans()):
        fields = draw(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, (1 << 64) - 1)))
        header = encode_header(FrameType.PING, session=SESSION, sequence=0, length=fields[2], flags=fields[1])
        body = header[:4] + bytes([fields[0]]) + header[5:36]
        stream[:0] = body + struct.pack("<I", zlib.crc32(body)) + draw(st.binary(max_size=64))
    return bytes(stream)


@given(st.one_of(st.binary(max_size=300), garbled()))
@settings(max_examples=400, deadline=None)
def test_garbage_gives_frames_or_a_frame_error(stream):
    parser = FrameParser(1 << 20)
    try:
        frames = parser.feed(stream)
    except FrameError:
        return
    assert sum(frame.payload_bytes + frame.overhead_bytes for frame in frames) <= len(stream)


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_json_payloads_give_an_object_or_a_frame_error(text):
    try:
        assert isinstance(decode_json(text), dict)
    except FrameError:
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(text.decode()), dict)
