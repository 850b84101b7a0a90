"""Intervals and paired comparisons over seeds."""

import math
from collections.abc import Iterable, Sequence

from .claims import Finding, Verdict
from .outcome import Outcomes
from .quantities import Direction, quantity

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
    if count == 1:
        return values[0], -math.inf, math.inf
    if min(values) == max(values):  # their rounded mean may differ from each of them
        return values[0], values[0], values[0]
    mean = math.fsum(values) / count
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


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios.

    Raises:
        ValueError: no values, or one that is not positive.
    """
    ratios = list(values)
    if not ratios or min(ratios) <= 0:
        raise ValueError(f"a geometric mean is of positive values, of which there must be one: {ratios}")
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


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


def better(ours: Outcomes, theirs: Outcomes, name: str, margin: float = 0.0) -> Finding:
    """Check that one cell is better than another in a quantity, by more than a margin.

    Which way is better says the quantity: a claim about seconds needs no change of sign.

    Args:
        ours: the outcomes of one cell, such as ``outcomes.where("autorep", budget=82)``.
        theirs: those of the other at the same seeds.
        name: of the quantity.
        margin: what ours must be better by, in the unit of the values; below zero it may be that much worse.

    Returns:
        As :func:`compare` does. The two means have the names of the cells, and ``difference`` with its
        interval, ``low`` to ``high``, tells how much better ours is.

    Raises:
        MissingOutcome: a cell is empty, lacks the quantity or a seed of the other.
    """
    mine, other = ours.paired(theirs, name)
    higher = quantity(name).direction is Direction.HIGHER
    finding = compare(mine, other, margin) if higher else compare(other, mine, margin)
    numbers = dict(finding.numbers)
    means = [numbers.pop("a"), numbers.pop("b")]
    cells = [cell[0].trial for cell in (ours, theirs)]
    same = cells[0].variant == cells[1].variant
    labels = [cell.cell if same else cell.variant for cell in cells]
    named = dict(zip(labels, means if higher else reversed(means), strict=True))
    if not margin:
        del numbers["margin"]
    return Finding(verdict=finding.verdict, numbers={**named, **numbers})


def times_better(ours: Outcomes, theirs: Outcomes, name: str, factor: float = 1.0) -> Finding:
    """Check that one cell is better than another by more than a factor: for times, bytes and counts.

    Args:
        ours: as for :func:`better`.
        theirs: likewise.
        name: of a quantity with positive values.
        factor: what the ratio must exceed; 2 where ours must take less than half of theirs.

    Returns:
        As :func:`better` does, with ``ratio``, the geometric mean over the seeds, and its interval.

    Raises:
        MissingOutcome: a cell is empty, lacks the quantity or a seed of the other.
        ValueError: a value is not positive, so that there is no ratio.
    """
    mine, other = ours.paired(theirs, name)
    if min(*mine, *other) <= 0:
        raise ValueError(f"{name} is not positive everywhere: there is no ratio")
    finding = better(ours, theirs, name)
    a, b = ([math.log(value) for value in values] for values in (mine, other))
    higher = quantity(name).direction is Direction.HIGHER
    ratio = compare(a, b, math.log(factor)) if higher else compare(b, a, math.log(factor))
    numbers = {
        key: value for key, value in finding.numbers.items() if key not in ("difference", "low", "high")
    }
    found = {"difference": "ratio", "low": "low", "high": "high"}
    exact = {new: math.exp(float(ratio.numbers[old])) for old, new in found.items() if old in ratio.numbers}
    return Finding(verdict=ratio.verdict, numbers={**numbers, **exact, "factor": factor})


def _student_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's distribution."""
    from scipy.special import stdtrit  # costs half a second to import

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))
