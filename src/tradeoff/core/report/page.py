"""The report as one HTML file that needs nothing else: no server, no network."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..frontier import group_of
from ..quantities import QUANTITIES
from .figure import axis_label, logarithmic, looks
from .summary import Row, kinds, origin, readable, summarize

if TYPE_CHECKING:
    from ..study import Study


def page_html(study: "Study") -> str:
    """The page. Everything that comes from a method, a recipe or the store is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("tradeoff.core.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    card = study.method.card
    rows = summarize(card.name, study.outcomes, study.frontier)
    variants = study.outcomes.variants
    return environment.get_template("page.html.j2").render(
        study=study,
        card=card,
        rows=rows,
        settings=list(dict.fromkeys(key for row in rows for key in row.setting)),
        quantities=[QUANTITIES[name] for name in study.quantities],
        kinds={name: kinds(rows, name) for name in study.quantities},
        variants=variants,
        looks={variant: asdict(look) for variant, look in looks(variants).items()},
        provenance=origin(study.outcomes),
        chart=_chart(rows, study.quantities, card.frontier.within),
        plotly=Markup(get_plotlyjs()),
        readable=readable,
    )


def _number(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return readable(value, "")
    return str(value)


def _chart(rows: Sequence[Row], quantities: Sequence[str], within: Sequence[str]) -> dict[str, Any]:
    """What the page's script draws: axes, one point per cell and one per trial."""
    return {
        "axes": {
            name: {
                "label": axis_label(rows, name),
                "log": logarithmic([row.estimates[name].mean for row in rows if name in row.estimates]),
            }
            for name in quantities
        },
        "cells": [
            {
                "variant": row.variant,
                "label": row.outcomes[0].trial.cell,
                "frontier": row.on_frontier,
                "group": group_of(row.outcomes[0].trial, within),
                "estimates": {
                    name: {"mean": e.mean, "half": e.half_width or 0, "text": f"{e} ({', '.join(e.kinds)})"}
                    for name, e in row.estimates.items()
                },
                "trials": [
                    {
                        "label": str(outcome.trial),
                        "values": {name: metric.value for name, metric in outcome.metrics.items()},
                        "texts": {
                            name: f"{readable(metric.value, QUANTITIES[name].unit)} ({metric.kind})"
                            for name, metric in outcome.metrics.items()
                        },
                    }
                    for outcome in row.outcomes
                ],
            }
            for row in rows
        ],
    }
