"""From a plan's operators to protocol steps: which fixed-point scale every value has, and where it is
truncated.

A product of two values with f fractional bits has 2f. They are dropped where a comparison or a product
follows; a sum of values at different scales multiplies the finer grained ones up, which is exact and local.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tradeoff.engines.shamir import field, steps
from tradeoff.engines.shamir.field import Elements
from tradeoff.engines.shamir.options import TRUNCATION_BITS, Options
from tradeoff.nn import plan as op
from tradeoff.nn.plan.windows import windows

SPARE_BITS = 8
"""Fractional bits beyond f that a linear layer accepts in its input without a truncation."""


@dataclass(frozen=True)
class Value:
    """Where a plan operator's result stands: the step that holds it, its per-image shape, fractional bits."""

    step: str
    shape: tuple[int, ...]
    frac: int


def lower(plan: op.Plan, options: Options) -> tuple[steps.Step, ...]:
    """The steps of a plan; the same whether the plan holds its weights or not."""
    lowering = _Lowering(plan, options)
    for operator in plan:
        lowering.add(operator)
    return lowering.finish()


class _Lowering:
    def __init__(self, plan: op.Plan, options: Options) -> None:
        self.plan = plan
        self.options = options
        self.f = options.frac_bits
        self.steps: list[steps.Step] = []
        self.values: dict[str, Value] = {}
        self.truncated: dict[str, Value] = {}

    def add(self, operator: op.Operator) -> None:
        inputs = [self.values[name] for name in operator.inputs]
        lower_one = getattr(self, f"_{type(operator).__name__.lower()}", None)
        if lower_one is None:
            raise op.UnsupportedLayer(
                f"{operator.name} ({type(operator).__name__})", "the engine for Shamir shares has no protocol"
            )
        self.values[operator.name] = lower_one(operator, *inputs)

    def finish(self) -> tuple[steps.Step, ...]:
        value = self.values[self.plan.output]
        is_label = isinstance(self.plan.operator(self.plan.output), op.ArgMax)
        if self.options.output == "argmax" and not is_label:
            value = self._argmax(None, value)
        elif not is_label:
            value = self._cut(value)
        self._emit(steps.Reveal, "reveal", [value], value.shape, value.frac)
        return tuple(self.steps)

    def _emit(
        self,
        kind: type[steps.Step],
        name: str,
        inputs: list[Value],
        shape: tuple[int, ...],
        frac: int,
        **settings: Any,
    ) -> Value:
        step = kind(name, tuple(value.step for value in inputs), shape, frac, self.options, **settings)
        self.steps.append(step)
        return Value(name, shape, frac)

    def _cut(self, value: Value, spare: int = 0) -> Value:
        """The value with f (at most f + ``spare``) fractional bits; one truncation serves all who need it."""
        if value.frac <= self.f + spare:
            return value
        if value.step not in self.truncated:
            name = f"{value.step}.truncate"
            self.truncated[value.step] = self._emit(
                steps.Truncate, name, [value], value.shape, self.f, shift=value.frac - self.f
            )
        return self.truncated[value.step]

    def _known(self, array: Any) -> bool:
        """Whether this party holds the array (a placeholder is NaN)."""
        return array is not None and not (array.size and np.isnan(array.flat[0]))

    def _encode(self, array: Any, frac: int, name: str) -> Elements | None:
        return field.encode(array, frac, TRUNCATION_BITS, name=name) if self._known(array) else None

    def _input(self, operator: op.Input) -> Value:
        return self._emit(steps.Input, operator.name, [], operator.shape, self.f)

    def _linear_map(
        self, operator: Any, value: Value, map: steps.BilinearMap, weight: Any, bias: Any, axes: int
    ) -> Value:
        """A static weight times the value; ``axes`` trailing axes are appended to the bias."""
        value = self._cut(value, SPARE_BITS)
        frac = value.frac + self.f
        shape = None if bias is None else (bias.shape[0], *(1,) * axes)
        added = self._encode(bias, frac, f"{operator.name} bias")
        return self._emit(
            steps.LinearMap,
            operator.name,
            [value],
            operator.shape,
            frac,
            map=map,
            weight_shape=weight.shape,
            bias_shape=shape,
            weight=self._encode(weight, self.f, f"{operator.name} weight"),
            bias=None if added is None or shape is None else added.reshape(shape),
        )

    def _convolution(self, operator: op.Convolution, value: Value) -> Value:
        map = steps.Convolution(operator.stride, operator.padding, operator.dilation, operator.groups)
        return self._linear_map(operator, value, map, operator.weight, operator.bias, len(operator.kernel))

    def _linear(self, operator: op.Linear, value: Value) -> Value:
        return self._linear_map(operator, value, steps.MatrixProduct(), operator.weight, operator.bias, 0)

    def _affine(self, operator: op.Affine, value: Value) -> Value:
        axes = len(operator.shape) - 1
        scale = operator.scale.reshape(-1, *(1,) * axes)
        return self._linear_map(operator, value, steps.Channelwise(), scale, operator.shift, axes)

    def _relu(self, operator: op.ReLU, value: Value) -> Value:
        return self._emit(steps.ReLU, operator.name, [self._cut(value)], operator.shape, self.f)

    def _polynomial(self, operator: op.Polynomial | op.MaskedReLU, value: Value) -> Value:
        mask = operator.mask if isinstance(operator, op.MaskedReLU) else np.zeros(operator.shape, bool)
        coefficients, degree = operator.coefficients, operator.degree
        if coefficients is None:
            degree = 0
        elif degree == 0:
            coefficients, degree = np.concatenate([coefficients, 0 * coefficients]), 1
        return self._emit(
            steps.Activation,
            operator.name,
            [self._cut(value)],
            operator.shape,
            steps.horner_fracs(self.f, degree)[-1] if degree else self.f,
            mask=mask,
            coefficients=self._encode(coefficients, self.f, f"{operator.name} coefficients"),
            degree=degree,
        )

    _maskedrelu = _polynomial

    def _maxpool(self, operator: op.MaxPool, value: Value) -> Value:
        return self._emit(
            steps.MaxPool,
            operator.name,
            [self._cut(value)],
            operator.shape,
            self.f,
            kernel=operator.kernel,
            stride=operator.stride,
            padding=operator.padding,
            dilation=operator.dilation,
        )

    def _sum_pool(self, operator: Any, value: Value, frac: int, factor: Elements | None) -> Value:
        return self._emit(
            steps.SumPool,
            operator.name,
            [value],
            operator.shape,
            frac,
            kernel=operator.kernel,
            stride=operator.stride,
            padding=operator.padding,
            factor=factor,
        )

    def _sumpool(self, operator: op.SumPool, value: Value) -> Value:
        return self._sum_pool(operator, value, value.frac, None)

    def _averagepool(self, operator: op.AveragePool, value: Value) -> Value:
        """Dividing by a window of k elements moves the binary point by floor(log2 k); only what is left of
        the factor is a multiplication."""
        size = prod(operator.kernel)
        moved = size.bit_length() - 1
        if operator.count_include_pad or not any(operator.padding):
            divisor = np.full((1,) * len(operator.kernel), float(size))
        else:
            divisor = _window_counts(operator, value.shape)
        if (divisor == 1 << moved).all():
            return self._sum_pool(operator, value, value.frac + moved, None)
        value = self._cut(value, SPARE_BITS)
        factor = self._encode((1 << moved) / divisor, self.f, f"{operator.name} divisor")
        return self._sum_pool(operator, value, value.frac + moved + self.f, factor)

    def _aligned(self, values: tuple[Value, ...]) -> tuple[int, tuple[int, ...]]:
        frac = max(value.frac for value in values)
        return frac, tuple(frac - value.frac for value in values)

    def _add(self, operator: op.Add, *values: Value) -> Value:
        frac, shifts = self._aligned(values)
        return self._emit(steps.Add, operator.name, list(values), operator.shape, frac, shifts=shifts)

    def _concatenate(self, operator: op.Concatenate, *values: Value) -> Value:
        frac, shifts = self._aligned(values)
        return self._emit(
            steps.Concatenate,
            operator.name,
            list(values),
            operator.shape,
            frac,
            shifts=shifts,
            dim=operator.dim,
        )

    def _flatten(self, operator: op.Flatten, value: Value) -> Value:
        return self._emit(steps.Flatten, operator.name, [value], operator.shape, value.frac)

    def _argmax(self, operator: op.ArgMax | None, value: Value) -> Value:
        if len(value.shape) != 1:
            raise op.UnsupportedLayer("argmax", f"it needs a vector of features, not shape {value.shape}")
        name = "argmax" if operator is None else operator.name
        return self._emit(steps.ArgMax, name, [self._cut(value)], (), 0, features=value.shape[0])


def _window_counts(operator: op.AveragePool, shape: tuple[int, ...]) -> Any:
    """How many elements of the input each window covers."""
    ones = np.ones((1, 1, *shape[1:]))
    taps = windows(ones, operator.kernel, operator.stride, operator.padding, (1,) * len(operator.kernel), 0)
    return np.sum(taps, axis=0)[0, 0]
