"""The slow, obvious evaluation of a compiled program: signed integers in the clear, truncations rounding
down.

It is the oracle of the protocols: an operator without truncation must agree exactly, one with a truncation to
one unit in the last place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.two_party.program import Program
from tradeoff.engines.two_party.steps import Input, Integers


def evaluate_steps(program: Program, x: NDArray[Any]) -> dict[str, Integers]:
    """The integer value of every step on inputs (batch, *input_shape); needs the weights."""
    values: dict[str, Integers] = {}
    for step in program.steps:
        if isinstance(step, Input):
            values[step.name] = program.ring.integers(program.ring.encode(x, step.frac, name="input"))
        else:
            values[step.name] = step.reference(*(values[name] for name in step.inputs))
    return values


def evaluate(program: Program, x: NDArray[Any]) -> NDArray[np.float64]:
    """The network's result in fixed-point arithmetic, as real numbers."""
    last = program.steps[-1]
    return np.ldexp(evaluate_steps(program, program.check_input(x))[last.name].astype(np.float64), -last.frac)
