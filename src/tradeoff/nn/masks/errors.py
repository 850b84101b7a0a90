"""What can be wrong with masks and the weights that they belong to."""

from tradeoff.core.errors import TradeoffError


class MaskError(TradeoffError, ValueError):
    """Masks, a model and an optimizer do not fit together."""


class InfeasibleDensity(MaskError):
    """A density is out of range, or so low that a layer would keep no weight."""
