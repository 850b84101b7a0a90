"""The slow, obvious evaluation of a program: NumPy on plain vectors, no scheme, no levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tradeoff.engines.ckks.program import (
    Add,
    AddPlain,
    Input,
    Lower,
    Multiply,
    Program,
    Rescale,
    Rotate,
    Slots,
    Weighted,
)


def values(program: Program, inputs: Mapping[str, Slots]) -> list[Slots]:
    """The value of every operation for vectors (period,) by input name."""
    found: list[Slots] = []
    for op in program.operations:
        found.append(_value(op, found, program, inputs))
    return found


def evaluate(program: Program, inputs: Mapping[str, Slots]) -> list[Slots]:
    """The results, as vectors."""
    found = values(program, inputs)
    return [found[index] for index in program.outputs]


def _value(op: Any, found: list[Slots], program: Program, inputs: Mapping[str, Slots]) -> Slots:
    match op:
        case Input():
            return np.asarray(inputs[op.name], np.float64)
        case Rotate():
            return np.roll(found[op.x], -op.step)
        case Weighted():
            total = np.zeros(program.period)
            for x, vector in zip(op.xs, op.vectors, strict=True):
                total = total + program.vectors[vector] * found[x]
            return total
        case Multiply():
            return found[op.x] * found[op.y]
        case Rescale() | Lower():
            return found[op.x]
        case Add():
            total = np.zeros(program.period)
            for x, sign in zip(op.xs, op.signs, strict=True):
                total = total + sign * found[x]
            return total
        case AddPlain():
            return found[op.x] + program.vectors[op.vector]
    raise AssertionError(op)
