"""The steps of a compiled program: what each operator of a plan becomes.

A step knows what it uses up (:meth:`Step.materials`), which drives the dealer, the predicted cost and the
execution alike; its execution on shares (:meth:`Step.run`); and its slow reference on integers
(:meth:`Step.reference`). Shared values are arrays (copies, batch, *step.shape) with ``step.frac`` fractional
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.field import Elements
from tradeoff.engines.shamir.materials import Authentication, Material, Reduction, Truncation, sign_material
from tradeoff.engines.shamir.options import Options
from tradeoff.engines.shamir.protocols import multiply, nonnegative, relu, truncate
from tradeoff.nn.plan.windows import levels, windows

if TYPE_CHECKING:
    from tradeoff.engines.shamir.server import Server

Integers = NDArray[Any]
Shape = tuple[int, ...]

WINDOW = 1 << 18
"""Elements of a tensor that take their rounds together: bounds the memory of comparisons."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step.

    Args:
        name: of the operator it comes from, with a suffix where there are several.
        inputs: names of the steps it reads.
        shape: per-image shape of its result.
        frac: fractional bits of its result.
        options: of the program.
    """

    name: str
    inputs: tuple[str, ...]
    shape: Shape
    frac: int
    options: Options

    kind: ClassVar[str]

    def materials(self, batch: int) -> list[Material]:
        """What one inference of ``batch`` images uses up, in order."""
        return []

    @property
    def factor_shapes(self) -> dict[str, Shape]:
        """Private weights that values are multiplied by."""
        return {}

    @property
    def addend_shapes(self) -> dict[str, Shape]:
        """Private weights that are added to values."""
        return {}

    @property
    def addends(self) -> list[tuple[str, str]]:
        """(step, name) of the latter."""
        return [(self.name, name) for name in self.addend_shapes]

    def static_values(self) -> dict[str, Elements]:
        """Both in the clear (model owner only)."""
        return {}

    def run(self, server: Server, *inputs: Elements) -> Elements:
        """This server's shares of the result."""
        raise NotImplementedError

    def reference(self, *inputs: Integers) -> Integers:
        """The result on signed Python integers (dtype object), truncations rounding down."""
        raise NotImplementedError

    def _count(self, batch: int) -> int:
        return batch * prod(self.shape)


@dataclass(frozen=True, eq=False)
class Input(Step):
    """The data owner's input, from whom every server gets its share."""

    kind: ClassVar[str] = "input"

    def materials(self, batch: int) -> list[Material]:
        return [Authentication(self.options, self._count(batch))] if self.options.authenticated else []


@dataclass(frozen=True)
class MatrixProduct:
    """(M, K) x (N, K) -> (M, N): a linear layer's product with its weight as torch stores it."""

    def __call__(self, x: Elements, w: Elements) -> Elements:
        return field.matmul(x, np.ascontiguousarray(w.T))

    def reference(self, x: Integers, w: Integers) -> Integers:
        return x @ w.T


@dataclass(frozen=True)
class Convolution:
    """(batch, C_in, ...) * (C_out, C_in / groups, ...) -> (batch, C_out, ...) in one or two dimensions."""

    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int = 1

    def __call__(self, x: Elements, w: Elements) -> Elements:
        return field.conv(x, w, self.stride, self.padding, self.dilation, self.groups)

    def reference(self, x: Integers, w: Integers) -> Integers:
        taps = exact_windows(x, w.shape[2:], self.stride, self.padding, self.dilation, 0)
        outputs, inputs = w.shape[0] // self.groups, w.shape[1]
        result = []
        for output in range(w.shape[0]):
            first = output // outputs * inputs
            kernel = w[output].reshape(inputs, -1)
            result.append(
                sum(
                    (tap[:, first : first + inputs] * _columns(kernel[:, k], tap.ndim)).sum(axis=1)
                    for k, tap in enumerate(taps)
                )
            )
        return np.stack(result, axis=1)


@dataclass(frozen=True)
class Channelwise:
    """x * w element by element, w broadcast over the batch and positions."""

    def __call__(self, x: Elements, w: Elements) -> Elements:
        return field.multiply(x, w)

    def reference(self, x: Integers, w: Integers) -> Integers:
        return x * w


BilinearMap = MatrixProduct | Convolution | Channelwise


@dataclass(frozen=True, eq=False)
class LinearMap(Step):
    """A convolution, linear layer or channelwise scaling, plus bias: a product of shares and one reduction.

    Args:
        map: the bilinear map.
        weight_shape, bias_shape: public; the bias has the result's fractional bits and broadcasts over the
            batch, None without one.
        weight, bias: encoded; None where this party must not know them.
    """

    map: BilinearMap
    weight_shape: Shape
    bias_shape: Shape | None
    weight: Elements | None
    bias: Elements | None

    kind: ClassVar[str] = "linear"

    @property
    def private(self) -> bool:
        return self.options.weights == "private"

    def materials(self, batch: int) -> list[Material]:
        return [Reduction(self.options, self._count(batch))] if self.private else []

    @property
    def factor_shapes(self) -> dict[str, Shape]:
        return {"weight": self.weight_shape} if self.private else {}

    @property
    def addend_shapes(self) -> dict[str, Shape]:
        return {"bias": self.bias_shape} if self.private and self.bias_shape is not None else {}

    def static_values(self) -> dict[str, Elements]:
        assert self.weight is not None
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}

    def run(self, server: Server, *inputs: Elements) -> Elements:
        (x,) = inputs
        weight = server.operand(self, "weight") if self.private else self.weight
        assert weight is not None
        product = self.map(x.reshape(-1, *x.shape[2:]), weight).reshape(*x.shape[:2], *self.shape)
        if not self.private:
            return product if self.bias is None else server.plus(product, self.bias)
        server.take(self.materials(x.shape[1])[0])
        result = server.reduce(product, "a linear layer")
        if self.bias_shape is None:
            return result
        return field.add(result, server.operand(self, "bias")[:, None])

    def reference(self, *inputs: Integers) -> Integers:
        assert self.weight is not None
        result = self.map.reference(inputs[0], _exact(self.weight))
        return result if self.bias is None else result + _exact(self.bias)


@dataclass(frozen=True, eq=False)
class Truncate(Step):
    """Drops ``shift`` fractional bits."""

    shift: int

    kind: ClassVar[str] = "truncation"

    def materials(self, batch: int) -> list[Material]:
        return [Truncation(self.options, n, self.shift) for n in sizes(self._count(batch))]

    def run(self, server: Server, *inputs: Elements) -> Elements:
        return elementwise(inputs[0], lambda part: truncate(server, part, self.shift))

    def reference(self, *inputs: Integers) -> Integers:
        return inputs[0] >> self.shift


@dataclass(frozen=True, eq=False)
class ReLU(Step):
    """max(x, 0)."""

    kind: ClassVar[str] = "relu"

    def materials(self, batch: int) -> list[Material]:
        return relu_materials(self.options, self._count(batch))

    def run(self, server: Server, *inputs: Elements) -> Elements:
        return elementwise(inputs[0], lambda part: relu(server, part))

    def reference(self, *inputs: Integers) -> Integers:
        return np.maximum(inputs[0], 0)


@dataclass(frozen=True, eq=False)
class Activation(Step):
    """A polynomial by Horner's rule, and a ReLU where ``mask`` says so; positions are public.

    Each degree is a product with x; where the next one would exceed 3f fractional bits, the value is
    truncated to f first. The last truncation is a step of its own.

    Args:
        mask: True = ReLU, per-image shape.
        coefficients: encoded, (degree + 1, channels); None where this party must not know them.
        degree: of the polynomial; 0 if there is none: then the other positions pass unchanged.
    """

    mask: NDArray[np.bool_]
    coefficients: Elements | None
    degree: int

    kind: ClassVar[str] = "activation"

    @property
    def private(self) -> bool:
        return self.options.weights == "private"

    @property
    def fracs(self) -> tuple[int, ...]:
        """Fractional bits of the running polynomial after each product with x."""
        return horner_fracs(self.options.frac_bits, self.degree)

    @property
    def _others(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self.mask)

    @property
    def _channel(self) -> NDArray[np.int64]:
        return self._others // max(1, prod(self.shape[1:]))

    @property
    def _channels(self) -> tuple[int]:
        return (self.shape[0],)

    @property
    def factor_shapes(self) -> dict[str, Shape]:
        return {f"c{self.degree}": self._channels} if self.private and self.degree else {}

    @property
    def addend_shapes(self) -> dict[str, Shape]:
        return {f"c{i}": self._channels for i in range(self.degree)} if self.private else {}

    def static_values(self) -> dict[str, Elements]:
        assert self.coefficients is not None or not self.degree
        return {f"c{i}": self._coefficient(i) for i in range(self.degree + 1)} if self.degree else {}

    def _coefficient(self, order: int) -> Elements:
        assert self.coefficients is not None
        coefficient: Elements = self.coefficients[order]
        return coefficient

    def materials(self, batch: int) -> list[Material]:
        found = relu_materials(self.options, batch * int(self.mask.sum()))
        for n in sizes(batch * self._others.size) if self.degree else ():
            found += self._polynomial_materials(n)
        return found

    def _polynomial_materials(self, count: int) -> list[Material]:
        found: list[Material] = []
        for order in range(self.degree):
            if order and self.fracs[order] < self.fracs[order - 1] + self.options.frac_bits:
                found.append(Truncation(self.options, count, 2 * self.options.frac_bits))
            if order or self.private:
                found.append(Reduction(self.options, count))
        return found

    def run(self, server: Server, *inputs: Elements) -> Elements:
        (x,) = inputs
        flat = x.reshape(*x.shape[:2], -1)
        result = np.empty_like(flat)
        compared = np.ascontiguousarray(flat[:, :, self.mask.ravel()])
        lift = self.frac - self.options.frac_bits
        if compared.size:
            kept = elementwise(compared, lambda part: relu(server, part))
            result[:, :, self.mask.ravel()] = field.rotate(kept, lift)
        others = np.ascontiguousarray(flat[:, :, self._others])
        if others.size and self.degree:
            places = np.broadcast_to(self._channel, others.shape[1:])
            others = _windowed(others, places, lambda part, channel: self._horner(server, part, channel))
        elif others.size:
            others = field.rotate(others, lift)
        result[:, :, self._others] = others
        return result.reshape(x.shape)

    def _horner(self, server: Server, x: Elements, channel: NDArray[np.int64]) -> Elements:
        f = self.options.frac_bits
        value: Elements | None = None
        for order in range(self.degree):
            if value is None:
                value = self._first_product(server, x, channel)
            else:
                if self.fracs[order] < self.fracs[order - 1] + f:
                    value = truncate(server, value, 2 * f)
                value = multiply(server, x, value)
            index = self.degree - 1 - order
            lift = self.fracs[order] - f
            if self.private:
                addend = server.operand(self, f"c{index}")[:, channel]
                value = field.add(value, field.rotate(addend, lift))
            else:
                value = server.plus(value, field.rotate(self._coefficient(index)[channel], lift))
        assert value is not None
        return value

    def _first_product(self, server: Server, x: Elements, channel: NDArray[np.int64]) -> Elements:
        if not self.private:
            return field.multiply(x, self._coefficient(self.degree)[channel])
        server.take(Reduction(self.options, x.shape[1]))
        factor = server.operand(self, f"c{self.degree}")[channel]
        return server.reduce(field.multiply(x, factor), "a coefficient's product")

    def reference(self, *inputs: Integers) -> Integers:
        flat = inputs[0].reshape(len(inputs[0]), -1)
        f = self.options.frac_bits
        result = np.empty_like(flat)
        lift = self.frac - f
        result[:, self.mask.ravel()] = np.maximum(flat[:, self.mask.ravel()], 0) << lift
        others = flat[:, self._others]
        if self.degree:
            coefficients = _exact(np.stack([self._coefficient(i) for i in range(self.degree + 1)]))
            value = coefficients[self.degree][self._channel] * others
            for order in range(self.degree):
                if order:
                    if self.fracs[order] < self.fracs[order - 1] + f:
                        value = value >> (2 * f)
                    value = value * others
                value = value + (
                    coefficients[self.degree - 1 - order][self._channel] << (self.fracs[order] - f)
                )
            others = value
        else:
            others = others << lift
        result[:, self._others] = others
        return result.reshape(inputs[0].shape)


@dataclass(frozen=True, eq=False)
class MaxPool(Step):
    """Maximum of each window by a tournament; outside stands -2^(m-1), so that differences stay in range."""

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape

    kind: ClassVar[str] = "max_pool"

    def materials(self, batch: int) -> list[Material]:
        count = self._count(batch)
        return [
            material
            for pairs in levels(prod(self.kernel))
            for material in relu_materials(self.options, pairs * count)
        ]

    def _windows(self, x: Any, pad: int) -> list[Any]:
        return windows(x, self.kernel, self.stride, self.padding, self.dilation, pad)

    def run(self, server: Server, *inputs: Elements) -> Elements:
        outside = server.constant(field.element(-(1 << (self.options.bound_bits - 1))))
        taps = [self._windows(copy, int(pad)) for copy, pad in zip(inputs[0], outside, strict=True)]
        candidates = np.stack([np.stack(copy) for copy in taps])  # (copies, taps, batch, *shape)
        for pairs in levels(candidates.shape[1]):
            a, b = candidates[:, 0 : 2 * pairs : 2], candidates[:, 1 : 2 * pairs : 2]
            larger = elementwise(field.subtract(a, b), lambda part: relu(server, part))
            candidates = np.concatenate([field.add(b, larger), candidates[:, 2 * pairs :]], axis=1)
        return np.ascontiguousarray(candidates[:, 0])

    def reference(self, *inputs: Integers) -> Integers:
        outside = -(1 << (self.options.bound_bits - 1))
        taps = exact_windows(inputs[0], self.kernel, self.stride, self.padding, self.dilation, outside)
        result: Integers = np.max(np.stack(taps), axis=0)
        return result


@dataclass(frozen=True, eq=False)
class SumPool(Step):
    """Sum of each window, local; ``factor`` (public, encoded, broadcast) scales it."""

    kernel: Shape
    stride: Shape
    padding: Shape
    factor: Elements | None

    kind: ClassVar[str] = "sum_pool"

    def run(self, server: Server, *inputs: Elements) -> Elements:
        (x,) = inputs
        taps = self._windows(x.reshape(-1, *x.shape[2:]))
        result: Elements = taps[0]
        for tap in taps[1:]:
            result = field.add(result, tap)
        if self.factor is not None:
            result = field.multiply(result, self.factor)
        return result.reshape(*x.shape[:2], *self.shape)

    def _windows(self, x: Any) -> list[Any]:
        return windows(x, self.kernel, self.stride, self.padding, (1,) * len(self.kernel), 0)

    def reference(self, *inputs: Integers) -> Integers:
        one = (1,) * len(self.kernel)
        taps = exact_windows(inputs[0], self.kernel, self.stride, self.padding, one, 0)
        result: Integers = np.sum(taps, axis=0)
        return result if self.factor is None else result * _exact(self.factor)


@dataclass(frozen=True, eq=False)
class Add(Step):
    """Sum of values, each first multiplied by 2^shift to the result's fractional bits: exact and local."""

    shifts: tuple[int, ...]

    kind: ClassVar[str] = "add"

    def run(self, server: Server, *inputs: Elements) -> Elements:
        a, b = (field.rotate(x, shift) for x, shift in zip(inputs, self.shifts, strict=True))
        return field.add(a, b)

    def reference(self, *inputs: Integers) -> Integers:
        return (inputs[0] << self.shifts[0]) + (inputs[1] << self.shifts[1])


@dataclass(frozen=True, eq=False)
class Concatenate(Step):
    """Concatenation along ``dim`` of the per-image shape, after the same alignment."""

    shifts: tuple[int, ...]
    dim: int

    kind: ClassVar[str] = "concatenate"

    def run(self, server: Server, *inputs: Elements) -> Elements:
        aligned = [field.rotate(x, shift) for x, shift in zip(inputs, self.shifts, strict=True)]
        return np.concatenate(aligned, axis=self.dim + 2)

    def reference(self, *inputs: Integers) -> Integers:
        aligned = [x << shift for x, shift in zip(inputs, self.shifts, strict=True)]
        return np.concatenate(aligned, axis=self.dim + 1)


@dataclass(frozen=True, eq=False)
class Flatten(Step):
    """All elements of an image as one vector."""

    kind: ClassVar[str] = "flatten"

    def run(self, server: Server, *inputs: Elements) -> Elements:
        return inputs[0].reshape(*inputs[0].shape[:2], -1)

    def reference(self, *inputs: Integers) -> Integers:
        return inputs[0].reshape(len(inputs[0]), -1)


@dataclass(frozen=True, eq=False)
class ArgMax(Step):
    """Index of the largest feature, the lowest on ties, by a tournament of (value, index)."""

    features: int

    kind: ClassVar[str] = "argmax"

    def materials(self, batch: int) -> list[Material]:
        found: list[Material] = []
        for pairs in levels(self.features):
            count = pairs * batch
            found += [sign_material(self.options, count), Reduction(self.options, 2 * count)]
        return found

    def run(self, server: Server, *inputs: Elements) -> Elements:
        values = np.ascontiguousarray(inputs[0].swapaxes(1, 2))  # (copies, features, batch)
        places = np.broadcast_to(np.arange(self.features, dtype=np.uint64)[:, None], values.shape[1:])
        both = np.stack([values, server.constant(places)], axis=1)  # (copies, 2, features, batch)
        for pairs in levels(self.features):
            a, b = both[:, :, 0 : 2 * pairs : 2], both[:, :, 1 : 2 * pairs : 2]
            difference = field.subtract(a, b)
            bit = nonnegative(server, difference[:, 0].reshape(len(both), -1))
            twice = np.concatenate([bit, bit], axis=1)
            chosen = multiply(server, difference.reshape(len(both), -1), twice).reshape(difference.shape)
            both = np.concatenate([field.add(b, chosen), both[:, :, 2 * pairs :]], axis=2)
        return np.ascontiguousarray(both[:, 1, 0])

    def reference(self, *inputs: Integers) -> Integers:
        result: Integers = np.argmax(inputs[0], axis=1).astype(object)
        return result


@dataclass(frozen=True, eq=False)
class Reveal(Step):
    """The servers send their shares of the result to the data owner."""

    kind: ClassVar[str] = "reveal"

    def reference(self, *inputs: Integers) -> Integers:
        return inputs[0]


def horner_fracs(f: int, degree: int) -> tuple[int, ...]:
    """Fractional bits of the running polynomial after each product with x."""
    fracs, frac = [], f
    for order in range(degree):
        if order and frac + f > 3 * f:
            frac = f
        frac += f
        fracs.append(frac)
    return tuple(fracs)


def relu_materials(options: Options, count: int) -> list[Material]:
    """What a ReLU of a flat tensor uses up."""
    return [material for n in sizes(count) for material in (sign_material(options, n), Reduction(options, n))]


def sizes(count: int) -> list[int]:
    """Sizes of the windows of a flat tensor."""
    return [min(WINDOW, count - start) for start in range(0, count, WINDOW)]


def elementwise(x: Elements, protocol: Callable[[Elements], Elements]) -> Elements:
    """A protocol applied to every window of a shared tensor."""
    flat = np.ascontiguousarray(x).reshape(len(x), -1)
    parts = [protocol(flat[:, start : start + WINDOW]) for start in range(0, flat.shape[1], WINDOW)]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)).reshape(x.shape)


def _windowed(
    x: Elements, places: NDArray[np.int64], protocol: Callable[[Elements, NDArray[np.int64]], Elements]
) -> Elements:
    """The same for a protocol that depends on the element's place."""
    flat, index = x.reshape(len(x), -1), np.ascontiguousarray(places).reshape(-1)
    windows_ = [slice(start, start + WINDOW) for start in range(0, index.size, WINDOW)]
    return np.concatenate([protocol(flat[:, w], index[w]) for w in windows_], axis=1).reshape(x.shape)


def exact_windows(x: Integers, *settings: Any) -> list[Integers]:
    """:func:`~tradeoff.nn.plan.windows.windows` of Python integers below 2^63."""
    return [tap.astype(object) for tap in windows(x.astype(np.int64), *settings)]


def _columns(channel: Integers, ndim: int) -> Integers:
    return channel.reshape(-1, *(1,) * (ndim - 2))


def _exact(x: Elements) -> Integers:
    return field.integers(x).astype(object)
