"""Errors of decoding."""

from tradeoff.core.errors import EngineError


class DecodingError(EngineError, ValueError):
    """Base of the errors of decoding."""


class InvalidRequest(DecodingError):
    """A prompt, a limit or a setting that no decoding can start with."""


class InvalidDraft(DecodingError):
    """A proposer's draft is no tree, or its tokens are not of the model's vocabulary."""


class NonFiniteLogits(DecodingError):
    """Logits that decide about a token are NaN or infinite; the message names the first layer at fault."""
