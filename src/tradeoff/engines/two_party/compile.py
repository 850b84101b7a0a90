"""From a network to a program: tracing, rewriting, range checks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.two_party.errors import RangeExceeded
from tradeoff.engines.two_party.program import Options, Program
from tradeoff.engines.two_party.steps import Activation, MaxPool
from tradeoff.nn import plan as op

if TYPE_CHECKING:
    from torch import nn

MARGIN = 4.0
"""Calibrated magnitudes are multiplied by this: unseen inputs may go beyond what was seen."""


def compile(
    model: nn.Module | op.Plan,
    input_shape: tuple[int, ...] | None = None,
    *,
    ring_bits: int = 64,
    frac_bits: int | None = None,
    weights: Literal["private", "public"] = "private",
    coefficients: Literal["private", "public"] | None = None,
    truncation: Literal["dealer", "local"] = "dealer",
    radix: Literal[2, 4] = 4,
    optimize: bool = True,
    calibration: NDArray[Any] | None = None,
) -> Program:
    """Prepare a network for two-party inference.

    Args:
        model: a torch module, or a plan.
        input_shape: per image, for a torch module.
        ring_bits: 64, or 32 (half the bytes; values must stay small).
        frac_bits: fractional bits; 16 by default in the 64-bit ring, 8 in the 32-bit one.
        weights: ``private``, or ``public`` (linear layers then cost nothing).
        coefficients: the same for polynomial activations; as the weights by default.
        truncation: ``dealer``, or ``local`` (for comparison: rare gross errors).
        radix: 4 or 2, of the comparison tree.
        optimize: move max pooling before ReLU and divisors into weights; False executes layer by layer.
        calibration: typical inputs (images, *input_shape) for the range checks; standard normal ones by
            default.

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
        >>> program = compile(model, (1, 2, 2))
        >>> [step.kind for step in program.steps]
        ['input', 'flatten', 'linear', 'relu', 'reveal']
    """
    plan = model if isinstance(model, op.Plan) else _trace(model, input_shape)
    if optimize:
        plan = op.fold_average_pool(op.swap_relu_maxpool(plan))
    frac = (16 if ring_bits == 64 else 8) if frac_bits is None else frac_bits
    options = Options(ring_bits, frac, weights, coefficients or weights, truncation, radix)
    if calibration is None:
        calibration = np.random.default_rng(0).standard_normal((4, *plan.input_shape))
    largest = op.calibrate(plan, calibration)
    options = replace(_with_split(plan, options, largest), integer_bits=_integer_bits(plan))
    program = Program(plan, options)
    _check_ranges(program, largest)
    return program


def _trace(model: nn.Module, input_shape: tuple[int, ...] | None) -> op.Plan:
    if input_shape is None:
        raise ValueError("a torch model needs its input_shape, without the batch")
    return op.trace(model, tuple(input_shape))


def _with_split(plan: op.Plan, options: Options, largest: dict[str, float]) -> Options:
    """Name the polynomials that may not fit a single truncation."""
    limit = 2.0 ** (options.ring_bits - 2 - 3 * options.frac_bits)
    split = tuple(
        operator.name
        for operator in plan
        if isinstance(operator, op.Polynomial | op.MaskedReLU) and largest[operator.name] * MARGIN >= limit
    )
    return Options.from_json({**options.to_json(), "split": list(split)})


def _integer_bits(plan: op.Plan) -> int:
    """Bits for sign and integer part of every weight and coefficient: 4, or what the largest needs."""
    factors = [
        getattr(operator, key)[1 if role == "coefficients" else 0 :]  # a constant is added, not multiplied
        for operator in plan
        for key, role in operator.roles.items()
        if key in ("weight", "scale", "coefficients") and getattr(operator, key) is not None
    ]
    largest = max((float(np.abs(factor).max(initial=0)) for factor in factors), default=0.0)
    rounded = largest * (1 + 2.0**-20)  # encoding may round up
    return max(4, int(np.floor(np.log2(rounded))) + 2 if rounded >= 1 else 0)


def _check_ranges(program: Program, largest: dict[str, float]) -> None:
    """Every value must stay below 2^(L-2) as an integer, the input of a padded max pooling below 2^(L-3)."""
    bits = program.ring.bits
    magnitudes = dict(largest)
    for step in program.steps:
        magnitudes.setdefault(step.name, max((magnitudes[name] for name in step.inputs), default=0.0))
        magnitude = magnitudes[step.name] * MARGIN
        limit = 2.0 ** (bits - 2 - step.frac)
        if isinstance(step, MaxPool):
            magnitude, limit = magnitudes[step.inputs[0]] * MARGIN, limit / 2
        if isinstance(step, Activation) and step.degree > 1 and not step.single:
            square = (magnitudes[step.inputs[0]] * MARGIN) ** 2
            if square >= 2.0 ** (bits - 2 - 2 * program.ring.frac_bits):
                raise RangeExceeded(step.name, square, 2.0 ** (bits - 2 - 2 * program.ring.frac_bits))
        if magnitude >= limit and step.kind != "argmax":
            raise RangeExceeded(step.name, magnitude, limit)
