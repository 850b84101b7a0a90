"""Parties in threads of one process over real sockets, and a proxy that listens, cuts and garbles."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tradeoff.engines.transport import TLS, Config, InsecureWarning, Party, Stats
from tradeoff.engines.transport.party import listen

QUICK: dict[str, Any] = {
    "connect_timeout": 20.0,
    "recv_timeout": 20.0,
    "send_timeout": 20.0,
    "close_timeout": 1.0,
}


def make_config(addresses: Sequence[str | None], *, tls: TLS | None = None, **settings: Any) -> Config:
    """A configuration with short waits; in the clear unless ``tls`` is given."""
    return Config(parties=tuple(addresses), tls=tls, insecure=tls is None, **{**QUICK, **settings})


@dataclass
class Run:
    """What became of parties that ran in threads: results, errors and final counters by id."""

    results: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    stats: dict[int, Stats] = field(default_factory=dict)


def run_parties(
    configs: Sequence[Config], target: Callable[[Party], Any], listeners: Sequence[socket.socket | None]
) -> Run:
    """Run ``target(net)`` as each party in a thread of its own."""
    run = Run()

    def party(me: int) -> None:
        try:
            with Party(configs[me], me, listener=listeners[me]) as net:
                run.results[me] = target(net)
            run.stats[me] = net.stats()
        except BaseException as error:  # noqa: BLE001 - the tests look at it
            run.errors[me] = error

    threads = [threading.Thread(target=party, args=(me,)) for me in range(len(configs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureWarning)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a party hangs"
    for error in run.errors.values():
        if isinstance(error, AssertionError):
            raise error
    return run


def run_local(
    n: int,
    target: Callable[[Party], Any],
    *,
    tls: Sequence[TLS | None] | TLS | None = None,
    differ: dict[int, dict[str, Any]] | None = None,
    through: dict[int, Proxy] | None = None,
    **settings: Any,
) -> Run:
    """Run ``n`` parties on free loopback ports.

    Args:
        tls: for all, or one a party.
        differ: settings of single parties.
        through: by listening party the proxy in front of it, which the others dial.
    """
    listeners = [listen("127.0.0.1:0") for _ in range(n)]
    own = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in listeners]
    seen = list(own)
    for me, proxy in (through or {}).items():
        proxy.target = listeners[me].getsockname()
        seen[me] = proxy.address
    configs = []
    for me in range(n):
        addresses = [own[me] if party == me else seen[party] for party in range(n)]
        certificates = tls[me] if isinstance(tls, list | tuple) else tls
        config = make_config(addresses, tls=certificates, **settings)
        configs.append(replace(config, **(differ or {}).get(me, {})))
    try:
        return run_parties(configs, target, listeners)
    finally:
        for sock in listeners:
            sock.close()


Filter = Callable[[bytes, int], bytes | None]
"""(data, offset of its first byte in the stream) -> what to pass on; None ends the connection."""


class Proxy:
    """A relay in front of one listening party that counts, records and may change what passes.

    Attributes:
        up, down: bytes that passed from and to the dialing sides, in all; with ``capture`` their contents.
        silent: while True everything is swallowed, as by a network that drops packets.
    """

    def __init__(self, *, capture: bool = False, up_filter: Filter | None = None) -> None:
        self.target: tuple[str, int] = ("", 0)
        self.up = self.down = 0
        self.captured = bytearray()
        self.silent = False
        self._capture = capture
        self._filter = up_filter
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = listen("127.0.0.1:0")
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._stop = False
        self._spawn(self._accept)

    def close(self) -> None:
        """End all connections and threads."""
        self._stop = True
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Close all connections."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(0.1)
        while not self._stop:
            try:
                dialer, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            server = socket.create_connection(self.target)
            for sock in (dialer, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(0.2)
                self._sockets.append(sock)
            self._spawn(self._relay, dialer, server, True)
            self._spawn(self._relay, server, dialer, False)

    def _relay(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        offset = 0
        try:
            while not self._stop:
                try:
                    data: bytes | None = source.recv(1 << 18)
                except TimeoutError:
                    continue
                if not data:
                    break
                size = len(data)
                with self._lock:
                    self.up += size * upward
                    self.down += size * (not upward)
                    if self._capture:
                        self.captured += data
                if self.silent:
                    continue
                if upward and self._filter:
                    data = self._filter(data, offset)
                offset += size
                if data is None:
                    self.cut()
                    return
                sink.settimeout(60)
                sink.sendall(data)
            if not self.silent:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@contextlib.contextmanager
def no_leaks(*, seconds: float = 5.0) -> Iterator[None]:
    """Fail if threads or descriptors of this process are more afterwards than before."""
    before = (threading.active_count(), descriptors())
    yield
    deadline = time.monotonic() + seconds
    while (after := (threading.active_count(), descriptors())) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert after[0] <= before[0], f"threads left: {threading.enumerate()}"
    assert after[1] <= before[1], "descriptors left"


def descriptors() -> int:
    """Open file descriptors of this process."""
    import psutil

    return psutil.Process().num_fds()
