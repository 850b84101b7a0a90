"""The interface of latency models: seconds of a plan, operator by operator, in the parts that scale apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tradeoff.core.errors import TradeoffError
from tradeoff.nn.plan import Plan


class MissingLatency(TradeoffError, LookupError):
    """A latency model has no figure for an operator: it is never taken as zero."""

    def __init__(self, model: str, operator: str, kind: str) -> None:
        super().__init__(f"the latency model {model!r} has no figure for {operator} ({kind})")
        self.operator = operator
        self.kind = kind


@dataclass(frozen=True)
class OperatorLatency:
    """What one operator costs for one batch.

    Attributes:
        operator, kind: name in the plan, and what it is.
        compute: seconds of computing; grows with the size.
        transfer: seconds that the bytes take on the link; grows with the size.
        waiting: seconds of latencies of the link, whatever the size.
        rounds: messages that wait for one another.
        bytes: of the busier direction.
    """

    operator: str
    kind: str
    compute: float = 0.0
    transfer: float = 0.0
    waiting: float = 0.0
    rounds: int = 0
    bytes: float = 0.0

    @property
    def sized(self) -> float:
        """Seconds that grow with the number of elements."""
        return self.compute + self.transfer

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.transfer + self.waiting


@dataclass(frozen=True)
class NetworkLatency:
    """The operators of a network, one after the other.

    Attributes:
        model: name of the latency model.
        rows: one an operator, those without cost included.
    """

    model: str
    rows: tuple[OperatorLatency, ...]

    @property
    def seconds(self) -> float:
        """The sum: nothing overlaps."""
        return sum(row.seconds for row in self.rows)

    @property
    def sized(self) -> float:
        """The part that grows with the number of elements."""
        return sum(row.sized for row in self.rows)

    @property
    def waiting(self) -> float:
        """The part that does not."""
        return sum(row.waiting for row in self.rows)

    @property
    def rounds(self) -> int:
        """Messages that wait for one another."""
        return sum(row.rounds for row in self.rows)

    def by_kind(self) -> dict[str, float]:
        """Seconds of all operators of a kind."""
        sums: dict[str, float] = {}
        for row in self.rows:
            sums[row.kind] = sums.get(row.kind, 0.0) + row.seconds
        return sums

    def to_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {
            "model": self.model,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "operators": [asdict(row) for row in self.rows],
        }

    def table(self) -> str:
        """Plain text: milliseconds of each operator that costs any, and its share."""
        header = (
            "operator",
            "kind",
            "compute ms",
            "transfer ms",
            "waiting ms",
            "rounds",
            "total ms",
            "share",
        )
        whole = self.seconds or 1.0
        cells: list[tuple[str, ...]] = [header]
        cells += [_line(row, whole) for row in self.rows if row.seconds]
        cells.append(_line(_total(self.rows), whole))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                text.ljust(w) if i < 2 else text.rjust(w)
                for i, (text, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        )


def _total(rows: Iterable[OperatorLatency]) -> OperatorLatency:
    rows = list(rows)
    return OperatorLatency(
        "total",
        "",
        sum(row.compute for row in rows),
        sum(row.transfer for row in rows),
        sum(row.waiting for row in rows),
        sum(row.rounds for row in rows),
        sum(row.bytes for row in rows),
    )


def _line(row: OperatorLatency, whole: float) -> tuple[str, ...]:
    parts = (f"{1e3 * seconds:.3f}" for seconds in (row.compute, row.transfer, row.waiting))
    return (
        row.operator,
        row.kind,
        *parts,
        str(row.rounds),
        f"{1e3 * row.seconds:.3f}",
        f"{row.seconds / whole:.1%}",
    )


class LatencyModel(Protocol):
    """Anything that knows what the operators of a plan cost."""

    @property
    def name(self) -> str:
        """For tables."""

    def network(self, plan: Plan) -> NetworkLatency:
        """The latency of a network, operator by operator.

        Raises:
            MissingLatency: an operator is not in the model.
        """
