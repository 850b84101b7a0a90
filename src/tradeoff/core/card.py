"""The method card: structured facts in the front matter of ``card.md``, prose below."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from .errors import CardError, RecipeError, UnknownQuantity
from .quantities import quantity
from .recipe import YAML_LIMIT, read_yaml


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Paper(_Facts):
    """Where the method was published."""

    title: str = Field(min_length=1)
    authors: str = Field(min_length=1)
    venue: str = Field(min_length=1)
    year: int = Field(ge=1950, le=2100)
    url: str = Field(pattern=r"^https?://")


class PaperResult(_Facts):
    """One number of the paper; never mixed with ours in a column."""

    setting: str
    quantity: str
    value: FiniteFloat | str
    hardware: str
    source: str

    @field_validator("quantity")
    @classmethod
    def _registered(cls, name: str) -> str:
        return quantity(name).name


class Frontier(_Facts):
    """The two quantities that the method trades.

    Attributes:
        within: settings, such as the data set, whose values are not compared with each other: each of them
            has a frontier of its own.
    """

    x: str
    y: str
    within: list[str] = []

    @field_validator("x", "y")
    @classmethod
    def _registered(cls, name: str) -> str:
        return quantity(name).name


class Card(_Facts):
    """Facts about a method, read from the front matter of its ``card.md``.

    Attributes:
        name: on the command line and in ``runs/``; the folder's name with dashes.
        title: one line that says what it is.
        paper: where it was published.
        code: address of the authors' code, or None.
        summary: what it does for its user, in a sentence or two.
        quantities: registered quantities that its outcomes hold.
        frontier: the two that it trades.
        paper_results: the paper's numbers, with their hardware.
        body: the Markdown below the front matter.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=60)
    title: str = Field(min_length=1)
    paper: Paper
    code: str | None = None
    summary: str = Field(min_length=1)
    quantities: list[str] = Field(min_length=1)
    frontier: Frontier
    paper_results: list[PaperResult] = []
    body: str = ""

    @field_validator("quantities")
    @classmethod
    def _registered(cls, names: list[str]) -> list[str]:
        return [quantity(name).name for name in names]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a card.

        Raises:
            CardError: the file is absent, or a fact is missing or malformed; the message names it.
        """
        try:
            with path.open("rb") as file:
                text = file.read(2 * YAML_LIMIT).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CardError(f"cannot read card {path}: {error}") from error
        if not text.startswith("---\n") or "\n---\n" not in text[3:]:
            raise CardError(f"{path}: must start with facts between two lines of ---")
        facts, body = text[4:].split("\n---\n", 1)
        try:
            return cls(**read_yaml(facts.encode(), "facts"), body=body.strip())
        except (RecipeError, UnknownQuantity) as error:
            raise CardError(f"{path}: {error}") from None
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
            raise CardError(f"{path}: {faults}") from None
