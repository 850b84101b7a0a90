"""The frontier: what nothing else beats on both of two quantities."""

from collections.abc import Sequence

from .outcome import Outcomes
from .quantities import Quantity, quantity
from .trial import Trial


def frontier(outcomes: Outcomes, x: str, y: str, within: Sequence[str] = ()) -> list[int]:
    """Indices of the outcomes whose cell is on the frontier of two quantities.

    Cells (variant and setting) are compared by their means over seeds, each quantity in its own direction;
    all seeds of a cell are in or out together. Cells without one of the quantities are left out.

    Args:
        within: settings whose values are not compared with each other.
    """
    groups: dict[str, list[Outcomes]] = {}
    for cell in outcomes.cells():
        if all(x in outcome.metrics and y in outcome.metrics for outcome in cell):
            groups.setdefault(group_of(cell[0].trial, within), []).append(cell)
    keys = set()
    for cells in groups.values():
        points = [(cell.mean(x), cell.mean(y)) for cell in cells]
        for index in _undominated(points, quantity(x), quantity(y)):
            keys |= {outcome.trial.key for outcome in cells[index]}
    return [index for index, outcome in enumerate(outcomes) if outcome.trial.key in keys]


def group_of(trial: Trial, within: Sequence[str]) -> str:
    """Names what a trial is compared within: ``data=cora``, or nothing where all are compared."""
    return " ".join(f"{key}={trial.setting[key]}" for key in within if key in trial.setting)


def _undominated(points: Sequence[tuple[float, float]], x: Quantity, y: Quantity) -> list[int]:
    """Indices of the points that no other point matches on both quantities and beats on one."""

    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        no_worse = not x.better(b[0], a[0]) and not y.better(b[1], a[1])
        return no_worse and a != b

    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
