"""The dimensionless cost with which the published code of PASNet searches."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tradeoff.nn import plan as op
from tradeoff.nn.latency.model import NetworkLatency, OperatorLatency


def released_cost(operator: op.Operator, elements: int) -> float:
    """Cost of an operator with so many input elements for one image; linear ones have none.

    ReLU 13.6 n + 0.4, quadratic 0.03 n + 0.2, max pooling three quarters of a ReLU, average pooling 0.01 n.
    """
    match operator:
        case op.ReLU():
            return 13.6 * elements + 0.4
        case op.MaxPool():
            return 0.75 * (13.6 * elements + 0.4)
        case op.Polynomial():
            return 0.03 * elements + 0.2
        case op.MaskedReLU():
            kept = int(operator.mask.sum())
            relu = 13.6 * kept + 0.4 if kept else 0.0
            square = 0.03 * (elements - kept) + 0.2 if operator.coefficients is not None else 0.0
            return relu + square * (kept < elements)
        case op.AveragePool() | op.SumPool():
            return 0.01 * elements
    return 0.0


@dataclass(frozen=True)
class ReleasedProxy:
    """The published code's cost for one image, as if it were seconds: it has no unit and no batch."""

    name: str = "pasnet-proxy"

    def network(self, plan: op.Plan) -> NetworkLatency:
        """The cost of a network, operator by operator."""
        shapes = {operator.name: operator.shape for operator in plan}
        rows = []
        for operator in plan:
            elements = prod(shapes[operator.inputs[0]]) if operator.inputs else 0
            cost = released_cost(operator, elements)
            rows.append(OperatorLatency(operator.name, type(operator).__name__, compute=cost))
        return NetworkLatency(self.name, tuple(rows))
