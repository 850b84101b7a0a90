"""Parties as processes of this host, for tests, studies and local runs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType, TracebackType
from typing import Any, Self

from tradeoff.engines.transport.config import TLS, Config, InsecureWarning
from tradeoff.engines.transport.errors import RemoteFailure
from tradeoff.engines.transport.failures import root_cause
from tradeoff.engines.transport.party import Party, listen
from tradeoff.engines.transport.shaper import LinkShaper, profile

_GRACE = 2.0


class RemoteTraceback(Exception):
    """The traceback of a party's error, as its cause."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class LocalCluster:
    """``n`` processes on this host, each running ``target(net, *args, *per_party[id])`` as one party.

    The processes are spawned, listen on free loopback ports of their own choice and end with this process.
    ``target`` and its arguments must be picklable.

    Example::

        results = LocalCluster(3, protocol, args=(16,)).run()

    Args:
        tls: True for certificates made for this run, or a :class:`TLS`; False talks in the clear, which on
            loopback only this host's administrator can read.
        link: emulated link between each two (a profile's name, a :class:`LinkShaper` or None).
        import_main: whether the processes import the caller's script, as ``spawn`` does. They must if
            ``target`` is defined there, and the script then needs a main guard.
        settings: further fields of :class:`Config` (timeouts, limits, program).
    """

    def __init__(
        self,
        n: int,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        *,
        per_party: Sequence[Sequence[Any]] | None = None,
        tls: bool | TLS = False,
        link: str | LinkShaper | None = None,
        import_main: bool = True,
        **settings: Any,
    ) -> None:
        self.n = n
        self._import_main = import_main
        self._target = target
        self._arguments = [(*args, *(per_party[me] if per_party else ())) for me in range(n)]
        self._tls = tls
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._template = Config(
            parties=("127.0.0.1:0",) * n,
            session=secrets.randbits(63) + 1,
            insecure=not tls,
            link=None if link is None else profile(link),
            **settings,
        )
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._answers: dict[int, tuple[bool, Any]] = {}
        self._errors: list[BaseException] = []

    @property
    def pids(self) -> list[int]:
        """Process ids by party id."""
        return [process.pid or 0 for process in self._processes]

    @property
    def outcomes(self) -> list[Any]:
        """By party id what it returned, or the error that it ended with; None while it runs."""
        return [self._answers.get(me, (True, None))[1] for me in range(self.n)]

    def start(self) -> Self:
        """Start the processes and tell them each other's addresses."""
        config = replace(self._template, tls=self._certificates())
        spawn = multiprocessing.get_context("spawn")
        try:
            for me in range(self.n):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(
                    target=_serve_party,
                    args=(theirs, config, me, self._target, self._arguments[me]),
                    name=f"party-{me}",
                )
                with nullcontext() if self._import_main else _without_main_module():
                    process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
            self._introduce(config.connect_timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self, timeout: float | None = None) -> list[Any]:
        """Wait for all parties; their results by party id.

        Raises:
            The root cause, if parties raised: the first error that was not caused by another party's.
            TimeoutError: parties still ran after ``timeout`` seconds; they are killed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while len(self._answers) < self.n:
                pending = {self._pipes[me]: me for me in range(self.n) if me not in self._answers}
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                ready = wait(list(pending), left)
                if not ready:
                    raise TimeoutError(f"parties {sorted(pending.values())} still run after {timeout:g} s")
                for pipe in ready:
                    self._collect(pending[pipe])  # type: ignore[index]
        finally:
            self.stop()
        if self._errors:
            raise root_cause(self._errors)
        return self.outcomes

    def run(self, timeout: float | None = None) -> list[Any]:
        """:meth:`start` and :meth:`wait`."""
        return self.start().wait(timeout)

    def stop(self) -> None:
        """End what still runs, by its own process id, and release everything."""
        finished = len(self._answers) == self.n
        deadline = time.monotonic() + (_GRACE if finished else 0.0)
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0.0))
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _certificates(self) -> TLS | None:
        if isinstance(self._tls, TLS):
            return self._tls
        if not self._tls:
            return None
        from tradeoff.engines.transport.keys import make_keys

        self._folder = tempfile.TemporaryDirectory(prefix="tradeoff-keys-")
        make_keys(self._folder.name, self.n, days=1)
        return TLS.folder(self._folder.name)

    def _introduce(self, timeout: float) -> None:
        addresses = []
        for me, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout):
                raise RemoteFailure(f"party {me} did not start within {timeout:g} s")
            try:
                addresses.append(pipe.recv())
            except EOFError:
                raise self._death(me) from None
        for me, pipe in enumerate(self._pipes):
            try:
                pipe.send(addresses)
            except BrokenPipeError:
                raise self._death(me) from None

    def _collect(self, me: int) -> None:
        try:
            succeeded, value, trace = self._pipes[me].recv()
        except (EOFError, ConnectionResetError):
            succeeded, value, trace = False, self._death(me), ""
        if not succeeded:
            if trace:
                value.__cause__ = RemoteTraceback(trace)
            self._errors.append(value)
        self._answers[me] = (succeeded, value)

    def _death(self, me: int) -> RemoteFailure:
        process = self._processes[me]
        process.join(_GRACE)
        code = process.exitcode
        if code is not None and code < 0:
            return RemoteFailure(f"party {me} was killed by {signal.Signals(-code).name}")
        return RemoteFailure(f"party {me} ended without an answer (exit status {code})")


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the caller's script from ``spawn``: it may have no main guard, and may import much."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve_party(
    pipe: Connection, config: Config, me: int, target: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """The main function of a party's process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = listen("127.0.0.1:0")
    pipe.send(f"127.0.0.1:{listener.getsockname()[1]}")
    config = replace(config, parties=tuple(pipe.recv()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureWarning)  # free ports of one host, chosen just now
            net = Party(config, me, listener=listener)
        with net:
            answer = (True, target(net, *arguments), "")
    except BaseException as error:  # noqa: BLE001 - carried to the launcher, who raises it
        answer = (False, _portable(error), traceback.format_exc())
    finally:
        listener.close()
    pipe.send(answer)
    pipe.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The error itself if it survives pickling, else its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes that the same line made
    except Exception:  # noqa: BLE001 - any class may refuse, in any way
        return RemoteFailure(f"{type(error).__name__}: {error}")
    return error
