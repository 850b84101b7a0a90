"""The timer, on clocks that a test can turn."""

import itertools

import pytest

from tradeoff.core.timing import CONTENTION_LIMIT, Clock, ProcessorClock, side_by_side


class TurnedClock(Clock):
    """A clock that calls move on.

    Args:
        stolen: share of the wall-clock time that goes to other processes.
    """

    def __init__(self, stolen: float = 0.0) -> None:
        self._wall = 0.0
        self._cpu = 0.0
        self._stolen = stolen

    def wall(self) -> float:
        return self._wall

    def cpu(self) -> float:
        return self._cpu

    def work(self, seconds: float) -> None:
        self._cpu += seconds
        self._wall += seconds / (1 - self._stolen)


def test_medians_ratios_and_turns() -> None:
    clock = TurnedClock()
    order: list[str] = []
    slow_seconds = itertools.chain([0.2, 0.2], itertools.cycle([0.2, 0.2, 5.0]))

    def fast() -> None:
        order.append("fast")
        clock.work(0.1)

    def slow() -> None:
        order.append("slow")
        clock.work(next(slow_seconds))

    result = side_by_side({"fast": fast, "slow": slow}, rounds=9, clock=clock)
    assert order[4:8] == ["fast", "slow", "fast", "slow"]
    assert result.timings["fast"].median == pytest.approx(0.1)
    assert result.timings["slow"].median == pytest.approx(0.2), "one slow round must not move the headline"
    assert result.ratio("slow", "fast")[0] == pytest.approx(2)
    assert not result.contended


def test_short_calls_are_repeated_until_the_clock_can_tell() -> None:
    clock = TurnedClock()
    result = side_by_side({"tiny": lambda: clock.work(1e-6)}, rounds=3, sample_seconds=1e-3, clock=clock)
    assert result.timings["tiny"].median == pytest.approx(1e-6)
    assert clock.wall() >= 3e-3


def test_what_the_first_call_takes_does_not_count() -> None:
    """A slow first call, which loads a library, must not make a sample of one short call."""
    clock = TurnedClock()
    seconds = itertools.chain([2.0], itertools.repeat(1e-4))
    calls = []

    def call() -> None:
        calls.append(1)
        clock.work(next(seconds))

    result = side_by_side({"a": call}, rounds=3, sample_seconds=5e-3, clock=clock)
    assert result.timings["a"].median == pytest.approx(1e-4)
    assert len(calls) > 3 * 50


@pytest.mark.parametrize(("stolen", "contended"), [(1 - 1 / 1.14, False), (1 - 1 / 1.16, True)])
def test_the_guard_sees_what_neighbors_take(stolen: float, contended: bool) -> None:
    clock = TurnedClock(stolen)
    result = side_by_side({"a": lambda: clock.work(0.1)}, rounds=5, clock=clock)
    assert result.contended is contended
    assert (result.timings["a"].contention or 0) > CONTENTION_LIMIT or not contended


def test_the_guard_is_off_for_what_waits() -> None:
    clock = TurnedClock(stolen=0.9)
    assert not side_by_side({"a": lambda: clock.work(0.1)}, rounds=2, threads=None, clock=clock).contended


def test_real_clocks_run() -> None:
    timing = side_by_side({"sum": lambda: sum(range(1000))}, rounds=3).timings["sum"]
    low, high = timing.interval
    assert 0 < low <= timing.median <= high


def test_processor_seconds_can_stand_for_those_of_the_clock() -> None:
    clock = ProcessorClock()
    before, wall, after = clock.cpu(), clock.wall(), clock.cpu()
    assert before <= wall <= after
