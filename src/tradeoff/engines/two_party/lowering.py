"""From a plan's operators to protocol steps: which fixed-point scale every value has, and where it is
truncated.

A product of two values with f fractional bits has 2f. The extra bits are dropped as late as possible: a ReLU
drops them in its own rounds, max pooling does not mind them, and a sum of values at different scales shifts
the finer grained ones up, which is exact and local, so a residual branch is never truncated for its own sake.
Dividing by a window of k^2 elements moves the binary point by floor(log2 k^2); only what is left of the
factor is a multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tradeoff.engines.two_party import arithmetic, steps
from tradeoff.engines.two_party.program import Options
from tradeoff.engines.two_party.sharing import Share
from tradeoff.nn import plan as op

SPARE_BITS = 8
"""Fractional bits beyond f that a linear layer accepts in its input without a truncation."""


@dataclass(frozen=True)
class Value:
    """Where a plan operator's result stands.

    Args:
        step: that holds it.
        shape: per image.
        frac: fractional bits.
        gain: bits that the next weights get in addition, because a window's divisor was moved into them.
    """

    step: str
    shape: tuple[int, ...]
    frac: int
    gain: int = 0


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
        self.ring = options.ring
        self.f = options.frac_bits
        self.steps: list[steps.Step] = []
        self.values: dict[str, Value] = {}
        self.truncated: dict[str, Value] = {}

    def add(self, operator: op.Operator) -> None:
        inputs = [self.values[name] for name in operator.inputs]
        lower_one = getattr(self, f"_{type(operator).__name__.lower()}", None)
        if lower_one is None:
            raise op.UnsupportedLayer(
                f"{operator.name} ({type(operator).__name__})", "the two-party engine has no protocol for it"
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
        gain: int = 0,
        **settings: Any,
    ) -> Value:
        step = kind(name, tuple(value.step for value in inputs), shape, frac, self.ring, **settings)
        self.steps.append(step)
        return Value(name, shape, frac, gain)

    def _cut(self, value: Value, spare: int = 0) -> Value:
        """The value with f (at most f + ``spare``) fractional bits; one truncation serves all who need it."""
        if value.frac <= self.f + spare:
            return value
        if value.step not in self.truncated:
            self.truncated[value.step] = self._emit(
                steps.Truncate,
                f"{value.step}.truncate",
                [value],
                value.shape,
                self.f,
                value.gain,
                shift=value.frac - self.f,
                local=self.options.truncation == "local",
            )
        return self.truncated[value.step]

    def _before_comparison(self, value: Value) -> Value:
        """A comparison drops surplus bits itself, unless truncation is local."""
        return self._cut(value) if self.options.truncation == "local" else value

    def _known(self, array: Any) -> bool:
        """Whether this party holds the array (a placeholder is NaN)."""
        return array is not None and not (array.size and np.isnan(array.flat[0]))

    def _operand_bits(self, frac: int) -> int:
        """Bits of a static operand with so many fractional ones."""
        return min(self.ring.bits, frac + self.options.integer_bits)

    def _input(self, operator: op.Input) -> Value:
        return self._emit(steps.Input, operator.name, [], operator.shape, self.f)

    def _linear_map(
        self, operator: Any, value: Value, map: arithmetic.BilinearMap, weight: Any, bias: Any, axes: int
    ) -> Value:
        """A static weight times the value; ``axes`` trailing axes are appended to the bias."""
        value = self._cut(value, SPARE_BITS)
        weight_frac = self.f + value.gain
        frac = value.frac + weight_frac
        known = self._known(weight)
        encoded: Share | None = None
        if known:
            encoded = self.ring.encode(weight, weight_frac, name=f"{operator.name} weight")
        shift: Share | None = None
        if self._known(bias):
            shift = self.ring.encode(bias, frac, name=f"{operator.name} bias").reshape(-1, *(1,) * axes)
        return self._emit(
            steps.LinearMap,
            operator.name,
            [value],
            operator.shape,
            frac,
            map=map,
            weight_shape=weight.shape,
            weight=encoded,
            bias=shift,
            private=self.options.weights == "private",
            input_shape=value.shape,
            weight_bits=self._operand_bits(weight_frac),
        )

    def _convolution(self, operator: op.Convolution, value: Value) -> Value:
        map = arithmetic.Convolution(operator.stride, operator.padding, operator.dilation, operator.groups)
        return self._linear_map(operator, value, map, operator.weight, operator.bias, len(operator.kernel))

    def _linear(self, operator: op.Linear, value: Value) -> Value:
        return self._linear_map(
            operator, value, arithmetic.MatrixProduct(), operator.weight, operator.bias, 0
        )

    def _affine(self, operator: op.Affine, value: Value) -> Value:
        axes = len(operator.shape) - 1
        scale = operator.scale.reshape(-1, *(1,) * axes)
        return self._linear_map(operator, value, arithmetic.Elementwise(), scale, operator.shift, axes)

    def _relu(self, operator: op.ReLU, value: Value) -> Value:
        value = self._before_comparison(value)
        shift = value.frac - self.f
        return self._emit(
            steps.ReLU,
            operator.name,
            [value],
            operator.shape,
            self.f,
            value.gain,
            shift=shift,
            radix=self.options.radix,
        )

    def _polynomial(self, operator: op.Polynomial | op.MaskedReLU, value: Value) -> Value:
        value = self._before_comparison(value)
        mask = operator.mask if isinstance(operator, op.MaskedReLU) else np.zeros(operator.shape, bool)
        identity = operator.coefficients is None
        known = operator.coefficients is not None and self._known(operator.coefficients)
        coefficients = np.array(operator.coefficients) if known else None
        degree = max(1, operator.degree)
        if coefficients is not None and operator.degree == 0:
            coefficients = np.concatenate([coefficients, np.zeros_like(coefficients)])
        return self._emit(
            steps.Activation,
            operator.name,
            [value],
            operator.shape,
            self.f,
            mask=mask,
            coefficients=coefficients,
            degree=degree,
            identity=identity,
            private=self.options.coefficients == "private",
            fused=operator.name not in self.options.split,
            shift=value.frac - self.f,
            radix=self.options.radix,
            coefficient_bits=self._operand_bits(self.f),
        )

    _maskedrelu = _polynomial

    def _maxpool(self, operator: op.MaxPool, value: Value) -> Value:
        return self._emit(
            steps.MaxPool,
            operator.name,
            [value],
            operator.shape,
            value.frac,
            value.gain,
            kernel=operator.kernel,
            stride=operator.stride,
            padding=operator.padding,
            dilation=operator.dilation,
            radix=self.options.radix,
        )

    def _sum_pool(
        self, operator: op.AveragePool | op.SumPool, value: Value, frac: int, gain: int, factor: Share | None
    ) -> Value:
        return self._emit(
            steps.SumPool,
            operator.name,
            [value],
            operator.shape,
            frac,
            gain,
            kernel=operator.kernel,
            stride=operator.stride,
            padding=operator.padding,
            factor=factor,
        )

    def _sumpool(self, operator: op.SumPool, value: Value) -> Value:
        gain = value.gain + prod(operator.kernel).bit_length() - 1
        return self._sum_pool(operator, value, value.frac, gain, None)

    def _averagepool(self, operator: op.AveragePool, value: Value) -> Value:
        size = prod(operator.kernel)
        moved = size.bit_length() - 1
        if operator.count_include_pad or not any(operator.padding):
            divisor = np.full((1,) * len(operator.kernel), float(size))
        else:
            divisor = _window_counts(operator, value.shape)
        if (divisor == 1 << moved).all():
            return self._sum_pool(operator, value, value.frac + moved, value.gain, None)
        value = self._cut(value, SPARE_BITS)
        factor = self.ring.encode((1 << moved) / divisor, name=f"{operator.name} divisor")
        return self._sum_pool(operator, value, value.frac + moved + self.f, value.gain, factor)

    def _aligned(self, values: tuple[Value, ...]) -> tuple[int, tuple[int, ...]]:
        if any(value.gain for value in values):
            raise op.UnsupportedLayer(values[0].step, "a folded average pooling must feed linear layers only")
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
        return self._emit(steps.Flatten, operator.name, [value], operator.shape, value.frac, value.gain)

    def _argmax(self, operator: op.ArgMax | None, value: Value) -> Value:
        if len(value.shape) != 1:
            raise op.UnsupportedLayer("argmax", f"it needs a vector of features, not shape {value.shape}")
        name = "argmax" if operator is None else operator.name
        return self._emit(
            steps.ArgMax, name, [value], (), 0, radix=self.options.radix, features=value.shape[0]
        )


def _window_counts(operator: op.AveragePool, shape: tuple[int, ...]) -> Any:
    """How many elements of the input each window covers."""
    from tradeoff.nn.plan.windows import windows

    ones = np.ones((1, 1, *shape[1:]))
    taps = windows(ones, operator.kernel, operator.stride, operator.padding, (1,) * len(operator.kernel), 0)
    return np.sum(taps, axis=0)[0, 0]
