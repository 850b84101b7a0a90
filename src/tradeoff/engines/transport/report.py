"""What an inference among parties cost, operator by operator: counted by the transport, timed here.

An engine runs every operator inside a scope of the operator's name (:meth:`Endpoint.scope`), marks its
rounds and measures it with a :class:`Clock`; :func:`measured_row` puts the three together. ``compute`` is the
time of an operator less its waiting for messages; sums over operators are the totals.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from tradeoff.engines.transport.accounting import OFFLINE, ONLINE, Stats, Traffic


class Clock:
    """Wall-clock seconds by operator."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


@dataclass(frozen=True)
class Row:
    """One operator at one party; bytes are payload.

    Attributes:
        rounds: of the online phase.
        sent, received: bytes to and from the other computing parties.
        offline: bytes of the offline phase that this party received; ``offline_sent``: that it sent.
        offline_rounds: of the offline phase.
        compute, wait, total: seconds; ``wait_offline`` is the part of ``wait`` spent on the offline phase.
    """

    operator: str
    kind: str
    rounds: int = 0
    sent: int = 0
    received: int = 0
    offline: int = 0
    compute: float = 0.0
    wait: float = 0.0
    wait_offline: float = 0.0
    total: float = 0.0
    offline_sent: int = 0
    offline_rounds: int = 0

    def __add__(self, other: Row) -> Row:
        numbers = [f.name for f in fields(Row) if f.name not in ("operator", "kind")]
        return Row(
            self.operator, self.kind, **{name: getattr(self, name) + getattr(other, name) for name in numbers}
        )


@dataclass(frozen=True)
class Report:
    """The cost of one inference (or of several, added up), as one party saw it.

    Attributes:
        rows: operators in order, without the setup.
        setup: what is done once a session: common seed, masked weights.
        party: whose point of view this is.
        header_bytes: frame headers that this party sent and received, not in the rows.
        link: name of the emulated link, and ``emulator``: how it was emulated.
        secure: False if the offline phase was the insecure one of tests.
    """

    rows: tuple[Row, ...]
    setup: Row
    party: int = 1
    batch: int = 1
    inferences: int = 1
    header_bytes: int = 0
    link: str = "loopback"
    emulator: str = "none"
    secure: bool = True

    @property
    def total(self) -> Row:
        """The sum of the rows, setup apart."""
        result = Row("total", "")
        for row in self.rows:
            result += row
        return result

    def row(self, operator: str) -> Row:
        """The row of an operator.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.operator == operator:
                return row
        raise KeyError(operator)

    def by_kind(self) -> dict[str, Row]:
        """Sums over operators of one kind (relu, linear, ...)."""
        sums: dict[str, Row] = {}
        for row in self.rows:
            sums[row.kind] = sums.get(row.kind, Row(row.kind, row.kind)) + row
        return sums

    def __add__(self, other: Report) -> Report:
        """Costs of two inferences of one program, operator by operator."""
        rows = tuple(mine + theirs for mine, theirs in zip(self.rows, other.rows, strict=True))
        return Report(
            rows,
            self.setup + other.setup,
            self.party,
            self.batch,
            self.inferences + other.inferences,
            self.header_bytes + other.header_bytes,
            self.link,
            self.emulator,
            self.secure and other.secure,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {
            "party": self.party,
            "batch": self.batch,
            "inferences": self.inferences,
            "link": self.link,
            "emulator": self.emulator,
            "secure": self.secure,
            "header_bytes": self.header_bytes,
            "setup": asdict(self.setup),
            "total": asdict(self.total),
            "operators": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Report:
        """Read :meth:`to_json`'s document."""
        scalars = {
            key: value for key, value in document.items() if key not in ("setup", "total", "operators")
        }
        return cls(tuple(Row(**row) for row in document["operators"]), Row(**document["setup"]), **scalars)

    def to_csv(self) -> str:
        """One line an operator, setup first, total last."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in (self.setup, *self.rows, self.total))
        return text.getvalue()

    def __str__(self) -> str:
        """A table."""
        header = (
            "operator",
            "kind",
            "rounds",
            "sent",
            "received",
            "offline",
            "compute s",
            "wait s",
            "total s",
        )
        rows = [r for r in (self.setup, *self.rows) if r.rounds or r.total >= 5e-4] + [self.total]
        cells = [
            (
                row.operator,
                row.kind,
                str(row.rounds),
                f"{row.sent:,}",
                f"{row.received:,}",
                f"{row.offline + row.offline_sent:,}",
                f"{row.compute:.3f}",
                f"{row.wait:.3f}",
                f"{row.total:.3f}",
            )
            for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        lines = [
            _line(header, widths),
            "  ".join("-" * width for width in widths),
            *(_line(c, widths) for c in cells),
        ]
        note = f"batch {self.batch}, {self.inferences} inference(s), link {self.link} ({self.emulator})"
        if not self.secure:
            note += "; NOT SECURE: the offline phase was made by a computing party"
        return "\n".join([*lines, note])

    def save(self, path: Any) -> None:
        """Write JSON, or CSV if the path ends so."""
        text = self.to_csv() if str(path).endswith(".csv") else json.dumps(self.to_json(), indent=2) + "\n"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = [
        cell.ljust(w) if i < 2 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(parts).rstrip()


def measured_row(
    stats: Stats,
    seconds: dict[str, float],
    operator: str,
    kind: str,
    *,
    peers: Collection[int],
    dealer: int | None = None,
) -> Row:
    """The row of one operator from what the transport counted in its scope.

    Args:
        stats: of one inference: the difference of two snapshots.
        seconds: of the :class:`Clock`.
        peers: the other computing parties.
        dealer: who the offline material is from, if from anybody: a dealer, or a peer with whom it is made.
    """
    online = Traffic()
    for peer in peers:
        online += stats.total(peer=peer, phase=ONLINE, scope=operator)
    waited_offline = stats.total(phase=OFFLINE, scope=operator).wait_seconds
    offline = Traffic()
    if dealer is not None:
        offline = stats.total(peer=dealer, phase=OFFLINE, scope=operator)
    total = seconds.get(operator, 0.0)
    wait = online.wait_seconds + waited_offline
    return Row(
        operator,
        kind,
        stats.marked_rounds(scope=operator),
        online.payload_sent,
        online.payload_received,
        offline.payload_received,
        max(0.0, total - wait),
        wait,
        waited_offline,
        total,
        offline.payload_sent,
        stats.marked_rounds(OFFLINE, operator),
    )
