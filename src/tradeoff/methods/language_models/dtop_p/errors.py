"""What can be wrong with a controller of routers."""

from tradeoff.core.errors import TradeoffError


class ControlError(TradeoffError, ValueError):
    """A target, a threshold, a gain or a router that no controller can work with."""


class StepError(TradeoffError, RuntimeError):
    """A step of the controller without a forward pass in training since the last one."""


class ControlWarning(UserWarning):
    """Training goes on, but the number of active experts may not be what was asked for."""
