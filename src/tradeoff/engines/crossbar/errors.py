"""Errors of the crossbar engine."""

from tradeoff.core.errors import EngineError


class CrossbarError(EngineError, ValueError):
    """Base of the errors of the engine."""


class InvalidConfig(CrossbarError):
    """Arrays, converters, cells or defects that cannot be built."""


class InvalidOperand(CrossbarError):
    """A weight, an input or a layer that crossbars cannot take; the message names the layer."""


class NotCalibrated(CrossbarError):
    """A layer has no range for its inputs: no calibration data reached it."""
