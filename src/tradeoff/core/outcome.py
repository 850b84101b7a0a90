"""What trials gave: metrics, artifact and provenance."""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import overload

from pydantic import BaseModel, ConfigDict, field_validator

from .errors import MissingOutcome
from .files import Scalar, canonical
from .metric import Metric
from .quantities import quantity
from .trial import SettingValue, Trial


class Provenance(BaseModel):
    """Where an outcome comes from; filled in by the runner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    machine: str
    cores: int
    threads: int
    device: str
    versions: dict[str, str]
    commit: str | None
    started: datetime
    seconds: float


class Outcome(BaseModel):
    """What a trial gave.

    Attributes:
        trial: the cell.
        metrics: registered quantity -> value and kind.
        artifact: path of what the trial leaves, relative to the run folder, or None.
        provenance: filled in by the runner, so a method leaves it out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trial: Trial
    metrics: dict[str, Metric]
    artifact: str | None = None
    provenance: Provenance | None = None

    @field_validator("metrics")
    @classmethod
    def _registered(cls, metrics: dict[str, Metric]) -> dict[str, Metric]:
        for name in metrics:
            quantity(name)
        return metrics

    @field_validator("artifact")
    @classmethod
    def _inside_the_run(cls, artifact: str | None) -> str | None:
        if artifact is not None:
            path = PurePosixPath(artifact)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"artifact {artifact!r} is not a path inside the run folder")
        return artifact


class Outcomes(Sequence[Outcome]):
    """Outcomes of one study, in the order of its trials."""

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self._outcomes = tuple(outcomes)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> "Outcomes": ...
    def __getitem__(self, index: int | slice) -> "Outcome | Outcomes":
        return Outcomes(self._outcomes[index]) if isinstance(index, slice) else self._outcomes[index]

    def __len__(self) -> int:
        return len(self._outcomes)

    def __repr__(self) -> str:
        return f"Outcomes({len(self)}: {', '.join(dict.fromkeys(o.trial.variant for o in self))})"

    def where(self, variant: str | None = None, **setting: Scalar) -> "Outcomes":
        """Those of a variant whose setting has all the given values: ``where("snl", budget=400)``."""

        def matches(outcome: Outcome) -> bool:
            trial = outcome.trial
            return variant in (None, trial.variant) and all(
                key in trial.setting and trial.setting[key] == value for key, value in setting.items()
            )

        return Outcomes(outcome for outcome in self if matches(outcome))

    def settings(self, key: str) -> list[SettingValue]:
        """Values of a setting, each once, in order of appearance; outcomes without it do not count."""
        return list(dict.fromkeys(o.trial.setting[key] for o in self if key in o.trial.setting))

    def values(self, name: str) -> list[float]:
        """Values of a quantity, ordered by seed.

        Raises:
            UnknownQuantity: no such quantity.
            MissingOutcome: there is no outcome here, or one lacks the quantity.
        """
        quantity(name)
        if not self._outcomes:
            raise MissingOutcome(f"no outcome to take {name} from")
        values = []
        for outcome in sorted(self, key=lambda outcome: outcome.trial.seed):
            if name not in outcome.metrics:
                raise MissingOutcome(f"the outcome of {outcome.trial} has no {name}")
            values.append(outcome.metrics[name].value)
        return values

    def paired(self, other: "Outcomes", name: str) -> tuple[list[float], list[float]]:
        """Values of a quantity here and in another cell, seed by seed, as :func:`compare` needs them.

        Raises:
            MissingOutcome: a seed has an outcome in one of the two only; or as :meth:`values` does.
        """
        values = self.values(name), other.values(name)
        ours, theirs = (sorted(outcome.trial.seed for outcome in cell) for cell in (self, other))
        if ours != theirs:
            raise MissingOutcome(
                f"{self[0].trial.variant} has the seeds {ours}, {other[0].trial.variant} has {theirs}"
            )
        return values

    def mean(self, name: str) -> float:
        """Mean of a quantity over these outcomes; raises as :meth:`values` does."""
        values = self.values(name)
        return math.fsum(values) / len(values)

    def cells(self) -> Iterator["Outcomes"]:
        """Groups that differ in their seed only, in order of appearance."""
        groups: dict[str, list[Outcome]] = {}
        for outcome in self:
            cell = canonical([outcome.trial.variant, outcome.trial.setting])
            groups.setdefault(cell, []).append(outcome)
        return map(Outcomes, groups.values())

    @property
    def variants(self) -> list[str]:
        """Names of the variants, in order of appearance."""
        return list(dict.fromkeys(outcome.trial.variant for outcome in self))

    @property
    def quantities(self) -> list[str]:
        """Names of the quantities that occur, in order of appearance."""
        return list(dict.fromkeys(name for outcome in self for name in outcome.metrics))
