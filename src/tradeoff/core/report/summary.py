"""Outcomes reduced to what a table shows: one row per cell, mean and 95 % interval over its seeds."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..metric import MetricKind
from ..outcome import Outcome, Outcomes
from ..quantities import Quantity, quantity
from ..statistics import mean_interval
from ..trial import SettingValue

_MOST_DECIMALS = 6


@dataclass(frozen=True)
class Estimate:
    """A quantity over the seeds of a cell.

    Attributes:
        half_width: of the 95 % interval; None with a single seed, which has none.
        kinds: how its values came about; usually one.
    """

    quantity: Quantity
    mean: float
    half_width: float | None
    kinds: tuple[MetricKind, ...]

    def __str__(self) -> str:
        """For people, with the unit: ``12.4 ± 0.3 kB``; without the interval where it has no width."""
        scale, unit = _scale(self.mean, self.quantity.unit)
        if not self.half_width:
            return f"{_digits(self.mean / scale)} {unit}".rstrip()
        half = self.half_width / scale
        # Two significant digits of the interval say all there is to say about the mean.
        decimals = max(0, 1 - math.floor(math.log10(half)))
        if decimals > _MOST_DECIMALS:
            return f"{_digits(self.mean / scale)} ± {half:.2g} {unit}".rstrip()
        return f"{self.mean / scale:,.{decimals}f} ± {half:,.{decimals}f} {unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """One cell: a variant in a setting, over its seeds."""

    method: str
    variant: str
    setting: dict[str, SettingValue]
    outcomes: Outcomes
    estimates: dict[str, Estimate]
    on_frontier: bool

    def shown(self, name: str, with_kind: bool) -> str:
        """A quantity for people, on request with its kind; empty where the cell has none."""
        estimate = self.estimates.get(name)
        if estimate is None:
            return ""
        return f"{estimate} ({', '.join(estimate.kinds)})" if with_kind else str(estimate)


def summarize(method: str, outcomes: Outcomes, frontier: Collection[int] = ()) -> list[Row]:
    """One row for each cell, in the order of the trials."""
    winners = {outcomes[index].trial.key for index in frontier}
    return [
        Row(
            method=method,
            variant=cell[0].trial.variant,
            setting=cell[0].trial.setting,
            outcomes=cell,
            estimates={name: estimate(cell, name) for name in cell.quantities},
            on_frontier=cell[0].trial.key in winners,
        )
        for cell in outcomes.cells()
    ]


def estimate(cell: Sequence[Outcome], name: str) -> Estimate:
    """Mean and interval of a quantity over those outcomes of a cell that have it."""
    metrics = [outcome.metrics[name] for outcome in cell if name in outcome.metrics]
    mean, low, _ = mean_interval([metric.value for metric in metrics])
    half_width = mean - low if math.isfinite(low) else None
    return Estimate(quantity(name), mean, half_width, tuple(dict.fromkeys(m.kind for m in metrics)))


def kinds(rows: Sequence[Row], name: str) -> str:
    """How the values of a quantity came about, for a heading."""
    present = (row.estimates[name] for row in rows if name in row.estimates)
    return ", ".join(dict.fromkeys(kind for estimate in present for kind in estimate.kinds))


def origin(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Facts about where the outcomes come from, each with all its values."""
    known = [outcome.provenance for outcome in outcomes if outcome.provenance]
    facts: dict[str, list[str]] = {
        "host": [p.host for p in known],
        "machine": [f"{p.machine}, {p.cores} cores" for p in known],
        "device": [f"{p.device}, {p.threads} threads a trial" for p in known],
        "versions": [", ".join(f"{name} {version}" for name, version in p.versions.items()) for p in known],
        "commit": [p.commit or "not from a git checkout" for p in known],
        "started": sorted(p.started.strftime("%Y-%m-%d %H:%M UTC") for p in known)[:1],
        "computed": [readable(sum(p.seconds for p in known), "s")],
    }
    return [(name, "; ".join(dict.fromkeys(values))) for name, values in facts.items() if values]


def readable(value: float, unit: str) -> str:
    """A value for people: ``1.24 MB``, ``35 ms``, ``0.8125``, ``4,096 ReLUs``."""
    scale, unit = _scale(value, unit)
    return f"{_digits(value / scale)} {unit}".rstrip()


def _scale(value: float, unit: str) -> tuple[float, str]:
    """The divisor and the unit in which a value reads best."""
    steps = {
        "B": ((1, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")),
        "s": ((1e-6, "us"), (1e-3, "ms"), (1, "s")),
        "J": ((1e-9, "nJ"), (1e-6, "uJ"), (1e-3, "mJ"), (1, "J")),
        "FLOP": ((1, "FLOP"), (1e6, "MFLOP"), (1e9, "GFLOP"), (1e12, "TFLOP"), (1e15, "PFLOP")),
        "MAC": ((1, "MAC"), (1e6, "MMAC"), (1e9, "GMAC"), (1e12, "TMAC")),
    }.get(unit, ((1, unit),))
    fitting = [step for step in steps if abs(value) >= step[0]]
    if not value or not fitting:
        return next((step for step in steps if step[0] == 1), steps[0]) if not value else steps[0]
    return fitting[-1]


def _digits(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
