"""What can be wrong with heads, trees and their texts."""

from tradeoff.core.errors import TradeoffError


class InvalidSetting(TradeoffError, ValueError):
    """A setting of the heads or of their training is out of range."""


class HeadsMismatch(TradeoffError, ValueError):
    """Heads were trained for another backbone, or a file does not hold such heads."""


class InvalidTree(TradeoffError, ValueError):
    """A candidate tree is not closed under prefixes, or asks for guesses that the heads do not make."""
