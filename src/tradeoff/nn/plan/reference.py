"""Float64 reference execution of a plan: windows are gathered (im2col) and multiplied by BLAS.

It is the oracle for every engine, so it favors plainness; a ResNet-18 on 16 images of 32x32 takes seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tradeoff.nn.plan import operators as op
from tradeoff.nn.plan.errors import PlanError
from tradeoff.nn.plan.operators import Floats, Operator, Plan, Shape

_COLUMN_BYTES = 1 << 26  # gathered windows of one step: bounds memory, and stays near the cache


def evaluate(plan: Plan, x: NDArray[Any]) -> Floats:
    """The result of ``plan`` for a batch; see :meth:`Plan.evaluate`."""
    result = None
    for operator, value in execute(plan, x):
        if operator.name == plan.output:
            result = value
    assert result is not None  # a plan's output is one of its operators
    return result


def calibrate(plan: Plan, x: NDArray[Any]) -> dict[str, float]:
    """Largest absolute value of every operator's output over a batch: what fixed point has to hold.

    Args:
        x: (batch, *input_shape), typical inputs.
    """
    return {operator.name: float(np.abs(value).max(initial=0.0)) for operator, value in execute(plan, x)}


def execute(plan: Plan, x: NDArray[Any]) -> Iterator[tuple[Operator, Floats]]:
    """Yield every operator with its value (batch, *shape), dropping values after their last use.

    Raises:
        PlanError: ``x`` has another shape than the plan's input, or the weights were removed.
        ValueError: ``x`` holds NaN or infinity.
    """
    if not plan.has_weights:
        raise PlanError("this plan is the public view without weights; only the model owner can evaluate")
    x = np.asarray(x, dtype=np.float64)
    if x.shape[1:] != plan.input_shape or x.ndim != len(plan.input_shape) + 1:
        raise PlanError(
            f"input of shape {x.shape}, expected (batch, {', '.join(map(str, plan.input_shape))})"
        )
    if not np.isfinite(x).all():
        raise ValueError("the input holds NaN or infinity")
    last_use = {name: operator.name for operator in plan for name in operator.inputs}
    values: dict[str, Floats] = {plan.operators[0].name: x}
    for operator in plan:
        if not isinstance(operator, op.Input):
            values[operator.name] = apply(operator, *(values[name] for name in operator.inputs))
        yield operator, values[operator.name]
        for name in {*operator.inputs}:
            if last_use[name] == operator.name:
                del values[name]


def apply(operator: Operator, *inputs: Floats) -> Floats:
    """The value of one operator for values of its inputs, each (batch, *shape)."""
    result: Floats = _IMPLEMENTATIONS[type(operator)](operator, *inputs)
    return result


_Implementation = Callable[..., Floats]
_IMPLEMENTATIONS: dict[type[Operator], _Implementation] = {}
_F = TypeVar("_F", bound=_Implementation)


def _implements(kind: type[Operator]) -> Callable[[_F], _F]:
    def register(function: _F) -> _F:
        _IMPLEMENTATIONS[kind] = function
        return function

    return register


def _channelwise(values: Floats, x: Floats) -> Floats:
    """View (channels,) so that it broadcasts along dimension 1 of ``x``."""
    return values.reshape(-1, *(1,) * (x.ndim - 2))


def _pad(x: Floats, padding: Shape, value: float) -> Floats:
    if not any(padding):
        return x
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], constant_values=value)


def _taps(x: Floats, kernel: Shape, stride: Shape, dilation: Shape) -> Iterator[tuple[Shape, Floats]]:
    """For each position in the window, the elements of padded ``x`` that it meets in every window."""
    size = op.window_output(x.shape[2:], kernel, stride, (0,) * len(kernel), dilation)
    for offset in itertools.product(*(range(k) for k in kernel)):
        slices = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, dilation, size, stride, strict=True)
        )
        yield offset, x[(slice(None), slice(None), *slices)]


@_implements(op.Convolution)
def _convolution(operator: op.Convolution, x: Floats) -> Floats:
    padded = _pad(x, operator.padding, 0.0)
    out_channels, size = operator.shape[0], operator.shape[1:]
    weight = operator.weight.reshape(operator.groups, out_channels // operator.groups, -1)
    column_bytes = 8 * x.shape[1] * math.prod(operator.kernel) * math.prod(size)
    step = max(1, _COLUMN_BYTES // column_bytes)
    result = np.empty((len(x), *operator.shape))
    for start in range(0, len(x), step):
        columns = _columns(padded[start : start + step], operator)
        result[start : start + step] = (weight @ columns).reshape(-1, *operator.shape)
    if operator.bias is not None:
        result += _channelwise(operator.bias, result)
    return result


def _columns(x: Floats, operator: op.Convolution) -> Floats:
    """im2col: (batch, groups, group channels * window, positions) of padded ``x``."""
    taps = _taps(x, operator.kernel, operator.stride, operator.dilation)
    stacked = np.stack([values for _, values in taps], axis=2)
    return stacked.reshape(len(x), operator.groups, -1, math.prod(operator.shape[1:]))


@_implements(op.Linear)
def _linear(operator: op.Linear, x: Floats) -> Floats:
    result: Floats = x @ operator.weight.T
    return result if operator.bias is None else result + operator.bias


@_implements(op.Affine)
def _affine(operator: op.Affine, x: Floats) -> Floats:
    return x * _channelwise(operator.scale, x) + _channelwise(operator.shift, x)


@_implements(op.ReLU)
def _relu(operator: op.ReLU, x: Floats) -> Floats:
    return np.maximum(x, 0.0)


@_implements(op.Polynomial)
def _polynomial(operator: op.Polynomial, x: Floats) -> Floats:
    return _horner(operator.coefficients, x)


def _horner(coefficients: Floats, x: Floats) -> Floats:
    result = np.zeros_like(x)
    for row in coefficients[::-1]:
        result = result * x + _channelwise(row, x)
    return result


@_implements(op.MaskedReLU)
def _masked_relu(operator: op.MaskedReLU, x: Floats) -> Floats:
    others = x if operator.coefficients is None else _horner(operator.coefficients, x)
    return np.where(operator.mask, np.maximum(x, 0.0), others)


@_implements(op.MaxPool)
def _max_pool(operator: op.MaxPool, x: Floats) -> Floats:
    result = np.full((len(x), *operator.shape), -np.inf)
    padded = _pad(x, operator.padding, -np.inf)
    for _, values in _taps(padded, operator.kernel, operator.stride, operator.dilation):
        np.maximum(result, values, out=result)
    return result


@_implements(op.SumPool)
def _sum_pool(operator: op.SumPool | op.AveragePool, x: Floats) -> Floats:
    result = np.zeros((len(x), *operator.shape))
    padded = _pad(x, operator.padding, 0.0)
    for _, values in _taps(padded, operator.kernel, operator.stride, (1,) * len(operator.kernel)):
        result += values
    return result


@_implements(op.AveragePool)
def _average_pool(operator: op.AveragePool, x: Floats) -> Floats:
    total = _sum_pool(operator, x)
    if operator.count_include_pad:
        return total / math.prod(operator.kernel)
    return total / _sum_pool(operator, np.ones((1, *x.shape[1:])))


@_implements(op.Add)
def _add(operator: op.Add, left: Floats, right: Floats) -> Floats:
    return left + right


@_implements(op.Concatenate)
def _concatenate(operator: op.Concatenate, *inputs: Floats) -> Floats:
    return np.concatenate(inputs, axis=operator.dim + 1)


@_implements(op.Flatten)
def _flatten(operator: op.Flatten, x: Floats) -> Floats:
    return x.reshape(len(x), *operator.shape)


@_implements(op.ArgMax)
def _arg_max(operator: op.ArgMax, x: Floats) -> Floats:
    return np.asarray(np.argmax(x, axis=1), dtype=np.float64)
