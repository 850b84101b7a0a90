"""What can be wrong with a transfer."""

from tradeoff.core.errors import TradeoffError


class TransferError(TradeoffError, ValueError):
    """Base and target do not fit together, or a value leaves the range in which the rules mean anything."""


class UnknownRole(TransferError):
    """Tensors whose role nobody gave: a guess would train them at a wrong rate without a word."""
