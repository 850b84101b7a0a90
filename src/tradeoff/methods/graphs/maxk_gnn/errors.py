"""Errors of MaxK-GNN."""

from tradeoff.core.errors import DataError, TradeoffError


class ModelError(TradeoffError, ValueError):
    """A network cannot have this kind, width, depth or k."""


class KMismatch(TradeoffError, ValueError):
    """Stored weights were trained with other numbers of kept features."""


class NanActivation(TradeoffError, ArithmeticError):
    """The features that a layer is to select from have NaN; the message names the layer."""


class LabelError(DataError):
    """Labels, features or splits do not fit the graph or the network."""
