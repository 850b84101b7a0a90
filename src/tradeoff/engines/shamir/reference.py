"""The slow, obvious evaluation of a compiled program: Python integers in the clear, truncations rounding
down.

It is the oracle of the protocols: an operator without truncation must agree exactly, one with a truncation to
one unit in the last place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.options import TRUNCATION_BITS
from tradeoff.engines.shamir.program import Program
from tradeoff.engines.shamir.steps import Input, Integers


def evaluate_steps(program: Program, x: NDArray[Any]) -> dict[str, Integers]:
    """The integer value of every step on inputs (batch, *input_shape); needs the weights."""
    values: dict[str, Integers] = {}
    for step in program.steps:
        if isinstance(step, Input):
            encoded = field.encode(x, step.frac, TRUNCATION_BITS, name="input")
            values[step.name] = field.integers(encoded).astype(object)
        else:
            values[step.name] = step.reference(*(values[name] for name in step.inputs))
    return values


def evaluate(program: Program, x: NDArray[Any]) -> NDArray[np.float64]:
    """The network's result in fixed-point arithmetic, as real numbers."""
    last = program.steps[-1]
    values = evaluate_steps(program, program.plan.check_input(x))[last.name]
    return np.ldexp(values.astype(np.float64), -last.frac)
