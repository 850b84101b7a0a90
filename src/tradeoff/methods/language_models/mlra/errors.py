"""What can go wrong beside a configuration that does not fit."""

from tradeoff.core.errors import EngineError


class RankFailed(EngineError):
    """A process of a tensor-parallel run died, raised, or waited in vain; the message has its rank."""
