"""Errors of the two-party engine; those of the link are in :mod:`tradeoff.engines.transport.errors`."""

from tradeoff.core.errors import EngineError


class RangeExceeded(EngineError, ValueError):
    """A value of the network can leave the range in which the protocols are exact.

    Args:
        name: the operator whose value is too large.
        largest: largest magnitude seen in calibration, safety margin included.
        limit: the magnitude it must stay below.
    """

    def __init__(self, name: str, largest: float, limit: float) -> None:
        super().__init__(
            f"{name}: values reach {largest:.4g} but must stay below {limit:.4g}; "
            "use fewer fractional bits, the 64-bit ring, or scale the network"
        )
        self.name = name
        self.largest = largest
        self.limit = limit


class OfflineExhausted(EngineError):
    """The offline material does not cover what an operator needs.

    Args:
        operator: the operator that asked.
        needed: bytes (or inferences) it needs.
        left: bytes (or inferences) that are left.
    """

    def __init__(self, operator: str, needed: int, left: int) -> None:
        super().__init__(
            f"{operator}: needs {needed} more of the offline pool, {left} left; let the dealer make a new one"
        )
        self.operator = operator
        self.needed = needed
        self.left = left


class PoolReused(EngineError):
    """Offline material was about to be used a second time; using a mask twice would reveal what it hides."""


class PoolMismatch(EngineError, ValueError):
    """A pool file is foreign, damaged, of another program, or of another pool than the peer's."""


class DealerUnavailable(EngineError):
    """The dealer cannot be reached; nothing of the inputs has been shared."""
