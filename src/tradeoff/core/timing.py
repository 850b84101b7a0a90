"""Honest timings: candidates take turns in one process, medians are quoted, a guard watches for neighbors."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .statistics import median_interval

CONTENTION_LIMIT = 1.15
"""Wall-clock over processor time per thread from which a timing counts as disturbed."""
_LONGEST_CALIBRATION = 2**20


class Clock(Protocol):
    """What a timer reads; tests replace it."""

    def wall(self) -> float:
        """Seconds of wall-clock time."""

    def cpu(self) -> float:
        """Processor seconds of this process, all threads together."""


class SystemClock:
    """The clocks of this machine."""

    def wall(self) -> float:
        """Seconds of wall-clock time."""
        return time.perf_counter()

    def cpu(self) -> float:
        """Processor seconds of this process, all threads together."""
        return time.process_time()


class ProcessorClock(SystemClock):
    """Processor seconds in place of those on the wall: other work on the machine then matters less.

    For calls of one thread; with several it adds up what they take.
    """

    def wall(self) -> float:
        """Processor seconds of this process."""
        return self.cpu()


@dataclass(frozen=True)
class Timing:
    """Seconds for one call of a candidate.

    Attributes:
        samples: one for each round.
        contention: wall-clock over processor time per thread; about 1 on a quiet machine. None where the
            candidate waits for something else than the processor, so that it says nothing.
    """

    samples: tuple[float, ...]
    contention: float | None

    @property
    def median(self) -> float:
        """The headline."""
        return median_interval(self.samples)[0]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the median."""
        return median_interval(self.samples)[1:]

    @property
    def contended(self) -> bool:
        """Whether something else took the processor, so that the timing must not be quoted."""
        return self.contention is not None and self.contention > CONTENTION_LIMIT


@dataclass(frozen=True)
class SideBySide:
    """Timings of candidates that took turns."""

    timings: dict[str, Timing]

    @property
    def contended(self) -> bool:
        """Whether any of the timings is disturbed."""
        return any(timing.contended for timing in self.timings.values())

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """How many times longer ``slow`` takes than ``fast``: median over the rounds, 95 % interval."""
        pairs = zip(self.timings[slow].samples, self.timings[fast].samples, strict=True)
        return median_interval([a / b for a, b in pairs])


def side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 10,
    sample_seconds: float = 0.005,
    threads: int | None = 1,
    clock: Clock | None = None,
) -> SideBySide:
    """Time candidates by turns: in each round, each runs until its sample is long enough to read the clock.

    Args:
        candidates: name -> what to time, a call without arguments that has its inputs ready.
        rounds: samples of each.
        sample_seconds: how long a sample lasts at least; short calls are repeated.
        threads: that each candidate keeps busy, for the guard; None for candidates that wait for a network.
        clock: of this machine if not given.
    """
    clock = clock or SystemClock()
    repeats = {name: _calibrate(call, sample_seconds, clock) for name, call in candidates.items()}
    walls: dict[str, list[float]] = {name: [] for name in candidates}
    cpus = dict.fromkeys(candidates, 0.0)
    for _ in range(rounds):
        for name, call in candidates.items():
            cpu, wall = clock.cpu(), clock.wall()
            for _ in range(repeats[name]):
                call()
            walls[name].append(clock.wall() - wall)
            cpus[name] += clock.cpu() - cpu
    return SideBySide(
        {
            name: Timing(
                samples=tuple(wall / repeats[name] for wall in walls[name]),
                contention=sum(walls[name]) * threads / max(cpus[name], 1e-9) if threads else None,
            )
            for name in candidates
        }
    )


def _calibrate(call: Callable[[], object], sample_seconds: float, clock: Clock) -> int:
    """How many calls a sample needs; the first one, which also loads and warms up, does not tell."""
    call()
    repeats = 1
    while repeats < _LONGEST_CALIBRATION:
        started = clock.wall()
        for _ in range(repeats):
            call()
        if clock.wall() - started >= sample_seconds:
            break
        repeats *= 2
    return repeats
