"""Recipes: everything a study may vary, as a typed and documented object read from YAML."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import RecipeError
from .files import digest
from .suggest import did_you_mean

YAML_LIMIT = 256 * 1024
"""Bytes that a recipe or a card's front matter may have."""


class Recipe(BaseModel):
    """Base of every recipe: unknown keys are refused, and a recipe never changes after it was made.

    Subclasses document each field with ``Field(default, description=...)``; ``tradeoff show`` prints that.

    Raises:
        RecipeError: from the constructor, for an unknown key (naming the nearest valid one) or a bad value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True)

    seeds: int = Field(default=3, ge=1, le=10_000, description="trials run with the seeds 0 to seeds - 1")
    minutes: float = Field(gt=0, description="expected minutes on 2 cores", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(_explain(type(self), error)) from None
        # Parameters that are models of their own bring their own rules about what is a number.
        for place, value in _numbers(self.model_dump(mode="json")):
            if not math.isfinite(value):
                raise RecipeError(f"{place}: must be a finite number (got {value})")

    @property
    def hash(self) -> str:
        """Names the run folder. Neither ``seeds`` nor ``minutes`` enter: more seeds extend the same run."""
        return digest(self.model_dump(mode="json", exclude={"seeds", "minutes"}))

    @classmethod
    def load(cls, path: Path, changes: Sequence[str] = ()) -> Self:
        """Read a recipe from a YAML file.

        Args:
            path: the file.
            changes: ``key=value`` texts that replace values, keys dotted for nested ones, values as YAML.

        Raises:
            RecipeError: the file is absent or no mapping, a key is unknown or a value is wrong.
        """
        try:
            with path.open("rb") as file:
                text = file.read(YAML_LIMIT + 1)
        except OSError as error:
            raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
        values = read_yaml(text, str(path))
        for change in changes:
            _apply(values, change)
        try:
            return cls(**values)
        except RecipeError as error:
            raise RecipeError(f"recipe {path.stem}: {error}") from None


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (they can expand without bound) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise yaml.YAMLError(f"key {repeated!r} stands twice")
        return super().construct_mapping(node, deep)


def read_yaml(text: bytes, source: str) -> dict[str, Any]:
    """Parse a YAML mapping of unknown origin within bounds.

    Raises:
        RecipeError: too large, not YAML, or not a mapping of texts.
    """
    if len(text) > YAML_LIMIT:
        raise RecipeError(f"{source}: larger than {YAML_LIMIT} bytes")
    try:
        values = yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise RecipeError(f"{source}: nested too deep") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(f"{source}: must be a mapping of names to values")
    return values


def _apply(values: dict[str, Any], change: str) -> None:
    """Apply one ``key=value`` of the command line in place; pydantic gives the value its type later."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {change!r}: write key=value")
    *parents, last = key.strip().split(".")
    for part in parents:
        inner = values.get(part)
        values[part] = values = dict(inner) if isinstance(inner, dict) else {}
    values[last] = read_yaml(b"value: " + text.encode(), f"--set {key}")["value"]


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Each number in a JSON value, with its place as ``--set`` would name it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _numbers(item, f"{place}.{key}" if place else str(key))
    if isinstance(value, float):
        yield place, value


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """One line for each fault: which key, what is wrong, and the nearest valid name."""
    lines = []
    for fault in error.errors(include_url=False):
        place = ".".join(map(str, fault["loc"])) or "recipe"
        if fault["type"] == "extra_forbidden":
            name = str(fault["loc"][-1])
            lines.append(f"unknown key {place!r}{did_you_mean(name, _fields_at(model, fault['loc'][:-1]))}")
        else:
            shown = "" if fault["type"] == "missing" else f" (got {str(fault['input'])[:80]!r})"
            lines.append(f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}{shown}")
    return "; ".join(lines)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names that are valid inside the nested model that a fault's location leads to."""
    for part in location:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
