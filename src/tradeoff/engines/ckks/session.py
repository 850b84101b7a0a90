"""A server as a process of this host, and a client of it here, over TLS: for trials and benchmarks.

The server is the command ``tradeoff ckks serve``, as it would be on a host of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from numpy.typing import NDArray

from tradeoff.core.errors import EngineError
from tradeoff.engines.ckks.client import Client, Connection, Result
from tradeoff.engines.ckks.files import save_program
from tradeoff.engines.ckks.keys import Keys
from tradeoff.engines.ckks.planning import Plan
from tradeoff.engines.ckks.program import Program
from tradeoff.engines.transport import TLS, Config, RemoteFailure, make_keys

LOG = "server.log"


@dataclass(frozen=True)
class Setup:
    """What it took before the first request: seconds and bytes of keys."""

    keygen_seconds: float
    upload_seconds: float
    key_bytes: int


class Session:
    """A server process and a connected client; use it as a context manager.

    Args:
        keys: of the client; fresh ones if None.
        folder: where program, certificates and the server's files go; a temporary one if None.
        options: further arguments of ``tradeoff ckks serve``.

    Attributes:
        setup: what keys took; process: the server's.

    Example::

        with Session(program, plan) as session:
            result = session.infer(x)
            print(result.values, result.report)

    Raises:
        RemoteFailure: the server did not start; with what it said.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        *,
        keys: Keys | None = None,
        folder: Path | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or "")
        began = time.perf_counter()
        self.keys = keys or Keys.generate(plan)
        generated = time.perf_counter()
        save_program(self.folder / "program", program, plan)
        if not (self.folder / "certificates").exists():
            make_keys(self.folder / "certificates", 2)
        write_config(self.folder / "cluster.toml", "127.0.0.1:0")
        self.process = _start(self.folder, options)
        self._connection: Connection | None = None
        try:
            self.address = _address(self.process, self.folder / LOG)
            started = time.perf_counter()
            self._connection = Client(plan, self.keys).connect(self.config)
            uploaded = time.perf_counter() - started
        except BaseException:
            self.close()
            raise
        self.setup = Setup(generated - began, uploaded, self._connection.key_bytes_sent)

    @property
    def config(self) -> Config:
        """Of a client of this server."""
        tls = TLS.folder(self.folder / "certificates")
        return Config((self.address, None), tls=tls)

    def infer(
        self, x: NDArray[Any], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Result:
        """The network's result for a tensor, computed by the server on ciphertexts."""
        if self._connection is None:
            raise EngineError("the session is closed")
        return self._connection.infer(x, progress)

    def peak_memory(self) -> int:
        """Largest resident memory of the server process so far, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status")
        if status.exists():
            peaks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
            if peaks:
                return int(peaks[0].split()[1]) * 1024
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def close(self) -> None:
        """Leave, and stop the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_config(path: Path, address: str) -> None:
    """A cluster.toml beside a folder ``certificates`` of :func:`make_keys`."""
    lines = [f'parties = ["{address}", "127.0.0.1:0"]', "[tls]", 'authority = "certificates/ca.pem"']
    lines += ['certificate = "certificates/party-{me}.pem"', 'key = "certificates/party-{me}.key"']
    path.write_text("\n".join(lines) + "\n")


def _start(folder: Path, options: tuple[str, ...]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tradeoff", "ckks", "serve", "--program", "program"]
    command += ["--config", "cluster.toml", "--keys", "server-keys", *options]
    with (folder / LOG).open("w") as log:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """Where a server says that it listens, on its first line."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("serving on "):
        status = process.wait(10)
        said = log.read_text(errors="replace").strip()[-1000:]
        raise RemoteFailure(f"the server did not start (status {status}): {said}")
    return line.split()[2]
