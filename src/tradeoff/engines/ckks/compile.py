"""From a network to an encrypted program: fully connected layers and quadratic activations.

Networks of other shapes are written with :class:`Builder` and :mod:`linear`, as the skeleton networks of
LinGCN are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.ckks import linear
from tradeoff.engines.ckks.errors import LevelExhausted, NoPrimes, PrecisionLost, RangeError
from tradeoff.engines.ckks.layouts import Layout, Vector, parse_layout, power_of_two
from tradeoff.engines.ckks.parameters import LIMITS, MAX_PRIME_BITS, Parameters
from tradeoff.engines.ckks.planning import Plan, plan
from tradeoff.engines.ckks.program import Builder, Multiply, Program, Rescale, Slots, Weighted
from tradeoff.engines.ckks.ranges import MARGIN, check_ranges, magnitudes, output_bound
from tradeoff.engines.ckks.simulation import simulated_error
from tradeoff.nn import plan as op

if TYPE_CHECKING:
    from torch import nn

MOST_SCALE_BITS = 40
SPECIAL_BITS = 7
"""That the special prime has more than the first: they take the uneven part from the noise of rotations."""
FEWEST_SCALE_BITS = 6
"""More than log2 of the ring degree: below, there are too few primes, and noise is all there is."""
NOISE_MARGIN = 4.0
"""The largest error of simulated inferences is multiplied by this."""
SIMULATED = 4
"""Inferences that are simulated."""


def compile(model: nn.Module | op.Plan, input_shape: tuple[int, ...] | None = None) -> Program:
    """An encrypted program for one input vector: networks of linear layers and polynomials up to degree 2.

    Args:
        model: a torch module, or a plan.
        input_shape: per input, for a torch module.

    Raises:
        UnsupportedLayer: the network has another operation; it is named.
        UntraceableModel: torch.fx cannot follow the network.

    Example:
        >>> import torch
        >>> program = compile(torch.nn.Linear(4, 3), (4,))
        >>> program.depth
        1
    """
    network = model if isinstance(model, op.Plan) else _trace(model, input_shape)
    features = int(np.prod(network.input_shape))
    room = max([features, *(o.shape[0] for o in network if isinstance(o, op.Linear))])
    build = Builder(power_of_two(room))
    values: dict[str, int] = {}
    for operator in network:
        with build.layer(operator.name):
            values[operator.name] = _lower(build, operator, values)
    size = int(np.prod(network.output_shape))
    layouts = Vector(features, room), Vector(size, room)
    return build.finish([values[network.output]], *map(str, layouts))


def prepare(program: Program, samples: NDArray[Any], **chosen: Any) -> Plan:
    """Parameters for a program, with ranges checked on typical inputs and a bound on the noise.

    Args:
        samples: inputs (samples, *shape of the program's input layout).
        chosen: as for :func:`tradeoff.engines.ckks.planning.plan`: ``preset="compact"``, ``scale_bits=...``.

    Raises:
        RangeError: a value may leave the modulus. LevelExhausted, InsecureParameters, ValueError.
    """
    made = plan(program, **chosen)
    layout = parse_layout(program.input_layout)
    largest = magnitudes(program, [named(program, layout, x) for x in np.asarray(samples, np.float64)])
    check_ranges(program, made.parameters, largest)
    few = [named(program, layout, x) for x in np.asarray(samples[:SIMULATED], np.float64)]
    noise = NOISE_MARGIN * simulated_error(program, made, few)
    return replace(made, output_bound=output_bound(program, largest), noise_bound=noise)


def smallest(
    program: Program, samples: NDArray[Any], *, error: float, max_log_n: int = 15, backend: str = "seal"
) -> Plan:
    """The smallest ring at which the noise of results stays below ``error``, at the largest scale it allows.

    Args:
        samples: typical inputs, as for :func:`prepare`.
        error: bound on the noise of a result, in its own units (:attr:`Plan.noise_bound`, which is cautious).

    Raises:
        LevelExhausted: no ring up to ``2^max_log_n`` has so many levels; it names how many the largest has.
        PrecisionLost: they have, but not with so little noise.
        ValueError: an error that is not positive.
    """
    if not error > 0:
        raise ValueError(f"error must be positive, not {error}")
    layout = parse_layout(program.input_layout)
    largest = magnitudes(program, [named(program, layout, x) for x in np.asarray(samples, np.float64)])
    head = max(4, math.ceil(math.log2(MARGIN * _last_values(program, largest))) + 1)
    tried = False
    for log_n, limit in sorted(LIMITS.items()):
        scale = min(MOST_SCALE_BITS, (limit - 2 * head - SPECIAL_BITS) // (program.depth + 2))
        if log_n > max_log_n or program.period > 1 << (log_n - 1) or scale < log_n + FEWEST_SCALE_BITS:
            continue
        tried, first = True, scale + head
        left = limit - first - program.depth * scale
        parameters = Parameters(log_n, program.depth, scale, first, min(left, MAX_PRIME_BITS))
        made = _within(program, parameters, samples, error, backend)
        if made is not None:
            return made
    if tried:
        raise PrecisionLost(f"no ring up to 2^{max_log_n} keeps the noise of results below {error:.3g}")
    room = (LIMITS[max_log_n] - 2 * head - SPECIAL_BITS) // (max_log_n + FEWEST_SCALE_BITS) - 2
    raise LevelExhausted("the program", program.depth, min(room, program.depth - 1))


def _last_values(program: Program, largest: NDArray[np.float64]) -> float:
    """The largest value that the first prime, less the scale, must hold: at the last level, or about to be
    rescaled to it."""
    found = [1.0]
    products: list[bool] = []  # whether a value has the scale of a product
    for index, step in enumerate(program.operations):
        fresh = isinstance(step, Weighted | Multiply)
        products.append(
            fresh or (not isinstance(step, Rescale) and any(products[read] for read in step.reads))
        )
        if program.consumed[index] + products[index] >= program.depth:
            found.append(float(largest[index]))
    return max(found)


def _within(
    program: Program, parameters: Parameters, samples: NDArray[Any], error: float, backend: str
) -> Plan | None:
    """A plan with these parameters, if values fit and the noise stays below ``error``."""
    try:
        made = prepare(program, samples, parameters=parameters, backend=backend)
    except (RangeError, NoPrimes):
        return None
    return made if made.noise_bound <= error else None


def named(program: Program, layout: Layout, x: NDArray[np.float64]) -> dict[str, Slots]:
    """The input vectors of a tensor by name."""
    return dict(zip(program.inputs, layout.pack(x), strict=True))


def _trace(model: nn.Module, input_shape: tuple[int, ...] | None) -> op.Plan:
    if input_shape is None:
        raise ValueError("a torch model needs its input_shape, without the batch")
    return op.trace(model, tuple(input_shape))


def _lower(build: Builder, operator: op.Operator, values: dict[str, int]) -> int:
    match operator:
        case op.Input():
            return build.input("x")
        case op.Flatten():
            return values[operator.inputs[0]]
        case op.Linear():
            result = linear.matrix_product(build, values[operator.inputs[0]], operator.weight)
            return _shifted(build, result, operator.bias)
        case op.Polynomial() if operator.degree <= 2 and len(operator.shape) == 1:
            return _quadratic(build, values[operator.inputs[0]], operator)
        case op.Affine() if len(operator.shape) == 1:
            scaled = build.rescaled([(values[operator.inputs[0]], _padded(build, operator.scale))])
            return _shifted(build, scaled, operator.shift)
        case op.Add():
            return build.add([values[name] for name in operator.inputs])
    raise op.UnsupportedLayer(
        f"{operator.name} ({type(operator).__name__})",
        "under CKKS networks consist of linear layers and polynomials of degree 2 at most, on vectors",
    )


def _quadratic(build: Builder, x: int, operator: op.Polynomial) -> int:
    """``c0 + c1 x + c2 x^2``: 2 levels; ``x (c1 + c2 x)`` leaves the constant for the end."""
    rows = [_padded(build, row) for row in operator.coefficients]
    rows += [np.zeros(build.period)] * (3 - len(rows))
    if not rows[2].any():
        return build.add_plain(build.rescaled([(x, rows[1])]), rows[0])
    inner = build.add_plain(build.rescaled([(x, rows[2])]), rows[1])
    return build.add_plain(build.multiply(x, inner), rows[0])


def _shifted(build: Builder, x: int, bias: NDArray[np.float64] | None) -> int:
    return x if bias is None else build.add_plain(x, _padded(build, bias))


def _padded(build: Builder, values: NDArray[np.float64]) -> Slots:
    vector = np.zeros(build.period)
    vector[: len(values)] = values
    return vector
