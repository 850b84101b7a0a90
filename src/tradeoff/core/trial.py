"""A trial: one cell of a study."""

from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from .files import digest


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as Python's; else their integers would become floats, with other keys."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


SettingValue = bool | int | FiniteFloat | str | None


class Trial(BaseModel):
    """One cell of a study: variant x setting x seed. Hashable; the same trial gives the same outcome.

    Attributes:
        variant: the method or one of its baselines.
        setting: what this cell varies, such as ``{"budget": 400}``; JSON scalars only.
        seed: of everything random in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str = Field(min_length=1, max_length=200)
    setting: dict[str, Annotated[SettingValue, BeforeValidator(_plain)]] = {}
    seed: int = Field(default=0, ge=0)

    @cached_property
    def key(self) -> str:
        """16 hexadecimal characters that name this trial in the store."""
        return digest(self.model_dump(mode="json"))

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def cell(self) -> str:
        """For people, without the seed: ``autorep budget=400``."""
        return " ".join([self.variant, *(f"{key}={value}" for key, value in self.setting.items())])

    def __str__(self) -> str:
        """For people: ``autorep budget=400 seed=0``."""
        return f"{self.cell} seed={self.seed}"
