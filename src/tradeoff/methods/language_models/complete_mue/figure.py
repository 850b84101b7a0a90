"""The sweeps as a picture: loss against learning rate, one panel for each axis."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tradeoff.core.files import read_json
from tradeoff.core.report.figure import looks
from tradeoff.core.study import Study

from .layouts import Layout

PANELS = {
    "width": "width",
    "mixture": "experts",
    "depth": "depth, batch, duration",
    "batch": "depth, batch, duration",
    "tokens": "depth, batch, duration",
}
STYLES = {"complete-mue": "-", "standard": "--", "per-expert": ":"}


@dataclass(frozen=True)
class Curve:
    """Losses of a target, mean over seeds.

    Attributes:
        losses: exponent of the rate -> loss, where every seed has one.
    """

    variant: str
    layout: str
    losses: Mapping[int, float]


def curves(study: Study) -> list[Curve]:
    """The sweeps of a study, from what its trials left.

    Raises:
        StoreError: a sweep is not where its outcome says.
    """
    found: dict[tuple[str, str], list[Mapping[int, float | None]]] = {}
    for outcome in study.outcomes:
        if outcome.trial.variant in STYLES and outcome.artifact is not None:
            document = read_json(study.folder.path / outcome.artifact / "sweep.json")
            cell = (outcome.trial.variant, str(outcome.trial.setting["layout"]))
            found.setdefault(cell, []).append({int(e): loss for e, loss in document["losses"].items()})
    return [Curve(variant, layout, _mean(sweeps)) for (variant, layout), sweeps in found.items()]


def _mean(sweeps: Sequence[Mapping[int, float | None]]) -> dict[int, float]:
    means = {}
    for exponent in sorted(set.intersection(*(set(sweep) for sweep in sweeps))):
        losses = [loss for sweep in sweeps if (loss := sweep[exponent]) is not None]
        if len(losses) == len(sweeps):
            means[exponent] = statistics.fmean(losses)
    return means


def draw(found: Iterable[Curve], path: Path) -> None:
    """Write the picture; the format is that of the path's ending."""
    from matplotlib.figure import Figure

    panels: dict[str, list[Curve]] = {}
    listed = list(found)
    for curve in listed:
        for title in _panels(curve.layout):
            panels.setdefault(title, []).append(curve)
    look = looks(list(dict.fromkeys(curve.layout for curve in listed)))
    figure = Figure(figsize=(4.6 * len(panels), 4.8), layout="constrained")
    all_axes: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, mine) in zip(all_axes, panels.items(), strict=True):
        for curve in mine:
            label = curve.layout if curve.variant == "complete-mue" else f"{curve.layout}, {curve.variant}"
            axes.plot(
                [2.0**e for e in curve.losses],
                list(curve.losses.values()),
                STYLES[curve.variant],
                color=look[curve.layout].color,
                marker=look[curve.layout].marker,
                markersize=4,
                label=label,
            )
        axes.set_xscale("log", base=2)
        axes.set_title(title)
        axes.set_xlabel("learning rate of the base")
        axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    all_axes[0].set_ylabel("held-out loss, nats a byte")
    figure.savefig(path, dpi=150)


def _panels(layout: str) -> list[str]:
    axes = Layout(layout).axes
    if not axes:
        return list(dict.fromkeys(PANELS.values()))
    return list(dict.fromkeys(PANELS[axis] for axis in axes))
