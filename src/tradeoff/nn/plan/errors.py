"""Errors of reading a network into a plan."""

from __future__ import annotations

from tradeoff.core.errors import TradeoffError


class PlanError(TradeoffError, ValueError):
    """A plan is malformed, or cannot do what was asked of it."""


class UnsupportedLayer(TradeoffError, NotImplementedError):
    """A model holds an operation that a plan has no operator for.

    Args:
        name: where it is called and what it is, for example ``features.3 (SiLU)``.
        hint: what to do about it.
    """

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(f"unsupported layer {name}: {hint}")
        self.name = name
        self.hint = hint


class UntraceableModel(TradeoffError, ValueError):
    """torch.fx cannot follow the forward pass of a model.

    Args:
        place: the module path and the line of the call that could not be followed.
        reason: what happened there.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"cannot trace the model at {place}: {reason}")
        self.place = place
        self.reason = reason
