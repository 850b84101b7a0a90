"""The frontier: what nothing else beats on both of two quantities."""

from collections.abc import Sequence

from .outcome import Outcomes
from .quantities import Quantity, quantity


def frontier(outcomes: Outcomes, x: str, y: str) -> list[int]:
    """Indices of the outcomes whose cell is on the frontier of two quantities.

    Cells (variant and setting) are compared by their means over seeds, each quantity in its own direction;
    all seeds of a cell are in or out together. Cells without one of the quantities are left out.
    """
    cells = [cell for cell in outcomes.cells() if all(x in o.metrics and y in o.metrics for o in cell)]
    points = [(cell.mean(x), cell.mean(y)) for cell in cells]
    winners = [cells[index] for index in _undominated(points, quantity(x), quantity(y))]
    keys = {outcome.trial.key for cell in winners for outcome in cell}
    return [index for index, outcome in enumerate(outcomes) if outcome.trial.key in keys]


def _undominated(points: Sequence[tuple[float, float]], x: Quantity, y: Quantity) -> list[int]:
    """Indices of the points that no other point matches on both quantities and beats on one."""

    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        no_worse = not x.better(b[0], a[0]) and not y.better(b[1], a[1])
        return no_worse and a != b

    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
