"""Intervals and paired comparisons over seeds."""

import math
from collections.abc import Sequence

from .claims import Finding, Verdict

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % Student interval: ``(mean, low, high)``.

    A single value has no interval: ``low`` and ``high`` are then infinite.

    Raises:
        ValueError: no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / count
    if count == 1:
        return mean, -math.inf, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = _student_quantile(count - 1) * math.sqrt(variance / count)
    return mean, mean - half, mean + half


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval: ``(median, low, high)``.

    Raises:
        ValueError: no values.
    """
    import numpy

    if not len(values):
        raise ValueError("an interval needs at least one value")
    sample = numpy.asarray(values, dtype=float)
    picks = numpy.random.default_rng(0).integers(len(sample), size=(2000, len(sample)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = numpy.percentile(numpy.median(sample[picks], axis=1), [tail, 100 - tail])
    return float(numpy.median(sample)), float(low), float(high)


def compare(a: Sequence[float], b: Sequence[float], margin: float = 0.0) -> Finding:
    """Check ``a - b > margin`` by the 95 % Student interval of the difference, paired by seed.

    Args:
        a: values ordered by seed, as :meth:`Outcomes.values` gives them.
        b: values of the other variant at the same seeds.
        margin: what the difference must exceed, in the unit of the values.

    Returns:
        ``holds`` where the interval lies above the margin, ``fails`` where it lies below, else ``undecided``
        (also with fewer than two seeds), with the means, the difference and its interval.

    Raises:
        ValueError: the two lengths differ, so that the values cannot be paired.
    """
    if len(a) != len(b):
        raise ValueError(f"cannot pair {len(a)} values with {len(b)}: each seed must have an outcome in both")
    difference, low, high = mean_interval([x - y for x, y in zip(a, b, strict=True)])
    numbers: dict[str, float | str] = {
        "a": math.fsum(a) / len(a),
        "b": math.fsum(b) / len(b),
        "difference": difference,
        "margin": margin,
        "seeds": len(a),
    }
    if len(a) < 2:
        return Finding(verdict=Verdict.UNDECIDED, numbers=numbers)
    numbers |= {"low": low, "high": high}
    if low > margin:
        return Finding(verdict=Verdict.HOLDS, numbers=numbers)
    # An exact tie at the margin, without any spread, is not above it.
    if high < margin or low == high == margin:
        return Finding(verdict=Verdict.FAILS, numbers=numbers)
    return Finding(verdict=Verdict.UNDECIDED, numbers=numbers)


def _student_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's distribution."""
    from scipy.special import stdtrit  # costs half a second to import

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))
