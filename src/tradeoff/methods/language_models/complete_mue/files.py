"""Bases and targets as YAML files: for ``tradeoff complete-mue plan``, without weights."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import torch

from tradeoff.core.errors import RecipeError
from tradeoff.core.recipe import YAML_LIMIT, read_yaml
from tradeoff.core.suggest import did_you_mean
from tradeoff.nn.decoder import Decoder, DecoderConfig, MoEConfig

from .errors import TransferError
from .plan import Base, Plan, make_plan
from .rules import Tuned

C = TypeVar("C")


def plan_files(base: Path, target: Path) -> Plan:
    """The plan of a target file for a base file.

    A base has the keys ``model``, ``tuned``, ``batch_tokens`` and ``total_tokens``; a target has ``model``
    and may have the numbers of tokens. ``model`` holds fields of
    :class:`~tradeoff.nn.decoder.DecoderConfig`, a mixture as the mapping ``ffn`` with those of
    ``MoEConfig``; ``tuned`` those of :class:`Tuned`.

    Raises:
        TransferError: a file cannot be read, a key is unknown or missing, or the two do not fit together.
    """
    old = _read(base, required=("model", "tuned", "batch_tokens", "total_tokens"))
    new = _read(target, required=("model",), optional=("batch_tokens", "total_tokens"))
    try:
        tuned = Tuned(**old["tuned"])
    except (pydantic.ValidationError, TypeError) as error:
        raise TransferError(f"{base}: tuned: {_faults(error)}") from None
    small = Base(_model(old["model"], base), tuned, old["batch_tokens"], old["total_tokens"])
    tokens = {key: new[key] for key in ("batch_tokens", "total_tokens") if key in new}
    return make_plan(_model(new["model"], target), small, **tokens)


def _read(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = read_yaml(file.read(YAML_LIMIT + 1), str(path))
    except OSError as error:
        raise TransferError(f"cannot read {path}: {error.strerror or error}") from error
    except RecipeError as error:
        raise TransferError(str(error)) from None
    _check_keys(values, (*required, *optional), str(path))
    missing = [key for key in required if key not in values]
    if missing:
        raise TransferError(f"{path} has no {', '.join(missing)}")
    for key in ("batch_tokens", "total_tokens"):
        number = values.get(key, 1)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TransferError(f"{path}: {key} is {number!r}; it must be a number")
    return values


def _check_keys(values: Any, known: tuple[str, ...], place: str) -> None:
    if not isinstance(values, dict):
        raise TransferError(f"{place} must be a mapping of names to values")
    for key in values:
        if key not in known:
            raise TransferError(f"{place}: unknown key {key!r}{did_you_mean(str(key), known)}")


def _model(values: Any, path: Path) -> Decoder:
    """The decoder that a file describes, on the device that holds no numbers."""
    config = _configuration(DecoderConfig, values, f"{path}: model")
    try:
        with torch.device("meta"):
            return Decoder(config)
    except RuntimeError as error:
        raise TransferError(f"{path}: no tensor can be as large as this model's: {error}") from None


def _configuration(kind: type[C], values: Any, place: str) -> C:
    _check_keys(values, tuple(field.name for field in dataclasses.fields(kind)), place)  # type: ignore[arg-type]
    if isinstance(values.get("ffn"), dict):
        values = {**values, "ffn": _configuration(MoEConfig, values["ffn"], f"{place}.ffn")}
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise TransferError(f"{place}: {error}") from error


def _faults(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
    return str(error)
