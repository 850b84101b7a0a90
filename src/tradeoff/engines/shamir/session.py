"""Sessions: servers, a dealer and a data owner, started here as processes (or, for tests, threads).

For parties on hosts of their own see :mod:`tradeoff.engines.shamir.hosts`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import EngineError
from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.client import Client
from tradeoff.engines.shamir.offline import learn_batch, run_dealer
from tradeoff.engines.shamir.options import MASKED_LEAK, TRUNCATION_BITS
from tradeoff.engines.shamir.program import Program, load_shares, require_batch, save_shares
from tradeoff.engines.shamir.report import Metered, SharedReport
from tradeoff.engines.shamir.server import Server
from tradeoff.engines.transport import Endpoint, LinkShaper, SimNet, profile
from tradeoff.engines.transport.crew import Crew, Launch, keep_freed_memory, local_launch, simulated_launch

_log = logging.getLogger(__name__)


class Session:
    """Runs programs among servers; made by :meth:`local` or :meth:`simulated`.

    Parties are started for the first inference of a program and batch size, and kept for the next ones: the
    weights are shared once. Use it as a context manager, or call :meth:`close`.

    Example::

        with Session.local(net="wan") as session:
            logits = session.infer(program, images)
            print(session.report())
    """

    def __init__(self, launch: Callable[[int], Launch], *, link: str, emulator: str) -> None:
        self._launch = launch
        self._link = link
        self._emulator = emulator
        self._running: _Running | None = None
        self._warned = False
        self._reports: dict[int, SharedReport] = {}

    @classmethod
    def local(
        cls, net: str | LinkShaper = "loopback", *, tls: bool = False, recv_timeout: float = 60.0
    ) -> Session:
        """Parties as processes of this host, over TCP.

        Args:
            net: emulated link between each two: ``loopback``, ``lan``, ``wan`` or a :class:`LinkShaper`.
            tls: also between processes of this host.
            recv_timeout: seconds after which a silent server is given up.
        """
        link = profile(net)
        emulator = "none" if link.start() is None else "in-process shaper"

        def launch(servers: int) -> Launch:
            return local_launch(link, computing=servers, tls=tls, recv_timeout=recv_timeout)

        return cls(launch, link=link.name, emulator=emulator)

    @classmethod
    def simulated(
        cls,
        net: str | LinkShaper = "loopback",
        *,
        recv_timeout: float = 60.0,
        watch: Callable[[SimNet], None] | None = None,
    ) -> Session:
        """Parties as threads of this process: the same protocols and counts, but no isolation and no true
        timing.

        Args:
            watch: called with every net before it runs, for tests that look at its traffic.
        """
        link = profile(net)

        def launch(servers: int) -> Launch:
            return simulated_launch(link, recv_timeout=recv_timeout, watch=watch)

        return cls(launch, link=link.name, emulator="threads of one process")

    def infer(self, program: Program, x: NDArray[Any], *, batch: int | None = None) -> NDArray[Any]:
        """Run a network on inputs.

        Args:
            program: with weights.
            x: inputs (images, *input_shape).
            batch: images an inference; all at once by default. The last batch is filled up with zeros.

        Returns:
            float32 logits (images, classes), or int64 labels (images,).

        Raises:
            ValueError, FixedPointOverflow: the inputs do not fit.
            InconsistentShares: somebody cheated, and the program's security mode notices.
            PeerLost, PeerTimeout, RemoteFailure, ...: the session failed; it is closed.
        """
        x = program.plan.check_input(x)
        field.encode(x, program.options.frac_bits, TRUNCATION_BITS, name="input")
        size = len(x) if batch is None else require_batch(batch)
        running = self._prepared(program, size)
        client = program.options.client
        results = []
        reports: dict[int, SharedReport] = {}
        for start in range(0, len(x), size):
            part = x[start : start + size]
            filled = np.zeros((size, *x.shape[1:]))
            filled[: len(part)] = part
            answers = running.infer(filled)
            results.append(answers[client][0][: len(part)])
            for party, (_, report) in answers.items():
                labeled = replace(report, link=self._link, emulator=self._emulator)
                reports[party] = reports[party] + labeled if party in reports else labeled
        self._reports = reports
        joined = np.concatenate(results)
        is_label = program.steps[-1].frac == 0 and joined.ndim == 1
        return joined.astype(np.int64 if is_label else np.float32)

    def report(self, party: int | None = None) -> SharedReport:
        """The cost of the last :meth:`infer`, operator by operator, as one party saw it.

        Args:
            party: a server, by default the first that is there; or the data owner (``options.client``).

        Raises:
            EngineError: nothing was inferred, or the party was lost.
        """
        if not self._reports:
            raise EngineError("no inference has been run in this session")
        party = min(self._reports) if party is None else party
        if party not in self._reports:
            raise EngineError(f"there is no report of party {party}")
        return self._reports[party]

    @property
    def pids(self) -> list[int]:
        """Process ids of the running parties: servers, dealer, data owner."""
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

    def _prepared(self, program: Program, batch: int) -> _Running:
        """The running parties of a program; others are ended."""
        if self._running is None or not self._running.serves(program, batch):
            self.close()
            if program.options.nonlinear == "masked" and not self._warned:
                _log.warning(MASKED_LEAK)
                self._warned = True
            self._running = _Running(program, batch, self._launch(program.options.servers))
        return self._running


class _Running:
    """The parties of one program."""

    def __init__(self, program: Program, batch: int, launch: Launch) -> None:
        self._program = program
        self._batch = batch
        self._folder = tempfile.TemporaryDirectory(prefix="tradeoff-session-")
        try:
            options, named = program.options, program.shared()
            folders = [Path(self._folder.name) / str(party) for party in range(options.parties)]
            for folder in folders:
                named.public().save(folder)
            for folder, shares in zip(folders, named.share_weights(), strict=False):
                save_shares(folder, shares)
            commanded = (*options.scheme.servers, options.client)
            arguments = [(folder, batch) for folder in folders]
            self.crew = Crew(launch, serve_commands, arguments, commanded, named.digest)
        except BaseException:
            self._folder.cleanup()
            raise

    def serves(self, program: Program, batch: int) -> bool:
        """Whether these parties can run it: the same network, weights included, options and batch size."""
        same = program.plan is self._program.plan and program.options == self._program.options
        return same and batch == self._batch and not self.crew.failed

    def infer(self, x: NDArray[np.float64]) -> dict[int, tuple[Any, SharedReport]]:
        """(result, report) by party; the result is the data owner's."""
        options = self._program.options
        commands: dict[int, Any] = dict.fromkeys(options.scheme.servers, "infer")
        optional = frozenset(options.scheme.servers) if options.security == "robust" else frozenset()
        return self.crew.ask({**commands, options.client: x}, optional=optional)

    def close(self) -> None:
        try:
            self.crew.close()
        finally:
            self._folder.cleanup()


def serve_commands(net: Endpoint, pipe: Connection | None, folder: Path, batch: int) -> None:
    """One party of a local session: the dealer deals, the others do what they are told until the end."""
    keep_freed_memory()
    program = Program.load(folder)
    if net.me == program.options.dealer:
        run_dealer(net, program)
        return
    assert pipe is not None
    with pipe:
        if net.me == program.options.client:
            client = Client(net, program, batch)
            obey(pipe, Metered(client))
            client.finish()
        else:
            server = Server(net, program, batch, load_shares(folder, program))
            server.prepare()
            learn_batch(server.peers)
            obey(pipe, Metered(server))


def obey(pipe: Connection, party: Metered) -> None:
    """Run inferences as they are asked for, until the pipe ends."""
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        pipe.send(party.infer(None if isinstance(command, str) else command))
