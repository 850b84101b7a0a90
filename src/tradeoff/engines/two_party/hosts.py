"""The three roles on hosts of their own: the model owner serves, data owners query, a dealer deals.

Each role is one process with the same ``cluster.toml`` (:class:`tradeoff.engines.transport.Config`): party 0
is the model owner, party 1 the data owner, party 2 the dealer, or nobody if the offline phase comes from pool
files or the two parties make it themselves by oblivious transfer. Links are TLS with mutual certificates; the
transport refuses to talk in the clear to an address that is not loopback.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import TradeoffError
from tradeoff.engines.transport import Config, ConfigError, Party, PeerError, PortInUse, Report
from tradeoff.engines.two_party.errors import DealerUnavailable, OfflineExhausted
from tradeoff.engines.two_party.offline import DEALER, Source, dealt_source, run_dealer
from tradeoff.engines.two_party.ot import ObliviousSource
from tradeoff.engines.two_party.party import CLIENT, SERVER, Evaluator, announce_batch, learn_batch
from tradeoff.engines.two_party.pool import check_pool, open_pool
from tradeoff.engines.two_party.program import Program
from tradeoff.engines.two_party.session import Metered

IDLE_SECONDS = 3600.0
"""How long a server or dealer waits for the others before it listens anew."""

Live = Literal["dealer", "ot"]
"""Who makes correlated randomness where there is no pool."""

_FATAL = (ConfigError, PortInUse, OfflineExhausted)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One query, as the model owner may log it: no value of anybody.

    Attributes:
        images: in the query's batch.
        error: class and message of what ended it, or None.
    """

    images: int
    seconds: float
    report: Report | None
    error: str | None


def serve_queries(
    program: Program,
    config: Config,
    *,
    pool: Path | None = None,
    offline: Live = "dealer",
    queries: int | None = None,
    max_batch: int = 256,
    on_query: Callable[[Served], None] = lambda served: None,
) -> int:
    """Answer queries one after another, as the model owner; a query that fails does not end the service.

    Args:
        program: with weights.
        pool: folder of this party's pool.
        offline: without a pool, the configured dealer is waited for, or there is none (``ot``).
        queries: how many to answer; without end if None.
        max_batch: a query with more images is refused.
        on_query: told of every query.

    Returns:
        how many were answered.

    Raises:
        ConfigError, PortInUse: the service cannot start.
        OfflineExhausted: the pool is used up.
        FileNotFoundError, PoolMismatch, PoolReused: the pool cannot serve this program.
    """
    answered = 0
    waiting = _configured(replace(config, connect_timeout=IDLE_SECONDS), program, pool, offline)
    while queries is None or answered < queries:
        if pool is not None:
            check_pool(pool, SERVER, program)
        served = _serve_one(program, waiting, pool, offline, max_batch)
        if served is not None:
            on_query(served)
            answered += served.error is None
    return answered


def _serve_one(
    program: Program, config: Config, pool: Path | None, offline: Live, max_batch: int
) -> Served | None:
    began, batch = time.perf_counter(), 0
    try:
        with Party(config, SERVER) as net:
            began = time.perf_counter()
            batch = learn_batch(net, max_batch)
            evaluator = Evaluator(net, program, batch, _source(net, program, batch, pool, offline))
            evaluator.prepare()
            _, report = Metered(evaluator).infer(None)
            evaluator.finish()
        return Served(batch, time.perf_counter() - began, _of_hosts(report), None)
    except _FATAL:
        raise
    except (TradeoffError, ValueError) as error:
        if isinstance(error, PeerError) and not batch:
            _log.info("nobody came, or left before asking: %s", error)
            return None
        return Served(batch, time.perf_counter() - began, None, f"{type(error).__name__}: {error}")


def query(
    program: Program,
    config: Config,
    x: NDArray[Any],
    *,
    pool: Path | None = None,
    offline: Live = "dealer",
) -> tuple[NDArray[np.float64] | None, Report]:
    """Ask the model owner about inputs, as the data owner.

    Args:
        program: the public view.
        x: inputs (images, *input_shape), one batch.
        pool: folder of this party's pool.
        offline: without a pool, the configured dealer must be there, or there is none (``ot``).

    Returns:
        the result, if it is revealed to the data owner, and what it cost.

    Raises:
        DealerUnavailable: before anything of the inputs is shared.
        PlanMismatch: the model owner runs another program.
        ValueError, FixedPointOverflow: the inputs do not fit.
    """
    x = program.check_input(x)
    program.ring.encode(x, name="input")
    configured = _configured(config, program, pool, offline)
    if pool is not None:
        check_pool(pool, CLIENT, program, len(x))
    with _connect(configured) as net:
        announce_batch(net, len(x), dealer=net.n > DEALER)
        evaluator = Evaluator(net, program, len(x), _source(net, program, len(x), pool, offline))
        evaluator.prepare()
        result, report = Metered(evaluator).infer(x)
        evaluator.finish()
        return result, _of_hosts(report)


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
    waiting = _configured(replace(config, connect_timeout=IDLE_SECONDS), program, None, "dealer")
    done = itertools.count()
    while sessions is None or next(done) < sessions:
        try:
            with Party(waiting, DEALER) as net:
                on_session(run_dealer(net, program, max_batch=max_batch), None)
        except _FATAL:
            raise
        except (TradeoffError, ValueError) as error:
            on_session(0, f"{type(error).__name__}: {error}")


def _configured(config: Config, program: Program, pool: Path | None, offline: Live) -> Config:
    """The session's configuration: three parties with a dealer, else two, who agree on the offline phase."""
    if pool is not None and offline == "ot":
        raise ConfigError("a pool is a dealer's: with oblivious transfer there is none")
    if offline == "ot":
        return replace(config, parties=config.parties[:2], program=f"{program.digest} by oblivious transfer")
    if pool is not None:
        config = replace(config, parties=config.parties[:2])
    elif config.n != 3:
        raise ConfigError(f"a session with a dealer has three parties, not {config.n}; or give a pool")
    return replace(config, program=program.digest)


def _connect(config: Config) -> Party:
    try:
        return Party(config, CLIENT)
    except PeerError as error:
        if error.peer == DEALER:
            raise DealerUnavailable(
                f"the dealer is not there ({error}); nothing of the inputs has been shared"
            ) from error
        raise


def _of_hosts(report: Report) -> Report:
    """A report that says that its times are those of the network between the hosts."""
    return replace(report, link="network", emulator="not emulated")


def _source(
    net: Party, program: Program, batch: int, pool: Path | None, offline: Live
) -> Source | ObliviousSource:
    if offline == "ot":
        return ObliviousSource(net, program)
    return dealt_source(net) if pool is None else open_pool(net, program, batch, pool)
