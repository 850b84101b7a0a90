"""From a network to a program: tracing, rewriting, range checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.shamir.errors import RangeExceeded
from tradeoff.engines.shamir.options import TRUNCATION_BITS, Options
from tradeoff.engines.shamir.program import Program
from tradeoff.engines.shamir.steps import Activation, ArgMax, MaxPool, ReLU
from tradeoff.nn import plan as op

if TYPE_CHECKING:
    from torch import nn

MARGIN = 4.0
"""Calibrated magnitudes are multiplied by this: unseen inputs may go beyond what was seen."""


def compile(
    model: nn.Module | op.Plan,
    input_shape: tuple[int, ...] | None = None,
    *,
    calibration: NDArray[Any] | None = None,
    optimize: bool = True,
    **options: Any,
) -> Program:
    """Prepare a network for inference among servers that hold Shamir shares.

    Args:
        model: a torch module, or a plan.
        input_shape: per image, for a torch module.
        calibration: typical inputs (images, *input_shape) for the range checks; standard normal ones by
            default. What goes beyond the checked ranges at run time is not noticed: results are then wrong.
        optimize: move max pooling before ReLU, which it commutes with; False executes layer by layer.
        options: fields of :class:`Options`.

    Returns:
        the program, weights included.

    Raises:
        UnsupportedLayer: the network has an operation without a protocol.
        UntraceableModel: torch.fx cannot follow the network.
        FixedPointOverflow: a weight does not fit.
        RangeExceeded: an activation may not fit.
        ValueError: an option is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> program = compile(model, (1, 2, 2), servers=5, threshold=2)
        >>> [step.kind for step in program.steps]
        ['input', 'flatten', 'linear', 'truncation', 'relu', 'reveal']
    """
    chosen = Options(**options)
    plan = model if isinstance(model, op.Plan) else _trace(model, input_shape)
    if optimize:
        plan = op.swap_relu_maxpool(plan)
    if calibration is None:
        calibration = np.random.default_rng(0).standard_normal((4, *plan.input_shape))
    program = Program(plan, chosen)
    _check_ranges(program, op.calibrate(plan, calibration))
    return program


def _trace(model: nn.Module, input_shape: tuple[int, ...] | None) -> op.Plan:
    if input_shape is None:
        raise ValueError("a torch model needs its input_shape, without the batch")
    return op.trace(model, tuple(input_shape))


def _check_ranges(program: Program, largest: dict[str, float]) -> None:
    """Every value stays below 2^58 as an integer, compared ones and their differences below 2^bound_bits."""
    options, magnitudes = program.options, dict(largest)
    for step in program.steps:
        inputs = [magnitudes[name] * MARGIN for name in step.inputs]
        magnitudes.setdefault(step.name, max((magnitudes[name] for name in step.inputs), default=0.0))
        compared = 2.0 ** (options.bound_bits - options.frac_bits)
        if isinstance(step, MaxPool | ArgMax) and max(inputs) >= compared / 2:
            raise RangeExceeded(step.name, max(inputs), compared / 2)
        if isinstance(step, ReLU | Activation) and max(inputs) >= compared:
            raise RangeExceeded(step.name, max(inputs), compared)
        limit = 2.0 ** (TRUNCATION_BITS - step.frac)
        if magnitudes[step.name] * MARGIN >= limit and not isinstance(step, ArgMax):
            raise RangeExceeded(step.name, magnitudes[step.name] * MARGIN, limit)
