"""What can go wrong with a decoder; each is a ``ValueError`` whose message holds the numbers."""

from tradeoff.core.errors import TradeoffError


class DecoderError(TradeoffError, ValueError):
    """Base of the decoder's errors."""


class InvalidConfig(DecoderError):
    """A configuration is contradictory or out of range."""


class InvalidInput(DecoderError):
    """Token ids, positions or a mask do not fit each other, the model or the cache."""


class CacheError(DecoderError):
    """A cache of another shape, or an operation on slots that it does not hold."""


class CacheOverflow(CacheError):
    """More tokens than the cache has slots; nothing was written."""


class CheckpointError(DecoderError):
    """A checkpoint is absent, damaged, incomplete or of a family that is not known."""
