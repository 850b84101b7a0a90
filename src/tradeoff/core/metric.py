"""A metric: one value of a quantity, with how it came about."""

import math
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, FiniteFloat

from .errors import OutcomeError


class MetricKind(StrEnum):
    """How a value came about; tables and figures show it."""

    MEASURED = "measured"
    """A clock or a counter on this machine."""
    COUNTED = "counted"
    """Exact arithmetic: operations, bytes of a protocol."""
    SIMULATED = "simulated"
    """A cycle-accurate or bit-exact simulation."""
    SYNTHESIZED = "synthesized"
    """A synthesis tool's report."""
    MODELLED = "modelled"
    """An analytic estimate of something that is not here."""
    PUBLISHED = "published"
    """A paper or a data sheet."""


class Metric(BaseModel):
    """One finite value and its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: FiniteFloat
    kind: MetricKind


def _metric(value: float, kind: MetricKind) -> Metric:
    number = float(value)
    if not math.isfinite(number):
        raise OutcomeError(f"a {kind} metric must be finite, not {number}")
    return Metric(value=number, kind=kind)


def measured(value: float) -> Metric:
    """A reading of a clock or a counter on this machine."""
    return _metric(value, MetricKind.MEASURED)


def counted(value: float) -> Metric:
    """The result of exact arithmetic, such as the bytes of a protocol."""
    return _metric(value, MetricKind.COUNTED)


def simulated(value: float) -> Metric:
    """The result of a cycle-accurate or bit-exact simulation."""
    return _metric(value, MetricKind.SIMULATED)


def synthesized(value: float) -> Metric:
    """A figure from a synthesis tool's report."""
    return _metric(value, MetricKind.SYNTHESIZED)


def modelled(value: float) -> Metric:
    """An analytic estimate, for example of a device that is not here."""
    return _metric(value, MetricKind.MODELLED)


def published(value: float) -> Metric:
    """A figure from a paper or a data sheet."""
    return _metric(value, MetricKind.PUBLISHED)
