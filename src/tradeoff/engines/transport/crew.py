"""Parties that are kept running and told what to do, one command after another."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from tradeoff.core import native
from tradeoff.core.errors import EngineError
from tradeoff.engines.transport.cluster import LocalCluster
from tradeoff.engines.transport.errors import PeerTimeout, RemoteFailure
from tradeoff.engines.transport.shaper import LinkShaper
from tradeoff.engines.transport.simnet import SimNet

GRACE = 10.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Parties(Protocol):
    """What :class:`LocalCluster` and simulated parties have in common."""

    @property
    def outcomes(self) -> list[Any]: ...

    def wait(self, timeout: float | None = None) -> list[Any]: ...

    def stop(self) -> None: ...


Launch = Callable[[int, Callable[..., Any], list[tuple[Any, ...]], str], Parties]
"""Starts ``target(net, *arguments[id])`` at every party: (n, target, arguments, program digest)."""


def local_launch(
    link: LinkShaper, *, computing: int, tls: bool = False, recv_timeout: float = 60.0
) -> Launch:
    """Parties as processes of this host, over TCP.

    Args:
        computing: how many of them compute at the same time and share the cores.
    """

    def launch(n: int, target: Callable[..., Any], arguments: list[tuple[Any, ...]], digest: str) -> Parties:
        return LocalCluster(
            n,
            partial(_beside_others, computing, target),
            per_party=arguments,
            tls=tls,
            link=link,
            recv_timeout=recv_timeout,
            program=digest,
            import_main=False,
        ).start()

    return launch


def simulated_launch(
    link: LinkShaper,
    *,
    recv_timeout: float = 60.0,
    watch: Callable[[SimNet], None] | None = None,
) -> Launch:
    """Parties as threads of this process.

    Args:
        watch: called with every net before it runs, for tests that look at its traffic.
    """

    def launch(n: int, target: Callable[..., Any], arguments: list[tuple[Any, ...]], digest: str) -> Parties:
        net = SimNet(n, link=link, recv_timeout=recv_timeout)
        if watch is not None:
            watch(net)
        return Threads(net, target, arguments)

    return launch


class Threads:
    """Parties of a :class:`SimNet` in the background."""

    def __init__(self, net: SimNet, target: Callable[..., Any], per_party: Sequence[Sequence[Any]]) -> None:
        self.net = net
        self._error: BaseException | None = None
        self._results: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(target, per_party), daemon=True)
        self._thread.start()

    def _run(self, target: Callable[..., Any], per_party: Sequence[Sequence[Any]]) -> None:
        try:
            self._results = self.net.run(target, per_party=per_party)
        except BaseException as error:  # noqa: BLE001 - carried to the caller of wait()
            self._error = error

    def wait(self, timeout: float | None = None) -> list[Any]:
        """Their results, or the root cause of their failure."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError("parties still run")
        if self._error is not None:
            raise self._error
        return self._results

    @property
    def outcomes(self) -> list[Any]:
        """What they returned."""
        return self._results

    def stop(self) -> None:
        """Wait for their end."""
        self._thread.join(GRACE)


class Crew:
    """Running parties and the pipes through which some of them get commands.

    Args:
        launch: from :func:`local_launch` or :func:`simulated_launch`.
        target: run at every party as ``target(net, pipe, *arguments[id])``; pipe is None at the parties that
            get no commands. It answers every command and returns when the pipe ends.
        arguments: by party.
        commanded: the parties that get commands.
        digest: of the program, which the parties compare.

    Attributes:
        parties: the launched ones; failed: whether one of them ended too early.
        gone: optional parties that ended, which nobody minds.
    """

    def __init__(
        self,
        launch: Launch,
        target: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        commanded: Sequence[int],
        digest: str,
    ) -> None:
        self.failed = False
        self.gone: set[int] = set()
        pairs = {party: Pipe() for party in commanded}
        self._pipes = {party: ours for party, (ours, _) in pairs.items()}
        theirs = {party: pair[1] for party, pair in pairs.items()}
        per_party = [(theirs.get(party), *own) for party, own in enumerate(arguments)]
        self.parties = launch(len(arguments), target, per_party, digest)
        if isinstance(self.parties, LocalCluster):
            for pipe in theirs.values():
                pipe.close()

    @property
    def pids(self) -> list[int]:
        """Process ids by party; empty for threads."""
        return self.parties.pids if isinstance(self.parties, LocalCluster) else []

    def ask(self, commands: Mapping[int, Any], *, optional: frozenset[int] = frozenset()) -> dict[int, Any]:
        """Give parties a command each and wait for their answers.

        Args:
            optional: parties that may be gone; they are left out of the answers then.

        Raises:
            The root cause if another one failed.
        """
        answers: dict[int, Any] = {}
        waiting = set()
        for party, command in commands.items():
            try:
                self._pipes[party].send(command)
                waiting.add(party)
            except OSError:
                self._missing(party, optional)
        while waiting:
            pending = {self._pipes[party]: party for party in waiting}
            for pipe in wait(list(pending)):
                assert isinstance(pipe, Connection)
                party = pending[pipe]
                waiting.discard(party)
                try:
                    answers[party] = pipe.recv()
                except (EOFError, OSError):
                    self._missing(party, optional)
        return answers

    def _missing(self, party: int, optional: frozenset[int]) -> None:
        if party in optional:
            self.gone.add(party)
            return
        self.failed = True
        self._raise_cause()
        raise EngineError("a party ended before it answered")

    def _raise_cause(self) -> None:
        """Wait for the parties, which have deadlines of their own, and raise what went wrong first."""
        try:
            self.parties.wait(GRACE)
        except TimeoutError:  # a party that is stopped says nothing: the others know
            errors = [outcome for outcome in self.parties.outcomes if isinstance(outcome, Exception)]
            if errors:
                raise min(errors, key=lambda error: not isinstance(error, PeerTimeout)) from None
            raise

    def close(self) -> None:
        """End the parties."""
        for pipe in self._pipes.values():
            pipe.close()
        try:
            if not self.failed:
                self.parties.wait(GRACE)
        except RemoteFailure:
            if not self.gone:
                raise
        finally:
            self.parties.stop()


def keep_freed_memory() -> None:
    """Let a party's process keep the memory of one tensor for the next; faulting it in again costs a third.

    Where the C library is not glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    mallopt(_M_MMAP_THRESHOLD, 1 << 25)


def _beside_others(computing: int, target: Callable[..., Any], *arguments: Any) -> None:
    """Be one of several parties that compute at the same time on this host: take a part of its cores."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, native.threads() // computing))
    target(*arguments)
