"""What an inference will cost, from the same description of its messages that executes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from tradeoff.engines.transport import LinkShaper, Report, Row, profile
from tradeoff.engines.transport.prg import SEED_BYTES
from tradeoff.engines.two_party.ot import offline_traffic, setup_traffic
from tradeoff.engines.two_party.program import Program, require_batch
from tradeoff.engines.two_party.protocol import Traffic, traffic
from tradeoff.engines.two_party.steps import Reveal, Step


@dataclass(frozen=True)
class Cost(Report):
    """A predicted :class:`Report` (its times are zero) with the time that the link alone will take.

    Attributes:
        link_seconds: rounds and bytes on the link, no computing: k rounds cost k one-way delays.
    """

    link_seconds: float = 0.0


def cost(
    program: Program,
    batch: int = 1,
    net: str | LinkShaper = "loopback",
    *,
    party: int = 1,
    offline: Literal["dealer", "ot"] = "dealer",
) -> Cost:
    """Predict rounds and bytes of one inference, to the byte, without running it.

    Args:
        batch: images an inference.
        net: link profile for ``link_seconds``.
        party: whose point of view: 0 (model owner) or 1 (data owner).
        offline: who makes the correlated randomness: a dealer (live or as a pool), or both parties by
            oblivious transfer.
    """
    if party not in (0, 1):
        raise ValueError(f"the party is 0 or 1, not {party}")
    if offline not in ("dealer", "ot"):
        raise ValueError(f"the offline phase is predicted for dealer or ot, not {offline!r}")
    require_batch(batch)
    rows = tuple(_row(program, step, batch, party, offline) for step in program.steps)
    setup = _setup(program, party, offline)
    link = profile(net)
    total = Report(rows, setup).total
    seconds = link.seconds(total.rounds, max(total.sent, total.received))
    return Cost(rows, setup, party, batch, link=link.name, link_seconds=seconds)


def _setup(program: Program, party: int, offline: str) -> Row:
    if offline == "ot":
        return _with_offline(Row("setup", "setup", 1, SEED_BYTES, SEED_BYTES), setup_traffic(program, party))
    static = sum(
        prod(shape) * program.ring.nbytes for step in program.steps for shape in step.static_shapes.values()
    )
    masked = (static, 0) if party == 0 else (0, static)
    return Row("setup", "setup", 1, SEED_BYTES + masked[0], SEED_BYTES + masked[1])


def _with_offline(row: Row, counted: Traffic) -> Row:
    return replace(
        row,
        offline=counted.offline,
        offline_sent=counted.offline_sent,
        offline_rounds=counted.offline_rounds,
    )


def _row(program: Program, step: Step, batch: int, party: int, offline: str) -> Row:
    if isinstance(step, Reveal):
        payload = step.payload(batch)
        receivers = {"client": (1,), "server": (0,), "both": (0, 1)}[program.options.reveal_to]
        sent = payload if 1 - party in receivers else 0
        return Row(step.name, step.kind, 1, sent, payload if party in receivers else 0)
    groups = step.groups(batch)
    counted = traffic(groups, party)
    row = Row(step.name, step.kind, counted.rounds, counted.sent, counted.received)
    if offline == "ot":
        return _with_offline(row, offline_traffic(groups, party))
    return replace(row, offline=counted.offline if party == 1 else 0)
