"""Studies of several methods beside each other, on the quantities that all of them have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from ..errors import MissingOutcome
from .summary import summarize
from .terminal import outcome_tables

if TYPE_CHECKING:
    from ..study import Study


@dataclass(frozen=True)
class Comparison:
    """Studies, and the quantities that they share."""

    studies: Sequence["Study"]
    quantities: list[str]

    def table(self, console: Console) -> RenderableType:
        """One row for each cell of each study."""
        rows = [row for s in self.studies for row in summarize(self._label(s), s.outcomes, s.frontier)]
        return outcome_tables(rows, self.quantities, console)

    def _label(self, study: "Study") -> str:
        """The method's name; with the run's where another run of it is beside."""
        name = study.method.card.name
        alone = [other.method.card.name for other in self.studies].count(name) == 1
        return name if alone else f"{name} {study.folder.path.name[:6]}"

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"quantities": self.quantities, "studies": [study.document() for study in self.studies]}


def compare_studies(studies: Sequence["Study"]) -> Comparison:
    """Put studies beside each other.

    Raises:
        MissingOutcome: a study has no outcomes, or they share no quantity.
    """
    for study in studies:
        if not study.outcomes:
            raise MissingOutcome(f"{study.folder.shown} holds no outcomes yet")
    shared = [name for name in studies[0].quantities if all(name in s.quantities for s in studies)]
    if not shared:
        named = " and ".join(study.method.card.name for study in studies)
        raise MissingOutcome(f"{named} share no quantity")
    return Comparison(studies, shared)
