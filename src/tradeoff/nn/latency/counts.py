"""A latency model that knows comparisons only: what methods before latency-aware ones minimize."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tradeoff.nn import plan as op
from tradeoff.nn.latency.model import NetworkLatency, OperatorLatency

SECONDS_PER_RELU = 1e-6


@dataclass(frozen=True)
class ReLUCount:
    """A microsecond for each ReLU of an image, and nothing else: a millisecond is a thousand of them."""

    name: str = "relu-count"

    def seconds(self, relus: int) -> float:
        """So many ReLUs in this model's unit; half of one more allows for rounding of sums."""
        return (relus + 0.5) * SECONDS_PER_RELU

    def network(self, plan: op.Plan) -> NetworkLatency:
        """The ReLUs of a network, operator by operator."""
        rows = (OperatorLatency(o.name, type(o).__name__, compute=SECONDS_PER_RELU * _relus(o)) for o in plan)
        return NetworkLatency(self.name, tuple(rows))


def _relus(operator: op.Operator) -> int:
    if isinstance(operator, op.MaskedReLU):
        return int(operator.mask.sum())
    return prod(operator.shape) if isinstance(operator, op.ReLU) else 0
