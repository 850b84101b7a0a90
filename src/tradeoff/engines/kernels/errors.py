"""Errors of the sparse kernels."""

from tradeoff.core.errors import EngineError


class GraphError(EngineError, ValueError):
    """The arrays are no sparse matrix; the message names the first bad position."""


class OperandError(EngineError, ValueError):
    """A dense or compressed operand does not fit the graph: shape, dtype, device, layout, or overlap."""


class BackendError(EngineError, ValueError):
    """A backend, strategy or device was asked for that cannot run this call."""


class NanError(OperandError):
    """A selection was asked to rank NaN; ``row`` is the first row that has one."""

    def __init__(self, row: int) -> None:
        super().__init__(
            f"x has NaN in row {row}; pass nan_policy='largest' to keep NaN as if it were above +Inf"
        )
        self.row = row
