"""The roles on hosts of their own: servers compute, a dealer deals, data owners query.

Each role is one process with the same ``cluster.toml`` (:class:`tradeoff.engines.transport.Config`). Parties
0 to n - 1 are the servers, party n is the dealer, party n + 1 the data owner. Links are TLS with mutual
certificates; the transport refuses to talk in the clear to an address that is not loopback.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import TradeoffError
from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.client import Client
from tradeoff.engines.shamir.errors import DealerUnavailable
from tradeoff.engines.shamir.field import Elements
from tradeoff.engines.shamir.offline import learn_batch, run_dealer
from tradeoff.engines.shamir.options import MASKED_LEAK, TRUNCATION_BITS
from tradeoff.engines.shamir.program import Program
from tradeoff.engines.shamir.report import Metered, SharedReport, of_hosts
from tradeoff.engines.shamir.server import Server
from tradeoff.engines.transport import Config, ConfigError, Party, PeerError, PortInUse

IDLE_SECONDS = 3600.0
"""How long a server or dealer waits for the others before it listens anew."""

_FATAL = (ConfigError, PortInUse)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One query, as a server may log it: no value of anybody.

    Attributes:
        images: in the query's batch.
        error: class and message of what ended it, or None.
    """

    images: int
    seconds: float
    report: SharedReport | None
    error: str | None


def serve_queries(
    program: Program,
    shares: Mapping[tuple[str, str], Elements],
    config: Config,
    server: int,
    *,
    queries: int | None = None,
    max_batch: int = 256,
    on_query: Callable[[Served], None] = lambda served: None,
) -> int:
    """Compute for queries one after another, as a server; one that fails does not end the service.

    Args:
        program: the public view.
        shares: this server's, of the weights (:func:`tradeoff.engines.shamir.program.load_shares`).
        server: its id.
        queries: how many to answer; without end if None.
        max_batch: a query with more images is refused.
        on_query: told of every query.

    Returns:
        how many were answered.

    Raises:
        ConfigError, PortInUse: the service cannot start.
    """
    if server not in program.options.scheme.servers:
        raise ConfigError(f"servers are 0 to {program.options.servers - 1}, not {server}")
    waiting = configured(replace(config, connect_timeout=IDLE_SECONDS), program)
    answered = 0
    while queries is None or answered < queries:
        served = _serve_one(program, shares, waiting, server, max_batch)
        if served is not None:
            on_query(served)
            answered += served.error is None
    return answered


def _serve_one(
    program: Program,
    shares: Mapping[tuple[str, str], Elements],
    config: Config,
    me: int,
    max_batch: int,
) -> Served | None:
    began, batch = time.perf_counter(), 0
    try:
        with Party(config, me) as net:
            began = time.perf_counter()
            server = Server(net, program, 0, shares)
            server.prepare()
            server.batch = batch = learn_batch(server.peers, max_batch)
            _, report = Metered(server).infer()
        return Served(batch, time.perf_counter() - began, of_hosts(report), None)
    except _FATAL:
        raise
    except (TradeoffError, ValueError) as error:
        if isinstance(error, PeerError) and not batch:
            _log.info("nobody came, or left before asking: %s", error)
            return None
        return Served(batch, time.perf_counter() - began, None, f"{type(error).__name__}: {error}")


def query(program: Program, config: Config, x: NDArray[Any]) -> tuple[NDArray[np.float64], SharedReport]:
    """Ask the servers about inputs, as the data owner.

    Args:
        program: the public view.
        x: inputs (images, *input_shape), one batch.

    Returns:
        the result, and what it cost this party.

    Raises:
        DealerUnavailable: before anything of the inputs is shared.
        PlanMismatch: another party runs another program, or has shares of another sharing of its weights.
        InconsistentShares, PeerAborted: somebody cheated.
        ValueError, FixedPointOverflow: the inputs do not fit.
    """
    x = program.plan.check_input(x)
    field.encode(x, program.options.frac_bits, TRUNCATION_BITS, name="input")
    if program.options.nonlinear == "masked":
        _log.warning(MASKED_LEAK)
    with _connect(configured(config, program), program) as net:
        client = Client(net, program, len(x))
        result, report = Metered(client).infer(x)
        client.finish()
        return result, of_hosts(report)


def deal_sessions(
    program: Program,
    config: Config,
    *,
    sessions: int | None = None,
    max_batch: int = 256,
    on_session: Callable[[int, str | None], None] = lambda dealt, error: None,
) -> None:
    """Deal for one session after another, as the dealer.

    Args:
        program: the public view.
        sessions: how many; without end if None.
        max_batch: a session with more images is refused.
        on_session: told how many inferences a session had, and what ended it early.
    """
    waiting = configured(replace(config, connect_timeout=IDLE_SECONDS), program)
    done = itertools.count()
    while sessions is None or next(done) < sessions:
        try:
            with Party(waiting, program.options.dealer) as net:
                on_session(run_dealer(net, program, max_batch=max_batch), None)
        except _FATAL:
            raise
        except (TradeoffError, ValueError) as error:
            on_session(0, f"{type(error).__name__}: {error}")


def configured(config: Config, program: Program) -> Config:
    """The session's configuration.

    Raises:
        ConfigError: it has another number of parties than the program.
    """
    options = program.options
    if config.n != options.parties:
        raise ConfigError(
            f"{options.servers} servers, a dealer and a data owner are {options.parties} parties; the "
            f"configuration has {config.n}"
        )
    return replace(config, program=program.digest)


def _connect(config: Config, program: Program) -> Party:
    try:
        return Party(config, program.options.client)
    except PeerError as error:
        if error.peer == program.options.dealer:
            raise DealerUnavailable(
                f"the dealer is not there ({error}); nothing of the inputs has been shared"
            ) from error
        raise
