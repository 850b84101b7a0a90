"""Intervals, comparisons, claims and the frontier."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tradeoff.core import Claim, Finding, Outcome, Outcomes, Trial, Verdict, counted, measured
from tradeoff.core.claims import all_hold, worst
from tradeoff.core.errors import MissingOutcome
from tradeoff.core.frontier import frontier
from tradeoff.core.statistics import (
    better,
    compare,
    geometric_mean,
    mean_interval,
    median_interval,
    times_better,
)

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


def test_the_mean_of_ratios_is_geometric() -> None:
    assert geometric_mean(iter([2.0, 8.0])) == pytest.approx(4)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1)
    for values in ([], [1.0, 0.0], [1.0, -2.0]):
        with pytest.raises(ValueError, match="positive values"):
            geometric_mean(values)


@given(values=VALUES)
def test_interval_is_students(values: list[float]) -> None:
    mean, low, high = mean_interval(values)
    expected = (mean, mean)
    if error := stats.sem(values):
        expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
    assert (low, high) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_interval_of_one_value_and_of_none() -> None:
    assert mean_interval([3.0]) == (3.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_equal_values_have_an_interval_without_width() -> None:
    assert sum([0.2] * 3) / 3 != 0.2
    assert mean_interval([0.2] * 3) == (0.2, 0.2, 0.2)


@pytest.mark.parametrize(
    ("a", "b", "margin", "verdict"),
    [
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.82], 0.0, Verdict.HOLDS),
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.82], 0.2, Verdict.FAILS),
        ([0.80, 0.81, 0.82], [0.90, 0.91, 0.92], 0.0, Verdict.FAILS),
        ([0.9, 0.1, 0.5], [0.4, 0.5, 0.5], 0.0, Verdict.UNDECIDED),
        ([0.9], [0.1], 0.0, Verdict.UNDECIDED),
        ([0.5, 0.5], [0.5, 0.5], 0.0, Verdict.FAILS),
        # The seeds differ far more than the variants do: pairing decides it.
        ([0.11, 0.52, 0.91], [0.10, 0.51, 0.90], 0.0, Verdict.HOLDS),
    ],
)
def test_compare(a: list[float], b: list[float], margin: float, verdict: Verdict) -> None:
    finding = compare(a, b, margin)
    assert finding.verdict is verdict
    assert finding.numbers["seeds"] == len(a)
    assert finding.numbers["difference"] == pytest.approx(np.mean(a) - np.mean(b))


def test_compare_refuses_what_it_cannot_pair() -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        compare([1, 2], [1])


def test_better_knows_the_direction_of_the_quantity_and_names_the_cells() -> None:
    ours, theirs = (
        Outcomes(cell(name, points))
        for name, points in (
            ("ours", [(10, 0.90), (11, 0.91), (12, 0.92)]),
            ("theirs", [(20, 0.80), (21, 0.81), (22, 0.82)]),
        )
    )
    accuracy, sent = better(ours, theirs, "accuracy"), better(ours, theirs, "online_bytes")
    assert accuracy.verdict is sent.verdict is Verdict.HOLDS
    assert accuracy.numbers["ours"] == pytest.approx(0.91)
    assert sent.numbers["theirs"] == 21
    assert sent.numbers["difference"] == 10
    assert better(theirs, ours, "online_bytes").verdict is Verdict.FAILS
    assert better(ours, theirs, "accuracy", margin=0.2).numbers["margin"] == 0.2
    assert better(theirs, ours, "accuracy", margin=-0.2).verdict is Verdict.HOLDS
    with pytest.raises(MissingOutcome, match="seeds"):
        better(Outcomes(ours[1:]), theirs, "accuracy")


def test_better_tells_settings_of_one_variant_apart() -> None:
    small, large = (
        Outcomes(
            Outcome(
                trial=Trial(variant="a", setting={"b": b}, seed=s), metrics={"accuracy": measured(b / 10 + s)}
            )
            for s in range(2)
        )
        for b in (1, 2)
    )
    finding = better(large, small, "accuracy")
    assert finding.numbers["a b=2"] == pytest.approx(0.7)
    assert finding.numbers["a b=1"] == pytest.approx(0.6)
    assert Outcomes([*small, *large]).settings("b") == [1, 2]


def test_factors_are_ratios_paired_by_seed() -> None:
    ours, theirs = (
        Outcomes(cell(name, [(x, 0.9) for x in bytes_]))
        for name, bytes_ in (("ours", [10, 100, 1000]), ("theirs", [21, 205, 2300]))
    )
    finding = times_better(ours, theirs, "online_bytes", 1.5)
    assert finding.verdict is Verdict.HOLDS
    assert finding.numbers["ratio"] == pytest.approx((2.1 * 2.05 * 2.3) ** (1 / 3))
    assert finding.numbers["low"] < finding.numbers["ratio"] < finding.numbers["high"]
    assert finding.numbers["ours"] == 370
    assert times_better(ours, theirs, "online_bytes", 3).verdict is Verdict.FAILS
    assert times_better(theirs, ours, "online_bytes").verdict is Verdict.FAILS
    with pytest.raises(ValueError, match="no ratio"):
        times_better(Outcomes(cell("a", [(0, 1)])), Outcomes(cell("b", [(1, 1)])), "online_bytes")


def test_cells_of_different_data_are_not_compared() -> None:
    outcomes = Outcomes(
        Outcome(
            trial=Trial(variant=variant, setting={"data": data}),
            metrics={"online_bytes": counted(x), "accuracy": measured(y)},
        )
        for variant, data, x, y in (
            ("a", "easy", 1, 0.9),
            ("b", "easy", 2, 0.8),
            ("a", "hard", 9, 0.5),
            ("b", "hard", 8, 0.4),
        )
    )
    assert frontier(outcomes, "online_bytes", "accuracy") == [0]
    assert frontier(outcomes, "online_bytes", "accuracy", within=["data"]) == [0, 2, 3]


def test_several_findings_hold_together_only_if_all_do() -> None:
    holds, fails, undecided = (
        Finding(verdict=verdict, numbers={"difference": index}) for index, verdict in enumerate(Verdict)
    )
    assert all_hold({"at 1": holds}).verdict is Verdict.HOLDS
    assert all_hold({"at 1": holds, "at 2": undecided}).verdict is Verdict.UNDECIDED
    both = all_hold({"at 1": undecided, "at 2": fails})
    assert both.verdict is Verdict.FAILS
    assert both.numbers == {"difference at 1": 2, "difference at 2": 1}
    assert worst([]) is Verdict.HOLDS


def test_median_interval_covers() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        _, low, high = median_interval(random.normal(size=30))
        hits += low <= 0 <= high
    assert hits >= 85


def cell(variant: str, points: list[tuple[float, float]]) -> list[Outcome]:
    return [
        Outcome(
            trial=Trial(variant=variant, seed=seed),
            metrics={"online_bytes": counted(x), "accuracy": measured(y)},
        )
        for seed, (x, y) in enumerate(points)
    ]


def test_frontier_is_on_means_and_in_the_right_directions() -> None:
    # `lucky` has the best single trial, and the worst mean.
    outcomes = Outcomes(
        [
            *cell("cheap", [(1, 0.5), (1, 0.5)]),
            *cell("good", [(5, 0.9), (5, 0.8)]),
            *cell("lucky", [(5, 0.95), (5, 0.1)]),
            *cell("dear", [(9, 0.85)]),
            Outcome(trial=Trial(variant="partial"), metrics={"accuracy": measured(1.0)}),
        ]
    )
    assert frontier(outcomes, "online_bytes", "accuracy") == [0, 1, 2, 3]


@given(points=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_frontier_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    outcomes = Outcomes(o for index, point in enumerate(points) for o in cell(f"v{index}", [point]))
    winners = {points[index] for index in frontier(outcomes, "online_bytes", "accuracy")}
    for x, y in points:
        beaten = any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in winners) == (not beaten)


def test_a_claim_that_cannot_be_checked_is_undecided_and_says_why() -> None:
    missing = Claim("a", "b", lambda outcomes: compare(outcomes.where("x").values("accuracy"), [1]))
    assert missing.evaluate(Outcomes()) == Finding(
        verdict=Verdict.UNDECIDED, numbers={"reason": "no outcome to take accuracy from"}
    )
    broken = Claim(
        "a", "b", lambda outcomes: Finding(verdict=Verdict.HOLDS, numbers={"x": 1 / len(outcomes)})
    )
    assert broken.evaluate(Outcomes()).numbers == {"error": "ZeroDivisionError: division by zero"}
    assert broken.evaluate(Outcomes()).verdict is Verdict.UNDECIDED
