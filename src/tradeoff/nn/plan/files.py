"""Plans as bytes and files: safetensors whose metadata holds the structure as JSON.

Parsing is bounded and every field is checked, since a plan may come from another party.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tradeoff.nn.plan.errors import PlanError
from tradeoff.nn.plan.operators import OPERATORS, Operator, Plan, placeholder

FORMAT = "tradeoff-plan-1"
MAX_HEADER = 1 << 24
MAX_BYTES = 1 << 34
_MAX_SIZE = 1 << 40  # elements of one value: far above any network, far below overflow
_DTYPES = {"weight": np.float64, "coefficients": np.float64, "mask": np.bool_}


def dumps(plan: Plan) -> bytes:
    """The plan as safetensors bytes; weights that were removed take no space."""
    tensors = {
        f"{operator.name}:{key}": np.ascontiguousarray(getattr(operator, key))
        for operator in plan
        for key, role in operator.roles.items()
        if _stored(getattr(operator, key), role)
    }
    structure = {**plan.public(), "format": FORMAT, "has_weights": plan.has_weights}
    return save_tensors(tensors, metadata={"plan": json.dumps(structure)})


def loads(data: bytes) -> Plan:
    """Read what :func:`dumps` wrote.

    Raises:
        PlanError: the bytes are not a plan, are truncated, too large, or inconsistent.
    """
    structure = _structure(data)
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"not a plan: {error}") from error
    if structure.get("format") != FORMAT or not isinstance(structure.get("has_weights"), bool):
        raise PlanError(f"not a plan of format {FORMAT}")
    entries = structure.get("operators")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PlanError("not a plan: no list of operators")
    operators = tuple(_operator(entry, tensors, structure["has_weights"]) for entry in entries)
    if tensors:
        raise PlanError(f"the plan holds a tensor that no operator uses: {next(iter(tensors))!r}")
    input_shape = _sizes(structure.get("input_shape"), "input_shape")
    plan = Plan(operators, input_shape, _text(structure.get("output"), "output"), structure["has_weights"])
    if plan.public() != {key: structure[key] for key in ("input_shape", "output", "operators")}:
        raise PlanError("the masks differ from the digests that were stored with them")
    return plan


def save(plan: Plan, path: Path | str) -> None:
    """Write the plan to one file."""
    Path(path).write_bytes(dumps(plan))


def load(path: Path | str) -> Plan:
    """Read a plan from a file.

    Raises:
        PlanError: the file is not a plan or exceeds 16 GiB.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise PlanError(f"{path} is larger than {MAX_BYTES} bytes")
    return loads(path.read_bytes())


def _stored(array: NDArray[Any] | None, role: str) -> bool:
    """Whether an array is here, and not a placeholder."""
    return array is not None and (role == "mask" or not _is_placeholder(array))


def _is_placeholder(array: NDArray[Any]) -> bool:
    return not any(array.strides) and array.size > 0 and bool(np.isnan(array.flat[0]))


def _structure(data: bytes) -> dict[str, Any]:
    """The JSON in the metadata of safetensors bytes."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise PlanError("not a plan: truncated, or the header is too large")
    try:
        header = json.loads(data[8 : 8 + length])
        structure = json.loads(header["__metadata__"]["plan"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlanError("not a plan: the header holds no structure") from error
    if not isinstance(structure, dict):
        raise PlanError("not a plan: the structure is not an object")
    return structure


def _operator(entry: dict[str, Any], tensors: dict[str, NDArray[Any]], has_weights: bool) -> Operator:
    """Build one operator, taking its arrays out of ``tensors``."""
    name, kind = _text(entry.get("name"), "operator name"), entry.get("kind")
    cls = OPERATORS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise PlanError(f"{name}: unknown operator kind {kind!r}")
    roles = cls.roles
    if set(entry) != {"kind", *(f.name for f in fields(cls))}:
        raise PlanError(f"{name}: the fields are not those of {kind}")
    values: dict[str, Any] = {}
    for f in fields(cls):
        place = f"{name}.{f.name}"
        if entry[f.name] is None and f.type != "Floats | None":
            raise PlanError(f"{place} is missing")
        if f.name in roles:
            values[f.name] = _array(entry[f.name], tensors, f"{name}:{f.name}", roles[f.name], has_weights)
        elif f.name == "name":
            values[f.name] = name
        elif f.name == "inputs":
            values[f.name] = _names(entry[f.name], place)
        elif f.type == "Shape":
            values[f.name] = _sizes(entry[f.name], place)
        elif f.type == "bool" and isinstance(entry[f.name], bool):
            values[f.name] = entry[f.name]
        elif f.type == "int":
            values[f.name] = _sizes([entry[f.name]], place)[0]
        else:
            raise PlanError(f"{place}: {entry[f.name]!r} is of the wrong type")
    return cls(**values)


def _array(
    entry: Any, tensors: dict[str, NDArray[Any]], key: str, role: str, has_weights: bool
) -> NDArray[Any] | None:
    """One array of an operator: stored, removed (a placeholder), or None."""
    if entry is None:
        return None
    shape = _sizes(entry.get("shape") if isinstance(entry, dict) else None, key)
    array = tensors.pop(key, None)
    if array is None:
        if has_weights or role == "mask":
            raise PlanError(f"the plan lacks tensor {key!r}")
        return placeholder(shape)
    if array.shape != shape or array.dtype != _DTYPES[role]:
        raise PlanError(
            f"tensor {key!r} is {array.dtype} {array.shape}, expected {_DTYPES[role].__name__} {shape}"
        )
    if role != "mask" and not np.isfinite(array).all():
        raise PlanError(f"tensor {key!r} holds NaN or infinity")
    return array


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        raise PlanError(f"{place}: {value!r} is not a name")
    return value


def _names(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PlanError(f"{place}: {value!r} is not a list of names")
    return tuple(_text(name, place) for name in value)


def _sizes(value: Any, place: str) -> tuple[int, ...]:
    """A short list of non-negative integers whose product stays in bounds."""
    if not isinstance(value, list) or len(value) > 8:
        raise PlanError(f"{place}: {value!r} is not a list of sizes")
    product = 1
    for size in value:
        if type(size) is not int or not 0 <= size <= _MAX_SIZE:
            raise PlanError(f"{place}: {size!r} is not a size")
        product *= max(size, 1)
    if product > _MAX_SIZE:
        raise PlanError(f"{place}: {value!r} is too large")
    return tuple(value)
