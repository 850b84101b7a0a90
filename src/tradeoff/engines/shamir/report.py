"""Reports of inferences, as the transport counted them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tradeoff.engines.shamir.client import Client
from tradeoff.engines.shamir.program import VERIFICATION, Program
from tradeoff.engines.shamir.server import SETUP, Server
from tradeoff.engines.transport import Report, Row, Stats, measured_row


@dataclass(frozen=True)
class SharedReport(Report):
    """The cost of one inference (or of several) at one party, and what became of the servers.

    Attributes:
        verified: whether wrong shares would have been noticed: not in ``semi-honest`` runs, nor in a
            ``robust`` one that went on with too few servers.
        lost: servers that were gone at its end; corrected: those whose wrong shares were corrected.
    """

    verified: bool = True
    lost: tuple[int, ...] = ()
    corrected: tuple[int, ...] = ()

    def __add__(self, other: Report) -> SharedReport:
        assert isinstance(other, SharedReport)
        total = super().__add__(other)
        return _with_servers(
            total,
            self.verified and other.verified,
            {*self.lost, *other.lost},
            {*self.corrected, *other.corrected},
        )

    def to_json(self) -> dict[str, Any]:
        servers = {"lost": list(self.lost), "corrected": list(self.corrected)}
        return {**super().to_json(), "verified": self.verified, **servers}

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.lost:
            lines.append(f"went on without server {', '.join(map(str, self.lost))}")
        if self.corrected:
            lines.append(f"corrected wrong shares of server {', '.join(map(str, self.corrected))}")
        if not self.verified:
            lines.append("not verified: wrong shares would not have been noticed")
        return "\n".join(lines)


class Metered:
    """A server or the data owner, whose inferences come with a report."""

    def __init__(self, party: Server | Client) -> None:
        self._party = party
        self._net = party.net
        self._first = True

    def infer(self, x: Any = None) -> tuple[Any, SharedReport]:
        """One inference; the session's setup is in the report of the first."""
        party, program = self._party, self._party.program
        setup = Row(SETUP, SETUP)
        if self._first:
            setup = self._row(self._net.stats(), SETUP, SETUP)
            self._first = False
        before = self._net.stats()
        party.clock.seconds.clear()
        result = None
        if isinstance(party, Client):
            result = party.infer(x)
        else:
            party.infer()
        stats = self._net.stats() - before
        kinds = _kinds(program, party.batch)
        rows = tuple(self._row(stats, operator, kind) for operator, kind in kinds)
        header = stats.total(phase="online")
        report = Report(
            rows,
            setup,
            self._net.me,
            party.batch,
            header_bytes=header.header_sent + header.header_received,
        )
        return result, _with_servers(report, party.verified, set(party.peers.lost), party.corrected)

    def _row(self, stats: Stats, operator: str, kind: str) -> Row:
        options = self._party.options
        peers = [party for party in (*options.scheme.servers, options.client) if party != self._net.me]
        return measured_row(
            stats, self._party.clock.seconds, operator, kind, peers=peers, dealer=options.dealer
        )


def _kinds(program: Program, batch: int) -> list[tuple[str, str]]:
    """(operator, kind) of every row."""
    checked = [(VERIFICATION, VERIFICATION)] if program.checkpoints(batch) else []
    return [(step.name, step.kind) for step in program.steps] + checked


def _with_servers(report: Report, verified: bool, lost: set[int], corrected: set[int]) -> SharedReport:
    fields = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    return SharedReport(
        **fields, verified=verified, lost=tuple(sorted(lost)), corrected=tuple(sorted(corrected))
    )


def of_hosts(report: SharedReport) -> SharedReport:
    """A report that says that its times are those of the network between the hosts."""
    return replace(report, link="network", emulator="not emulated")
