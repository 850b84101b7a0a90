"""What a controller's history says: does it hold its target, swing around it, or stand at a limit?"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "holding", "off target", "oscillating", "saturated"]
WINDOW = 50
"""Steps that are looked at."""
TOLERANCE = 0.05
"""Distance of the mean from the target, as a part of it, that counts as held."""
SWING = 0.2
"""Distance from the target on both sides, as a part of it, between which a change is a swing."""
SWINGS = 4
"""Swings within the window from which on a controller oscillates."""


@dataclass(frozen=True)
class Diagnosis:
    """The last steps of a controlled count.

    Attributes:
        state: in a word.
        mean: active experts over the window.
        deviation: its standard deviation over the steps.
        swings: changes from above the target by a fifth to below it by a fifth, or back.
        layer: the controlled layer, where each has a threshold of its own.
    """

    state: State
    mean: float
    deviation: float
    swings: int
    target: float
    layer: int | None = None

    def __str__(self) -> str:
        where = "" if self.layer is None else f" in controlled layer {self.layer}"
        advice = {
            "oscillating": "; halve both gains",
            "saturated": "; the threshold is at its limit: the target is out of reach, or max_active cuts",
        }
        return (
            f"{self.state}{where}: {self.mean:.2f} active experts for a target of {self.target:g}, deviation "
            f"{self.deviation:.2f}, {self.swings} swings in {WINDOW} steps{advice.get(self.state, '')}"
        )


def swings(active: Sequence[float], target: float) -> int:
    """How often a count goes from a fifth above the target to a fifth below, or back."""
    sides = [1 if a > target else -1 for a in active if abs(a - target) > SWING * target]
    return sum(one != other for one, other in itertools.pairwise(sides))


def diagnose(
    active: Sequence[float], at_limit: Sequence[bool], target: float, layer: int | None = None
) -> Diagnosis:
    """Name the state of a controlled count.

    Args:
        active: mean active experts of each step.
        at_limit: whether the threshold stood at its lowest or highest value.
        target: what they should be.
        layer: for the message.
    """
    last = list(active)[-WINDOW:]
    mean = statistics.fmean(last) if last else float("nan")
    count = swings(last, target)
    near = abs(mean - target) <= TOLERANCE * target
    state: State
    if len(last) < WINDOW // 5:
        state = "starting"
    elif count >= SWINGS:
        state = "oscillating"
    elif near:
        state = "holding"
    else:
        state = "saturated" if all(list(at_limit)[-WINDOW // 5 :]) else "off target"
    return Diagnosis(state, mean, statistics.pstdev(last) if last else 0.0, count, target, layer)
