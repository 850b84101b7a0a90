"""Errors of the engine; those of the link are in :mod:`tradeoff.engines.transport.errors`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tradeoff.core.errors import EngineError, ProtocolError


class InconsistentShares(ProtocolError):
    """Somebody sent a wrong share, or computed wrongly; nothing was revealed.

    Attributes:
        layer: where it was noticed.
        opening: what was opened there.
        suspects: the servers that can have done it: one where the redundancy tells, else all that it may be.
    """

    def __init__(self, layer: str, opening: str, suspects: Iterable[int]) -> None:
        self.layer, self.opening, self.suspects = layer, opening, tuple(sorted(suspects))
        names = " or ".join(f"server {suspect}" for suspect in self.suspects) or "an unknown server"
        super().__init__(f"{layer}: the shares of {opening} do not fit together: {names} cheated")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.layer, self.opening, self.suspects)


class RangeExceeded(EngineError, ValueError):
    """A value of the network can leave the range in which the protocols are exact.

    Attributes:
        name: the operator; largest: magnitude seen in calibration, margin included; limit: what it must
            stay below.
    """

    def __init__(self, name: str, largest: float, limit: float) -> None:
        super().__init__(
            f"{name}: values reach {largest:.4g} but must stay below {limit:.4g}; "
            "use fewer fractional bits, more bound_bits, or scale the network"
        )
        self.name, self.largest, self.limit = name, largest, limit


class OfflineExhausted(EngineError):
    """Correlated randomness was asked for that is used up, or was used already; using it twice would reveal
    what it hides."""


class DealerUnavailable(EngineError):
    """The dealer cannot be reached; nothing of the inputs has been shared."""
