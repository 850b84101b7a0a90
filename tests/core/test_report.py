"""The report's parts that need no browser."""

from typing import Any

import pytest

from tests.conftest import TOY
from tradeoff.core import Card, Method, MetricKind, Outcome, Outcomes, Recipe, Trial, measured
from tradeoff.core.quantities import quantity
from tradeoff.core.report.figure import looks
from tradeoff.core.report.summary import Estimate, estimate
from tradeoff.core.report.terminal import nested_parameters, recipe_parameters


def test_no_two_variants_look_alike() -> None:
    made = looks([f"v{index}" for index in range(56)])
    assert len({(look.color, look.marker) for look in made.values()}) == 56
    assert len({(look.color, look.symbol) for look in made.values()}) == 56
    assert len({(look.color, look.glyph) for look in made.values()}) == 56


@pytest.mark.parametrize(
    ("mean", "half", "unit", "shown"),
    [
        (0.8125, 0.0312, "accuracy", "0.812 \u00b1 0.031"),
        (12_345.6, 321.0, "online_bytes", "12.35 \u00b1 0.32 kB"),
        (0.25, None, "accuracy", "0.25"),
        (0.25, 0.0, "accuracy", "0.25"),
        (3e-9, 2e-9, "logit_error_mean", "3e-09 \u00b1 2e-09"),
        (250.0, 130.0, "mask_flips", "250 \u00b1 130 flips"),
    ],
)
def test_estimates_for_people(mean: float, half: float | None, unit: str, shown: str) -> None:
    assert str(Estimate(quantity(unit), mean, half, (MetricKind.MEASURED,))) == shown


def test_equal_values_have_no_interval() -> None:
    cell = Outcomes(
        Outcome(trial=Trial(variant="a", seed=seed), metrics={"latency": measured(0.2)}) for seed in range(3)
    )
    assert str(estimate(cell, "latency")) == "200 ms"


class Inner(Recipe):
    epochs: int = 1


class Typed(Recipe):
    words: "list[int] | None" = None
    first: Inner
    second: Inner


def test_parameters_are_shown_as_their_author_wrote_them() -> None:
    class Example(Method[Any]):
        card = Card.load(TOY / "src" / "toy_rounding" / "card.md")
        Recipe = Typed

    shown = {row["name"]: row["type"] for row in recipe_parameters(Example)}  # type: ignore[arg-type, type-abstract]
    assert shown["words"] == "list[int] | None"
    assert shown["seeds"] == "int"
    assert nested_parameters(Typed) == [("first, second", ["seeds", "minutes", "epochs"])]
