"""Watching a program while it runs, and stopping all of it when it takes too much."""

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

import psutil

_POLL_SECONDS = 0.02
_OUT_OF_MEMORY = re.compile(rb"MemoryError|bad_alloc|out of memory|cannot allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: wall-clock time.
        memory_bytes: resident memory of all its processes together.
        output_bytes: of standard output and of standard error.
        disk_bytes: of everything in its folder.
        processes: at a time, in a box.
    """

    seconds: float = 60.0
    memory_bytes: int = 2 * 2**30
    output_bytes: int = 2**20
    disk_bytes: int = 256 * 2**20
    processes: int = 256


class ToolStatus(StrEnum):
    """How a program ended."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"


class _Capture(threading.Thread):
    """Reads a stream up to a bound."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._limit = limit
        self.data = b""
        self.exceeded = False
        self.start()

    def run(self) -> None:
        """Read until the end; beyond the bound, read and forget."""
        while chunk := os.read(self._stream.fileno(), 65536):
            room = self._limit - len(self.data)
            self.data += chunk[:room]
            self.exceeded = self.exceeded or len(chunk) > room


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it printed."""

    status: ToolStatus
    returncode: int
    stdout: bytes
    stderr: bytes


def supervise(command: Sequence[str], work: Path, stdin: bytes, limits: Limits) -> Ended:
    """Run a command in a folder, and stop it and all its processes when it goes beyond a limit."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work), "LANG": "C.UTF-8"}
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    assert process.stdout is not None
    assert process.stderr is not None
    captures = [_Capture(stream, limits.output_bytes) for stream in (process.stdout, process.stderr)]
    try:
        broken = _watch(process, captures, limits, work)
    finally:
        _kill_tree(process)
        for capture in captures:
            capture.join(5)
        process.stdout.close()
        process.stderr.close()
    stdout, stderr = (capture.data for capture in captures)
    if broken is None and process.returncode != 0:
        broken = ToolStatus.MEMORY if _OUT_OF_MEMORY.search(stderr) else ToolStatus.FAILED
    return Ended(broken or ToolStatus.OK, process.returncode, stdout, stderr)


def _watch(
    process: subprocess.Popen[bytes], captures: Sequence[_Capture], limits: Limits, work: Path
) -> ToolStatus | None:
    """Wait for the process to end; the limit that it broke, or None."""
    deadline = time.monotonic() + limits.seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            return ToolStatus.TIMEOUT
        if _too_much(captures, limits, work):
            return ToolStatus.OUTPUT_LIMIT
        if _resident_bytes(process.pid) > limits.memory_bytes:
            return ToolStatus.MEMORY
        time.sleep(_POLL_SECONDS)
    for capture in captures:
        capture.join(max(0.0, deadline - time.monotonic()))
    return ToolStatus.OUTPUT_LIMIT if _too_much(captures, limits, work) else None


def _too_much(captures: Sequence[_Capture], limits: Limits, work: Path) -> bool:
    return any(capture.exceeded for capture in captures) or _disk_bytes(work) > limits.disk_bytes


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident_bytes(pid: int) -> int:
    total = 0
    for process in _family(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _disk_bytes(work: Path) -> int:
    total = 0
    for folder, _, files in os.walk(work):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # it is gone already
                continue
    return total


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants, also those born meanwhile; a box's processes die with it."""
    family = _family(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
