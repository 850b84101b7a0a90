"""A transcript of every frame of one party, for audits of what a protocol reveals."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tradeoff.engines.transport.frames import OFFLINE as OFFLINE_FLAG
from tradeoff.engines.transport.frames import Frame, FrameType, encode_array, encode_header, encode_json

_ENTRY = struct.Struct("<BHQ")


@dataclass(frozen=True)
class Entry:
    """One recorded frame: its peer, whether this party sent it, and its bytes."""

    peer: int
    sent: bool
    frame: bytes


class Recorder:
    """Appends frames to a file that only its owner can read."""

    def __init__(self, path: Path | str) -> None:
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        self._lock = threading.Lock()

    def write(self, peer: int, sent: bool, head: bytes, payload: bytes | memoryview = b"") -> None:
        """Add the frame ``head + payload``."""
        with self._lock:
            if not self._file.closed:
                self._file.write(_ENTRY.pack(sent, peer, len(head) + len(payload)))
                self._file.write(head)
                self._file.write(payload)

    def write_frame(self, peer: int, frame: Frame) -> None:
        """Add a frame that was received, as the bytes that it came as."""
        payload: bytes | memoryview = b""
        descriptor = b""
        if frame.type is FrameType.DATA:
            descriptor, payload = encode_array(frame.value)
        elif frame.value is not None:
            payload = encode_json(frame.value)
        header = encode_header(
            frame.type,
            session=frame.session,
            sequence=frame.sequence,
            length=len(descriptor) + len(payload),
            tag=frame.tag,
            round=frame.round,
            flags=OFFLINE_FLAG if frame.offline else 0,
        )
        self.write(peer, False, header + descriptor, payload)

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            self._file.close()


def read_transcript(path: Path | str) -> Iterator[Entry]:
    """The frames of a transcript in the order in which they were written."""
    with open(path, "rb") as file:
        while head := file.read(_ENTRY.size):
            sent, peer, length = _ENTRY.unpack(head)
            yield Entry(peer, bool(sent), file.read(length))
