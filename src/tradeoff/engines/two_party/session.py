"""Sessions: two computing parties and a dealer, started here as processes (or, for tests, threads).

For parties on hosts of their own see :mod:`tradeoff.engines.two_party.commands`.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import EngineError
from tradeoff.engines.transport import (
    Endpoint,
    LinkShaper,
    Report,
    Row,
    SimNet,
    Stats,
    measured_row,
    profile,
)
from tradeoff.engines.transport.crew import Crew, Launch, keep_freed_memory, local_launch, simulated_launch
from tradeoff.engines.two_party.offline import DEALER, Source, dealt_source, insecure_source, run_dealer
from tradeoff.engines.two_party.ot import ObliviousSource
from tradeoff.engines.two_party.party import CLIENT, SERVER, SETUP, Evaluator, announce_batch, learn_batch
from tradeoff.engines.two_party.pool import open_pool
from tradeoff.engines.two_party.program import Program, Receiver, require_batch

Offline = Literal["dealer", "file", "ot", "insecure-local"]


class InsecureOffline(UserWarning):
    """A computing party makes the correlated randomness, so nothing is hidden from it."""


class Session:
    """Runs programs between two parties; made by :meth:`local` or :meth:`simulated`.

    Parties are started for the first inference of a program and batch size, and kept for the next ones: the
    masked weights are opened once. Use it as a context manager, or call :meth:`close`.

    Example::

        with Session.local(net="wan") as session:
            logits = session.infer(program, images)
            print(session.report())
    """

    def __init__(
        self,
        start: Launch,
        *,
        offline: Offline,
        pool: Path | None,
        link: str,
        emulator: str,
    ) -> None:
        if offline not in get_args(Offline):
            raise ValueError(f"offline is one of {', '.join(get_args(Offline))}, not {offline!r}")
        if (offline == "file") != (pool is not None):
            raise ValueError("a pool folder goes with offline='file'")
        if offline == "insecure-local":
            warnings.warn(
                "party 1 deals to itself: this is for tests and protects nothing",
                InsecureOffline,
                stacklevel=3,
            )
        self._start = start
        self._offline = offline
        self._pool = pool
        self._link = link
        self._emulator = emulator
        self._running: _Running | None = None
        self._reports: dict[int, Report] = {}

    @classmethod
    def local(
        cls,
        offline: Offline = "dealer",
        net: str | LinkShaper = "loopback",
        *,
        pool: Path | str | None = None,
        tls: bool = False,
        recv_timeout: float = 60.0,
    ) -> Session:
        """Parties as processes of this host, over TCP.

        Args:
            offline: ``dealer``: a third process; ``file``: a pool written before; ``ot``: no third party, by
                oblivious transfer; ``insecure-local``: for tests.
            net: emulated link: ``loopback``, ``lan``, ``wan``, ``pasnet`` or a :class:`LinkShaper`.
            pool: folder of the pool.
            tls: also between processes of this host.
            recv_timeout: seconds after which a silent peer is given up.
        """
        link = profile(net)
        start = local_launch(link, computing=2, tls=tls, recv_timeout=recv_timeout)
        emulator = "none" if link.start() is None else "in-process shaper"
        folder = None if pool is None else Path(pool)
        return cls(start, offline=offline, pool=folder, link=link.name, emulator=emulator)

    @classmethod
    def simulated(
        cls,
        offline: Offline = "dealer",
        net: str | LinkShaper = "loopback",
        *,
        pool: Path | str | None = None,
        recv_timeout: float = 60.0,
        watch: Callable[[SimNet], None] | None = None,
    ) -> Session:
        """Parties as threads of this process: the same protocols and counts, but no isolation and no true
        timing.

        Args:
            watch: called with every net before it runs, for tests that look at its traffic.
        """
        link = profile(net)
        start = simulated_launch(link, recv_timeout=recv_timeout, watch=watch)
        folder = None if pool is None else Path(pool)
        return cls(start, offline=offline, pool=folder, link=link.name, emulator="threads of one process")

    def infer(
        self,
        program: Program,
        x: NDArray[Any],
        *,
        reveal_to: Receiver = "client",
        output: Literal["logits", "argmax"] = "logits",
        batch: int | None = None,
    ) -> NDArray[Any]:
        """Run a network on inputs.

        Args:
            program: with weights.
            x: inputs (images, *input_shape).
            reveal_to: who gets the result; this call returns it whoever that is.
            output: ``logits``, or ``argmax``: nothing but the label is revealed.
            batch: images an inference; all at once by default. The last batch is filled up with zeros.

        Returns:
            float32 logits (images, classes), or int64 labels (images,).

        Raises:
            ValueError, FixedPointOverflow: the inputs do not fit.
            PeerLost, PeerTimeout, RemoteFailure, OfflineExhausted, ...: the session failed; it is closed.
        """
        program = program.with_options(reveal_to=reveal_to, output=output)
        x = program.check_input(x)
        program.ring.encode(x, name="input")
        size = len(x) if batch is None else require_batch(batch)
        running = self._prepared(program, size)
        reports: dict[int, Report] = {}
        results = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            filled = np.zeros((size, *x.shape[1:]))
            filled[: len(part)] = part
            answers = running.crew.ask({SERVER: ("infer", None), CLIENT: ("infer", filled)})
            result = answers[CLIENT][0] if reveal_to != "server" else answers[SERVER][0]
            results.append(result[: len(part)])
            for rank, (_, report) in answers.items():
                report = self._labeled(report)
                reports[rank] = reports[rank] + report if rank in reports else report
        self._reports = reports
        joined = np.concatenate(results)
        is_label = program.steps[-1].frac == 0 and joined.ndim == 1
        return joined.astype(np.int64 if is_label else np.float32)

    def prepare(
        self,
        program: Program,
        batch: int,
        *,
        reveal_to: Receiver = "client",
        output: Literal["logits", "argmax"] = "logits",
    ) -> float:
        """Do the offline phase of one more inference now; returns its seconds.

        The next :meth:`infer` with the same program, batch and options then runs with its material in memory.
        """
        program = program.with_options(reveal_to=reveal_to, output=output)
        running = self._prepared(program, require_batch(batch))
        began = time.perf_counter()
        running.crew.ask({SERVER: ("fetch", None), CLIENT: ("fetch", None)})
        return time.perf_counter() - began

    def report(self, party: int = CLIENT) -> Report:
        """The cost of the last :meth:`infer`, operator by operator, as one party saw it.

        Raises:
            EngineError: nothing was inferred.
        """
        if party not in self._reports:
            raise EngineError("no inference has been run in this session")
        return self._reports[party]

    @property
    def pids(self) -> list[int]:
        """Process ids of the running parties: model owner, data owner, dealer."""
        return self._running.crew.pids if self._running else []

    def close(self) -> None:
        """End the parties."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _labeled(self, report: Report) -> Report:
        secure = self._offline != "insecure-local"
        return replace(report, link=self._link, emulator=self._emulator, secure=secure)

    def _prepared(self, program: Program, batch: int) -> _Running:
        """The running parties of a program; others are ended."""
        if self._running is None or not self._running.serves(program, batch):
            self.close()
            self._running = _Running(program, batch, self._start, self._offline, self._pool)
        return self._running


class _Running:
    """The parties of one program."""

    def __init__(
        self, program: Program, batch: int, start: Launch, offline: Offline, pool: Path | None
    ) -> None:
        self._program = program
        self._batch = batch
        self._folder = tempfile.TemporaryDirectory(prefix="tradeoff-session-")
        folders = [Path(self._folder.name) / name for name in ("server", "client", "dealer")]
        program.save(folders[SERVER])
        for folder in folders[1:]:
            program.public().save(folder)
        arguments = [(folder, batch, offline, pool) for folder in folders]
        n = 3 if offline == "dealer" else 2
        try:
            self.crew = Crew(start, serve_commands, arguments[:n], (SERVER, CLIENT), program.digest)
        except BaseException:
            self._folder.cleanup()
            raise

    def serves(self, program: Program, batch: int) -> bool:
        """Whether these parties can run it: the same network, weights included, options and batch size."""
        same = program.plan is self._program.plan and program.options == self._program.options
        return same and batch == self._batch and not self.crew.failed

    def close(self) -> None:
        try:
            self.crew.close()
        finally:
            self._folder.cleanup()


def serve_commands(
    net: Endpoint, pipe: Connection | None, folder: Path, batch: int, offline: Offline, pool: Path | None
) -> None:
    """One party of a local session: the dealer deals, the others do what they are told until the end."""
    keep_freed_memory()
    program = Program.load(folder)
    if net.me == DEALER:
        run_dealer(net, program)
        return
    assert pipe is not None
    with pipe:
        if net.me == CLIENT:
            announce_batch(net, batch, dealer=offline == "dealer")
        else:
            learn_batch(net)
        evaluator = Evaluator(net, program, batch, make_source(net, program, batch, offline, pool))
        evaluator.prepare()
        metered = Metered(evaluator)
        while True:
            try:
                command, x = pipe.recv()
            except EOFError:
                break
            if command == "infer":
                pipe.send(metered.infer(x))
            else:
                evaluator.fetch()
                pipe.send(None)
        evaluator.finish()


def make_source(
    net: Endpoint, program: Program, batch: int, offline: Offline, pool: Path | None
) -> Source | ObliviousSource:
    """A party's source of correlated randomness."""
    if offline == "dealer":
        return dealt_source(net)
    if offline == "file":
        assert pool is not None
        return open_pool(net, program, batch, pool)
    if offline == "ot":
        return ObliviousSource(net, program)
    return insecure_source(net, program, batch)


def operator_row(stats: Stats, seconds: dict[str, float], operator: str, kind: str, party: int) -> Row:
    """What an operator cost a computing party."""
    dealer = DEALER if stats.total(peer=DEALER).messages_received else 1 - party
    return measured_row(stats, seconds, operator, kind, peers=(1 - party,), dealer=dealer)


class Metered:
    """An evaluator whose inferences come with a report."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._first = True

    def infer(self, x: NDArray[Any] | None) -> tuple[NDArray[np.float64] | None, Report]:
        """One inference; the session's setup is in the report of the first."""
        evaluator, net = self._evaluator, self._evaluator.net
        setup = Row(SETUP, SETUP)
        if self._first:
            setup = operator_row(net.stats(), evaluator.clock.seconds, SETUP, SETUP, net.me)
            self._first = False
        before = net.stats()
        evaluator.clock.seconds.clear()
        result = evaluator.infer(x)
        stats = net.stats() - before
        rows = tuple(
            operator_row(stats, evaluator.clock.seconds, step.name, step.kind, net.me)
            for step in evaluator.program.steps
        )
        headers = stats.total(peer=1 - net.me, phase="online")
        header_bytes = headers.header_sent + headers.header_received
        return result, Report(rows, setup, net.me, evaluator.batch, header_bytes=header_bytes)
