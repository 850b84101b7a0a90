"""The frontier as a picture."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..card import Frontier
from ..frontier import group_of
from ..quantities import Direction
from .summary import Row, kinds, summarize

if TYPE_CHECKING:
    from ..study import Study

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
"""Colors that people with any color vision can tell apart (Okabe and Ito)."""
_SHAPES = (
    ("o", "circle", "\N{BLACK CIRCLE}"),
    ("s", "square", "\N{BLACK SQUARE}"),
    ("^", "triangle-up", "\N{BLACK UP-POINTING TRIANGLE}"),
    ("D", "diamond", "\N{BLACK DIAMOND}"),
    ("v", "triangle-down", "\N{BLACK DOWN-POINTING TRIANGLE}"),
    ("P", "cross", "\N{HEAVY GREEK CROSS}"),
    ("X", "x", "\N{HEAVY MULTIPLICATION X}"),
)
"""Of points, as Matplotlib, Plotly and text have them; no divisor in common with the number of colors."""
LOGARITHMIC_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
_PREFIXES_FROM = 1e4
"""Value from which an axis counts in k, M and G."""


@dataclass(frozen=True)
class Look:
    """How the points of a variant look: color, and shape for Matplotlib, for Plotly and in text."""

    color: str
    marker: str
    symbol: str
    glyph: str


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """A look for each variant; no two of the first 56 are alike."""
    return {
        variant: Look(_COLORS[index % len(_COLORS)], *_SHAPES[index % len(_SHAPES)])
        for index, variant in enumerate(variants)
    }


def figure_png(study: "Study") -> bytes:
    """Every cell on the two quantities that the method trades, with the frontier, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    card = study.method.card
    rows = [
        row
        for row in summarize(card.name, study.outcomes, study.frontier)
        if card.frontier.x in row.estimates and card.frontier.y in row.estimates
    ]
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, rows, looks(study.outcomes.variants), card.frontier)
    axes.set_title(card.title, loc="left", fontsize=11, fontweight="bold", wrap=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Any, rows: Sequence[Row], look: dict[str, Look], traded: Frontier) -> None:
    from matplotlib.ticker import EngFormatter

    if not rows:
        axes.text(0.5, 0.5, "no outcomes yet", ha="center", va="center", transform=axes.transAxes)
        return
    x, y = traded.x, traded.y
    frontiers: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.on_frontier:
            group = group_of(row.outcomes[0].trial, traded.within)
            frontiers.setdefault(group, []).append((row.estimates[x].mean, row.estimates[y].mean))
    for index, winners in enumerate(frontiers.values()):
        line = zip(*sorted(winners), strict=True)
        axes.plot(
            *line, color="#999999", linewidth=1.2, linestyle="--", label="" if index else "frontier"
        )  # an empty label stays out of the legend
    for variant in dict.fromkeys(row.variant for row in rows):
        mine = [row for row in rows if row.variant == variant]
        axes.errorbar(
            [row.estimates[x].mean for row in mine],
            [row.estimates[y].mean for row in mine],
            xerr=[row.estimates[x].half_width or 0 for row in mine],
            yerr=[row.estimates[y].half_width or 0 for row in mine],
            color=look[variant].color,
            marker=look[variant].marker,
            linestyle="none",
            markersize=7,
            capsize=3,
            linewidth=1.2,
            label=variant,
        )
    for name, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        values = [row.estimates[name].mean for row in rows]
        if logarithmic(values):
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        if max(values) >= _PREFIXES_FROM:
            axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_label_text(axis_label(rows, name))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def logarithmic(values: Sequence[float]) -> bool:
    """Whether an axis for these values should be logarithmic."""
    return min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM


def axis_label(rows: Sequence[Row], name: str) -> str:
    """``online_bytes (B, counted), lower is better``."""
    estimates = [row.estimates[name] for row in rows if name in row.estimates]
    quantity = estimates[0].quantity
    facts = ", ".join(filter(None, [quantity.unit, kinds(rows, name)]))
    better = "higher" if quantity.direction is Direction.HIGHER else "lower"
    return f"{name} ({facts}), {better} is better"
