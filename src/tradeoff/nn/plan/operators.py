"""The operators of a plan and the plan itself.

Shapes are those of one image, without the batch: ``(channels, height, width)``, ``(channels, length)`` or
``(features,)``. Spatial attributes (``kernel``, ``stride``, ``padding``, ``dilation``) have one entry per
spatial dimension; padding is symmetric. Arrays are float64 (masks are bool) and read-only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import DataError
from tradeoff.nn.plan.errors import PlanError

Shape = tuple[int, ...]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def window_output(
    size: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape | None = None
) -> Shape:
    """Spatial output size of a sliding window."""
    dilation = dilation or (1,) * len(size)
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )


@dataclass(frozen=True, eq=False)
class Operator:
    """One step of a plan.

    Args:
        name: unique in the plan; the module path in the traced model.
        inputs: names of the operators whose outputs are read.
        shape: per-image shape of the output.
    """

    name: str
    inputs: tuple[str, ...]
    shape: Shape

    arity: ClassVar[int | None] = 1  # number of inputs; None: any
    roles: ClassVar[dict[str, str]] = {}  # array fields: "weight", "coefficients" or "mask" (public)

    def __post_init__(self) -> None:
        for key, role in self.roles.items():
            value = getattr(self, key)
            if value is not None:
                object.__setattr__(self, key, _read_only(value, np.bool_ if role == "mask" else np.float64))

    @classmethod
    def attribute_fields(cls) -> list[str]:
        """Names of the public settings that are not arrays, beyond name, inputs and shape."""
        own = {"name", "inputs", "shape", *cls.roles}
        return [f.name for f in fields(cls) if f.name not in own]

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        """The per-image output shape that follows from the shapes of the inputs.

        Raises:
            PlanError: the inputs do not fit this operator.
        """
        return inputs[0]

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise PlanError(f"{self.name} ({type(self).__name__}): {message}")


@dataclass(frozen=True, eq=False)
class Input(Operator):
    """The input of the network."""

    arity: ClassVar[int | None] = 0

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        return self.shape


@dataclass(frozen=True, eq=False)
class Convolution(Operator):
    """Cross-correlation over one or two spatial dimensions, zero padded.

    ``weight`` is (out channels, in channels / groups, *kernel), ``bias`` is (out channels,) or None.
    """

    roles: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "weight"}

    weight: Floats
    bias: Floats | None
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int

    @property
    def kernel(self) -> Shape:
        return self.weight.shape[2:]

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        channels, *size = inputs[0]
        self._require(self.weight.ndim == len(inputs[0]) + 1 and len(size) in (1, 2), f"input {inputs[0]}")
        for key in ("stride", "padding", "dilation"):
            self._require(len(getattr(self, key)) == len(size), f"{key} {getattr(self, key)}")
        self._require(min(*self.kernel, *self.stride, *self.dilation) > 0, "a window setting is zero")
        out_channels, group_channels = self.weight.shape[:2]
        self._require(
            self.groups > 0 and out_channels % self.groups == 0 and channels == group_channels * self.groups,
            f"{channels} channels, weight {self.weight.shape}, {self.groups} groups",
        )
        self._require(self.bias is None or self.bias.shape == (out_channels,), "bias shape")
        spatial = window_output(tuple(size), self.kernel, self.stride, self.padding, self.dilation)
        return (out_channels, *spatial)


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """y = weight x + bias; ``weight`` is (out features, in features)."""

    roles: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "weight"}

    weight: Floats
    bias: Floats | None

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        self._require(self.weight.ndim == 2 and inputs[0] == self.weight.shape[1:], f"input {inputs[0]}")
        self._require(self.bias is None or self.bias.shape == self.weight.shape[:1], "bias shape")
        return (self.weight.shape[0],)


@dataclass(frozen=True, eq=False)
class Affine(Operator):
    """y = scale x + shift for each channel: a batch normalization that no linear layer precedes."""

    roles: ClassVar[dict[str, str]] = {"scale": "weight", "shift": "weight"}

    scale: Floats
    shift: Floats

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        channels = inputs[0][:1]
        self._require(self.scale.shape == channels and self.shift.shape == channels, f"input {inputs[0]}")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class ReLU(Operator):
    """max(x, 0)."""


@dataclass(frozen=True, eq=False)
class Polynomial(Operator):
    """A polynomial for each channel; row i of ``coefficients`` (degree + 1, channels) multiplies x**i."""

    roles: ClassVar[dict[str, str]] = {"coefficients": "coefficients"}

    coefficients: Floats

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        self._require(
            self.coefficients.ndim == 2 and self.coefficients.shape[1:] == inputs[0][:1] and self.degree >= 0,
            f"coefficients {self.coefficients.shape} on input {inputs[0]}",
        )
        return inputs[0]


@dataclass(frozen=True, eq=False)
class MaskedReLU(Operator):
    """ReLU where ``mask`` (bool, per-image shape, public) is True, a per-channel polynomial elsewhere.

    Without ``coefficients`` the other positions pass unchanged.
    """

    roles: ClassVar[dict[str, str]] = {"mask": "mask", "coefficients": "coefficients"}

    mask: Bools
    coefficients: Floats | None

    @property
    def degree(self) -> int:
        return 1 if self.coefficients is None else len(self.coefficients) - 1

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        self._require(self.mask.shape == inputs[0], f"mask {self.mask.shape} on input {inputs[0]}")
        if self.coefficients is not None:
            shape = self.coefficients.shape
            self._require(
                len(shape) == 2 and shape[1:] == inputs[0][:1] and self.degree >= 0,
                f"coefficients {shape} on input {inputs[0]}",
            )
        return inputs[0]


class _Pool(Operator):
    """What pooling operators share: a window for each channel."""

    def _pooled(
        self, shape: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape | None
    ) -> Shape:
        size = shape[1:]
        self._require(
            len(size) in (1, 2) and len(kernel) == len(stride) == len(padding) == len(size), f"input {shape}"
        )
        dilation = dilation or (1,) * len(size)
        self._require(len(dilation) == len(size) and min(*kernel, *stride, *dilation) > 0, "window settings")
        extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        self._require(all(2 * p <= k for p, k in zip(padding, extent, strict=True)), f"padding {padding}")
        return (shape[0], *window_output(size, kernel, stride, padding, dilation))


@dataclass(frozen=True, eq=False)
class MaxPool(_Pool):
    """Maximum over a window; padding never wins."""

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        return self._pooled(inputs[0], self.kernel, self.stride, self.padding, self.dilation)


@dataclass(frozen=True, eq=False)
class AveragePool(_Pool):
    """Mean over a window; with ``count_include_pad`` the divisor is always the window's size."""

    kernel: Shape
    stride: Shape
    padding: Shape
    count_include_pad: bool

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        return self._pooled(inputs[0], self.kernel, self.stride, self.padding, None)


@dataclass(frozen=True, eq=False)
class SumPool(_Pool):
    """Sum over a window: what :func:`fold_average_pool` leaves of an average pooling."""

    kernel: Shape
    stride: Shape
    padding: Shape

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        return self._pooled(inputs[0], self.kernel, self.stride, self.padding, None)


@dataclass(frozen=True, eq=False)
class Add(Operator):
    """Sum of two values of equal shape."""

    arity: ClassVar[int | None] = 2

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        self._require(inputs[0] == inputs[1], f"shapes {inputs[0]} and {inputs[1]}")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Concatenate(Operator):
    """Concatenation along ``dim`` of the per-image shape (0 = channels)."""

    dim: int

    arity: ClassVar[int | None] = None

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        first = inputs[0]
        self._require(0 <= self.dim < len(first), f"dim {self.dim}")
        for other in inputs:
            same = len(other) == len(first) and all(
                a == b for axis, (a, b) in enumerate(zip(first, other, strict=True)) if axis != self.dim
            )
            self._require(same, f"shapes {first} and {other}")
        return (*first[: self.dim], sum(shape[self.dim] for shape in inputs), *first[self.dim + 1 :])


@dataclass(frozen=True, eq=False)
class Flatten(Operator):
    """All elements of an image as one vector, row-major."""

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        return (math.prod(inputs[0]),)


@dataclass(frozen=True, eq=False)
class ArgMax(Operator):
    """Index of the largest feature, the lowest one on ties; the output has shape ()."""

    def output_shape(self, inputs: tuple[Shape, ...]) -> Shape:
        self._require(len(inputs[0]) == 1, f"input {inputs[0]}")
        return ()


OPERATORS: dict[str, type[Operator]] = {
    cls.__name__: cls
    for cls in (
        Input,
        Convolution,
        Linear,
        Affine,
        ReLU,
        Polynomial,
        MaskedReLU,
        MaxPool,
        AveragePool,
        SumPool,
        Add,
        Concatenate,
        Flatten,
        ArgMax,
    )
}


@dataclass(frozen=True, eq=False)
class Plan:
    """A network as operators in execution order; operator 0 is its only :class:`Input`.

    Args:
        operators: each reads only earlier ones.
        input_shape: per-image shape of the input.
        output: name of the operator whose value is the result.
        has_weights: False in the view that a data owner gets (:meth:`without_weights`), whose weights are
            unreadable placeholders of the right shape.

    Raises:
        PlanError: operators are inconsistent.
    """

    operators: tuple[Operator, ...]
    input_shape: Shape
    output: str
    has_weights: bool = True

    def __post_init__(self) -> None:
        if not self.operators or not isinstance(self.operators[0], Input):
            raise PlanError("a plan begins with an Input")
        shapes: dict[str, Shape] = {}
        for index, operator in enumerate(self.operators):
            _check_operator(operator, index, shapes)
            shapes[operator.name] = operator.shape
        if self.operators[0].shape != self.input_shape:
            raise PlanError(
                f"input shape {self.input_shape} differs from the Input's {self.operators[0].shape}"
            )
        if self.output not in shapes:
            raise PlanError(f"output {self.output!r} is not an operator")

    @cached_property
    def _by_name(self) -> dict[str, Operator]:
        return {operator.name: operator for operator in self.operators}

    @cached_property
    def consumers(self) -> dict[str, tuple[Operator, ...]]:
        """For each operator, those that read it (twice, where one reads it twice)."""
        users: dict[str, list[Operator]] = {operator.name: [] for operator in self.operators}
        for operator in self.operators:
            for name in operator.inputs:
                users[name].append(operator)
        return {name: tuple(operators) for name, operators in users.items()}

    def operator(self, name: str) -> Operator:
        """The operator of that name.

        Raises:
            KeyError: there is none.
        """
        return self._by_name[name]

    def __iter__(self) -> Iterator[Operator]:
        return iter(self.operators)

    def __len__(self) -> int:
        return len(self.operators)

    @property
    def output_shape(self) -> Shape:
        """Per-image shape of the result."""
        return self.operator(self.output).shape

    @cached_property
    def relu_count(self) -> int:
        """ReLUs for one image."""
        count = 0
        for operator in self.operators:
            if isinstance(operator, ReLU):
                count += math.prod(operator.shape)
            elif isinstance(operator, MaskedReLU):
                count += int(operator.mask.sum())
        return count

    def evaluate(self, x: NDArray[Any]) -> Floats:
        """The network's result in float64, by the reference implementation.

        Args:
            x: (batch, *input_shape).

        Raises:
            PlanError: the shape differs, or the weights were removed.
        """
        from tradeoff.nn.plan.reference import evaluate

        return evaluate(self, x)

    def check_input(self, x: NDArray[Any]) -> Floats:
        """Inputs as float64 of shape (batch, *input_shape).

        Raises:
            DataError (a ValueError): another shape or dtype, an empty batch, NaN or infinity.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "biuf":
            raise DataError(f"inputs are real numbers, not {x.dtype}")
        x = x.astype(np.float64)
        if x.shape[1:] != self.input_shape or x.ndim != len(self.input_shape) + 1 or not len(x):
            wanted = ", ".join(map(str, ("images", *self.input_shape)))
            raise DataError(f"inputs have shape ({wanted}), at least one image, not {x.shape}")
        if not np.isfinite(x).all():
            raise DataError("the input holds NaN or infinity")
        return x

    def public(self) -> dict[str, Any]:
        """The structure that every party knows, as JSON: names, shapes, settings, masks (as SHA-256)."""
        return {
            "input_shape": list(self.input_shape),
            "output": self.output,
            "operators": [_public(operator) for operator in self.operators],
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`public`: equal for parties that agree on all but the weights."""
        text = json.dumps(self.public(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def without_weights(self, *, keep_coefficients: bool = False) -> Plan:
        """The plan as the data owner may have it: structure, shapes and masks; same digest.

        Args:
            keep_coefficients: keep those of activations, for protocols that publish them.
        """
        hidden = {"weight"} if keep_coefficients else {"weight", "coefficients"}

        def hide(operator: Operator) -> Operator:
            arrays: dict[str, Any] = {
                key: placeholder(getattr(operator, key).shape)
                for key, role in operator.roles.items()
                if role in hidden and getattr(operator, key) is not None
            }
            return replace(operator, **arrays)

        return replace(
            self, operators=tuple(hide(operator) for operator in self.operators), has_weights=False
        )

    def rebuild(self, change: Callable[[Operator], Operator]) -> Plan:
        """The plan with every operator mapped by ``change``."""
        return replace(self, operators=tuple(change(operator) for operator in self.operators))


def _read_only(value: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """An array of that type that nobody can change, copied only if it is not one already."""
    array = np.asarray(value)
    if array.dtype != dtype or array.flags.writeable:
        array = array.astype(dtype)
        array.flags.writeable = False
    return array


def placeholder(shape: Shape) -> Floats:
    """A read-only array of NaN that takes no memory: stands for a weight that is not here."""
    return np.broadcast_to(np.float64(np.nan), shape)


def _check_operator(operator: Operator, index: int, shapes: dict[str, Shape]) -> None:
    """Check one operator against those before it."""
    kind = type(operator).__name__
    if operator.name in shapes or not operator.name:
        raise PlanError(f"operator name {operator.name!r} is empty or used twice")
    if OPERATORS.get(kind) is not type(operator) or (isinstance(operator, Input) != (index == 0)):
        raise PlanError(f"{operator.name}: {kind} has no place here")
    arity = len(operator.inputs)
    if arity != operator.arity and not (operator.arity is None and arity):
        raise PlanError(f"{operator.name} ({kind}): {arity} inputs")
    unknown = [name for name in operator.inputs if name not in shapes]
    if unknown:
        raise PlanError(f"{operator.name} ({kind}) reads {unknown[0]!r}, which is not an earlier operator")
    expected = operator.output_shape(tuple(shapes[name] for name in operator.inputs))
    if expected != operator.shape or any(size < 1 for size in expected):
        raise PlanError(f"{operator.name} ({kind}): shape {operator.shape}, but its inputs give {expected}")


def _public(operator: Operator) -> dict[str, Any]:
    """What is public of one operator, as JSON."""
    entry: dict[str, Any] = {
        "kind": type(operator).__name__,
        "name": operator.name,
        "inputs": list(operator.inputs),
        "shape": list(operator.shape),
    }
    for key in operator.attribute_fields():
        value = getattr(operator, key)
        entry[key] = list(value) if isinstance(value, tuple) else value
    for key, role in operator.roles.items():
        array = getattr(operator, key)
        entry[key] = None if array is None else {"shape": list(array.shape)}
        if role == "mask":
            entry[key]["sha256"] = hashlib.sha256(np.packbits(array, bitorder="little").tobytes()).hexdigest()
    return entry
