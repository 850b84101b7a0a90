"""The steps of a compiled program: what each operator of a plan becomes.

A step knows its correlations (:meth:`Step.groups`), which drive the dealer, the predicted cost and the
execution alike; its execution on shares (:meth:`Step.run`); and its slow reference on integers
(:meth:`Step.reference`). Values are arrays of shape (batch, *step.shape) with ``step.frac`` fractional bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.two_party import pooling
from tradeoff.engines.two_party.activations import Coefficients, Quadratic, powers, powers_lane, quadratic
from tradeoff.engines.two_party.arithmetic import BilinearMap, Elementwise, StaticTriple, static_product
from tradeoff.engines.two_party.comparison import Comparison, relu
from tradeoff.engines.two_party.correlations import Fields
from tradeoff.engines.two_party.protocol import CHUNK, IN_FLIGHT, Group, Lane, Rounds, chunks
from tradeoff.engines.two_party.sharing import Ring, Share, padded
from tradeoff.engines.two_party.truncation import Truncation, truncate, truncate_locally
from tradeoff.nn.plan import windows

if TYPE_CHECKING:
    from tradeoff.engines.two_party.party import Evaluator

Integers = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Step:
    """One step.

    Args:
        name: of the operator it comes from, with a suffix where there are several.
        inputs: names of the steps it reads.
        shape: per-image shape of its result.
        frac: fractional bits of its result.
        ring: of all values.
    """

    name: str
    inputs: tuple[str, ...]
    shape: Shape
    frac: int
    ring: Ring

    kind: ClassVar[str]

    def groups(self, batch: int) -> list[Group]:
        """Correlations for one inference of ``batch`` images, in groups of lanes that run in lockstep."""
        return []

    @property
    def static_shapes(self) -> dict[str, Shape]:
        """Private operands that keep one mask for the session."""
        return {}

    def static_values(self) -> dict[str, Share]:
        """Those operands in the clear (model owner only)."""
        return {}

    def spread(self, statics: Mapping[str, Share]) -> dict[str, Share]:
        """Static arrays as the correlations of this step take them."""
        return dict(statics)

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        """This party's share of the result."""
        raise NotImplementedError

    def reference(self, *inputs: Integers) -> Integers:
        """The result on signed integers, truncations rounding down."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Input(Step):
    """The data owner's input; party 0's share comes from the common generator."""

    kind: ClassVar[str] = "input"


@dataclass(frozen=True, eq=False)
class LinearMap(Step):
    """A convolution, linear layer or channelwise scaling with a static weight, plus bias.

    Args:
        map: the bilinear map.
        weight_shape: of the weight, which is public.
        weight, bias: encoded; None where this party must not know them. The bias has the result's fractional
            bits and broadcasts over the batch.
        private: whether the weight is multiplied in shared form.
        weight_bits: of the weight in two's complement.
    """

    map: BilinearMap
    weight_shape: Shape
    weight: Share | None
    bias: Share | None
    private: bool
    input_shape: Shape
    weight_bits: int

    kind: ClassVar[str] = "linear"

    def groups(self, batch: int) -> list[Group]:
        if not self.private:
            return []
        left = (batch, *self.input_shape)
        return [((StaticTriple(self.ring, self.map, left, self.weight_shape, self.weight_bits),),)]

    @property
    def static_shapes(self) -> dict[str, Shape]:
        return {"weight": self.weight_shape} if self.private else {}

    def static_values(self) -> dict[str, Share]:
        assert self.weight is not None
        return {"weight": self.weight}

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        (x,) = inputs
        if self.private:
            (group,) = self.groups(len(x))
            weight = party.operand(self, "weight")
            (result,) = party.lockstep(
                group, [lambda m: static_product(party.rank, self.map, x, weight, m[0])]
            )
        else:
            assert self.weight is not None
            result = self.map(x, self.weight)
        if party.rank == 0 and self.bias is not None:
            result = result + self.bias
        return result

    def reference(self, *inputs: Integers) -> Integers:
        assert self.weight is not None
        result = self.map(self.ring.elements(inputs[0]), self.weight)
        return self.ring.integers(result if self.bias is None else result + self.bias)


@dataclass(frozen=True, eq=False)
class Truncate(Step):
    """Drops ``shift`` fractional bits, with the dealer's help or locally."""

    shift: int
    local: bool

    kind: ClassVar[str] = "truncation"

    def groups(self, batch: int) -> list[Group]:
        if self.local:
            return []
        return _chunked(batch * prod(self.shape), lambda n: Truncation(self.ring, n, self.shift), pad=False)

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        (x,) = inputs
        if self.local:
            return truncate_locally(party.rank, self.ring, self.shift, x)
        return _elementwise(
            party,
            self.groups(len(x)),
            x,
            lambda part, m: truncate(party.rank, self.ring, self.shift, part, m[0]),
        )

    def reference(self, *inputs: Integers) -> Integers:
        return inputs[0] >> self.shift


@dataclass(frozen=True, eq=False)
class ReLU(Step):
    """ReLU at every position, dropping ``shift`` fractional bits."""

    shift: int
    radix: int

    kind: ClassVar[str] = "relu"

    def groups(self, batch: int) -> list[Group]:
        return _chunked(batch * prod(self.shape), lambda n: Comparison(self.ring, n, self.radix, self.shift))

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        (x,) = inputs
        return _compare(party, self.groups(len(x)), x)

    def reference(self, *inputs: Integers) -> Integers:
        return np.maximum(inputs[0], 0) >> self.shift


@dataclass(frozen=True, eq=False)
class Activation(Step):
    """A polynomial, or a ReLU where ``mask`` says so and a polynomial elsewhere; positions are public.

    ReLU positions of the batch are gathered into one comparison, the others into one polynomial whose
    messages travel in the comparison's rounds; both are scattered back.

    Args:
        mask: True = ReLU, per-image shape.
        coefficients: (degree + 1, channels) in the clear, None where this party must not know them.
        degree: of the polynomial.
        identity: whether the other positions pass unchanged: then there are no coefficients.
        private: whether coefficients of degree 1 and up are multiplied in shared form.
        fused: whether the whole polynomial stays below 2^(L-2-3f), so that it needs a single truncation.
        shift: fractional bits to drop from the input.
        coefficient_bits: of private coefficients in two's complement.
    """

    mask: NDArray[np.bool_]
    coefficients: NDArray[np.float64] | None
    degree: int
    identity: bool
    private: bool
    fused: bool
    shift: int
    radix: int
    coefficient_bits: int

    kind: ClassVar[str] = "activation"

    @cached_property
    def _relu(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.mask)

    @cached_property
    def _polynomial(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self.mask)

    @cached_property
    def _channel(self) -> NDArray[np.int64]:
        """Channel of every polynomial position."""
        return self._polynomial // max(1, prod(self.shape[1:]))

    @property
    def single(self) -> bool:
        """Whether one opening and one truncation do."""
        return self.fused and self.degree == 2

    @property
    def _silent(self) -> bool:
        """Whether the other positions pass without a message."""
        return self.identity and not self.shift

    @property
    def _result_frac(self) -> int:
        """Fractional bits before the last truncation."""
        return (3 if self.single else 2) * self.ring.frac_bits

    def _images(self, batch: int) -> list[slice]:
        """Chunks of the polynomial, whole images each."""
        step = max(1, CHUNK // max(1, self._polynomial.size))
        return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]

    def _polynomial_lane(self, images: int) -> Lane:
        positions = self._polynomial.size
        count = images * positions
        last = Truncation(self.ring, count, self._result_frac - self.ring.frac_bits)
        if self.single:
            shape = (images, positions)
            return (Quadratic(self.ring, shape, self.shift, self.private, self.coefficient_bits), last)
        lane = powers_lane(self.ring, count, self.shift, self.degree)
        if self.identity:
            return lane
        if self.private:
            shapes = (self.degree, images, positions), (self.degree, 1, positions)
            lane += (StaticTriple(self.ring, Elementwise(), *shapes, self.coefficient_bits),)
        return (*lane, last)

    def groups(self, batch: int) -> list[Group]:
        relus = _chunked(batch * self._relu.size, lambda n: Comparison(self.ring, n, self.radix, self.shift))
        polynomials: list[Group] = []
        if self._polynomial.size and not self._silent:
            lanes = [self._polynomial_lane(part.stop - part.start) for part in self._images(batch)]
            polynomials = [tuple(lanes[i : i + IN_FLIGHT]) for i in range(0, len(lanes), IN_FLIGHT)]
        return [relu + polynomial for relu, polynomial in zip_longest(relus, polynomials, fillvalue=())]

    @property
    def static_shapes(self) -> dict[str, Shape]:
        if self.identity or not (self.private and self._polynomial.size):
            return {}
        channels = self.shape[0]
        if self.single:
            return {"linear": (channels,), "quadratic": (channels,)}
        return {"weight": (self.degree, channels)}

    def _encoded(self) -> Share:
        assert self.coefficients is not None
        return self.ring.encode(self.coefficients[1:], name=f"{self.name} coefficients")

    def static_values(self) -> dict[str, Share]:
        encoded = self._encoded()
        return {"linear": encoded[0], "quadratic": encoded[1]} if self.single else {"weight": encoded}

    def spread(self, statics: Mapping[str, Share]) -> dict[str, Share]:
        return {
            name: array[self._channel] if array.ndim == 1 else array[:, None, self._channel]
            for name, array in statics.items()
        }

    def _constant(self) -> Share:
        assert self.coefficients is not None
        return self.ring.encode(self.coefficients[0], self._result_frac, name=f"{self.name} constant")[
            self._channel
        ]

    def _coefficients(self, party: Evaluator) -> Coefficients:
        constant = self._constant() if party.rank == 0 else None
        if self.private:
            linear, quadratic_ = party.operand(self, "linear"), party.operand(self, "quadratic")
            return Coefficients(constant, linear.opened, quadratic_.opened, linear.mask, quadratic_.mask)
        encoded = self._encoded()
        return Coefficients(constant, encoded[0][self._channel], encoded[1][self._channel])

    def _polynomials(self, party: Evaluator, lane: Lane, x: Share, materials: Sequence[Fields]) -> Rounds:
        """The polynomial of x (images, positions), with f fractional bits."""
        remaining = iter(materials)
        kind = lane[0]
        if self.identity:
            passed: Share = yield from powers(party.rank, self.ring, self.shift, 1, x.ravel(), remaining)
            return passed.reshape(x.shape)
        if isinstance(kind, Quadratic):
            value = yield from quadratic(party.rank, kind, self._coefficients(party), x, next(remaining))
        else:
            value = yield from self._from_powers(party, x, remaining)
        shift = self._result_frac - self.ring.frac_bits
        value = yield from truncate(party.rank, self.ring, shift, value.ravel(), next(remaining))
        return value.reshape(x.shape)

    def _from_powers(self, party: Evaluator, x: Share, materials: Any) -> Rounds:
        """Sum of coefficient times power, with 2f fractional bits."""
        stacked = yield from powers(party.rank, self.ring, self.shift, self.degree, x.ravel(), materials)
        stacked = stacked.reshape(self.degree, *x.shape)
        if self.private:
            weight = party.operand(self, "weight")
            terms = yield from static_product(party.rank, Elementwise(), stacked, weight, next(materials))
        else:
            terms = stacked * self._encoded()[:, None, self._channel]
        value: Share = terms.sum(axis=0, dtype=x.dtype)
        return value + self._constant() if party.rank == 0 else value

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        (x,) = inputs
        batch = len(x)
        flat = x.reshape(batch, -1)
        result = np.empty_like(flat)
        compared = np.ascontiguousarray(flat[:, self._relu]).ravel()
        evaluated = np.ascontiguousarray(flat[:, self._polynomial])
        relu_parts = iter([part for window in chunks(compared.size) for part in window])
        image_parts = iter(self._images(batch))
        relu_results: list[Share] = []
        polynomial_results: list[Share] = [evaluated] if self._silent else []
        for group in self.groups(batch):
            protocols: list[Callable[[list[Fields]], Rounds]] = []
            for lane in group:
                if isinstance(lane[0], Comparison):
                    protocols.append(_relu_protocol(party.rank, lane[0], compared[next(relu_parts)]))
                else:
                    part = evaluated[next(image_parts)]
                    protocols.append(partial(self._polynomials, party, lane, part))
            for lane, share in zip(group, party.lockstep(group, protocols), strict=True):
                (relu_results if isinstance(lane[0], Comparison) else polynomial_results).append(share)
        if relu_results:
            result[:, self._relu] = np.concatenate(relu_results).reshape(batch, -1)
        if polynomial_results:
            result[:, self._polynomial] = np.concatenate(polynomial_results)
        return result.reshape(x.shape)

    def reference(self, *inputs: Integers) -> Integers:
        flat = inputs[0].reshape(len(inputs[0]), -1)
        y = flat[:, self._polynomial] >> self.shift
        result = np.empty_like(flat)
        result[:, self._polynomial] = y if self.identity else self._value_of(y)
        result[:, self._relu] = np.maximum(flat[:, self._relu], 0) >> self.shift
        return result.reshape(inputs[0].shape)

    def _value_of(self, y: Integers) -> Integers:
        """The polynomial of integers with f fractional bits."""
        f = self.ring.frac_bits
        coefficients = self.ring.integers(self._encoded())[:, self._channel]
        value = np.broadcast_to(self.ring.integers(self._constant()), y.shape).copy()
        if self.single:
            value += coefficients[1] * y * y + ((coefficients[0] * y) << f)
        else:
            power = {1: y}
            for order in range(2, self.degree + 1):
                power[order] = (power[order // 2] * power[order - order // 2]) >> f
            for order in range(1, self.degree + 1):
                value += coefficients[order - 1] * power[order]
        shifted: Integers = value >> (self._result_frac - f)
        return shifted


@dataclass(frozen=True, eq=False)
class MaxPool(Step):
    """Maximum of each window by a tournament; outside stands -2^(L-3), so that no difference wraps."""

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    radix: int

    kind: ClassVar[str] = "max_pool"

    def groups(self, batch: int) -> list[Group]:
        count = batch * prod(self.shape)
        return [
            group
            for pairs in windows.levels(prod(self.kernel))
            for group in _chunked(pairs * count, lambda n: Comparison(self.ring, n, self.radix))
        ]

    def _windows(self, x: Share, pad: int) -> list[Share]:
        return windows.windows(x, self.kernel, self.stride, self.padding, self.dilation, pad)

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        outside = -(1 << (self.ring.bits - 3)) % (1 << self.ring.bits) if party.rank == 0 else 0
        candidates = np.stack(self._windows(inputs[0], outside))
        groups = iter(self.groups(len(inputs[0])))
        for pairs in windows.levels(len(candidates)):
            a, b = candidates[0 : 2 * pairs : 2], candidates[1 : 2 * pairs : 2]
            level = [next(groups) for _ in chunks(a.size)]
            winners = b + _compare(party, level, a - b)
            candidates = np.concatenate([winners, candidates[2 * pairs :]])
        result: Share = candidates[0]
        return result

    def reference(self, *inputs: Integers) -> Integers:
        result: Integers = np.max(np.stack(self._windows(inputs[0], -(1 << (self.ring.bits - 3)))), axis=0)
        return result


@dataclass(frozen=True, eq=False)
class SumPool(Step):
    """Sum of each window, local; ``factor`` (public, encoded, broadcast) scales it."""

    kernel: Shape
    stride: Shape
    padding: Shape
    factor: Share | None

    kind: ClassVar[str] = "sum_pool"

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        return self._sum(inputs[0])

    def _sum(self, x: Share) -> Share:
        taps = windows.windows(x, self.kernel, self.stride, self.padding, (1,) * len(self.kernel), 0)
        result = taps[0].copy()
        for tap in taps[1:]:
            result += tap
        return result if self.factor is None else result * self.factor

    def reference(self, *inputs: Integers) -> Integers:
        return self.ring.integers(self._sum(self.ring.elements(inputs[0])))


@dataclass(frozen=True, eq=False)
class Add(Step):
    """Sum of values, each first shifted left to the result's fractional bits: exact and local."""

    shifts: tuple[int, ...]

    kind: ClassVar[str] = "add"

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        a, b = (x << self.ring.scalar(shift) for x, shift in zip(inputs, self.shifts, strict=True))
        result: Share = a + b
        return result

    def reference(self, *inputs: Integers) -> Integers:
        return (inputs[0] << self.shifts[0]) + (inputs[1] << self.shifts[1])


@dataclass(frozen=True, eq=False)
class Concatenate(Step):
    """Concatenation along ``dim`` of the per-image shape, after the same alignment."""

    shifts: tuple[int, ...]
    dim: int

    kind: ClassVar[str] = "concatenate"

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        aligned = [x << self.ring.scalar(shift) for x, shift in zip(inputs, self.shifts, strict=True)]
        return np.concatenate(aligned, axis=self.dim + 1)

    def reference(self, *inputs: Integers) -> Integers:
        aligned = [x << shift for x, shift in zip(inputs, self.shifts, strict=True)]
        return np.concatenate(aligned, axis=self.dim + 1)


@dataclass(frozen=True, eq=False)
class Flatten(Step):
    """All elements of an image as one vector."""

    kind: ClassVar[str] = "flatten"

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        return inputs[0].reshape(len(inputs[0]), -1)

    def reference(self, *inputs: Integers) -> Integers:
        return inputs[0].reshape(len(inputs[0]), -1)


@dataclass(frozen=True, eq=False)
class ArgMax(Step):
    """Index of the largest feature, the lowest on ties."""

    radix: int
    features: int

    kind: ClassVar[str] = "argmax"

    def groups(self, batch: int) -> list[Group]:
        pairs = windows.levels(self.features)
        return [
            (pooling.argmax_lane(self.ring, self.radix, batch, count, first=i == 0),)
            for i, count in enumerate(pairs)
        ]

    def run(self, party: Evaluator, *inputs: Share) -> Share:
        values = np.ascontiguousarray(inputs[0].T)
        indices = np.zeros_like(values)
        if party.rank == 0:
            indices += np.arange(self.features, dtype=values.dtype)[:, None]
        for i, group in enumerate(self.groups(len(inputs[0]))):
            (lane,) = group
            level = partial(pooling.argmax_level, party.rank, lane, values, indices, i == 0)
            ((values, indices),) = party.lockstep(group, [level])
        result: Share = indices[0]
        return result

    def reference(self, *inputs: Integers) -> Integers:
        result: Integers = np.argmax(inputs[0], axis=1).astype(np.int64)
        return result


@dataclass(frozen=True, eq=False)
class Reveal(Step):
    """The result is opened to whoever is to have it: one message one way, or one each way."""

    kind: ClassVar[str] = "reveal"

    def payload(self, batch: int) -> int:
        """Bytes of one share of the result."""
        return batch * prod(self.shape) * self.ring.nbytes

    def reference(self, *inputs: Integers) -> Integers:
        return inputs[0]


def _chunked(count: int, correlation: Callable[[int], Any], *, pad: bool = True) -> list[Group]:
    """One correlation a chunk of a flat tensor, in windows."""
    sizes = [[part.stop - part.start for part in window] for window in chunks(count)]
    return [tuple((correlation(padded(n) if pad else n),) for n in window) for window in sizes]


def _relu_protocol(rank: int, kind: Comparison, part: Share) -> Callable[[list[Fields]], Rounds]:
    """The ReLU of a chunk that may be shorter than its (padded) material."""
    if part.size == kind.count:
        return lambda m: relu(rank, kind, part, m[0])

    def shorter(m: list[Fields]) -> Rounds:
        whole = np.zeros(kind.count, part.dtype)
        whole[: part.size] = part
        result = yield from relu(rank, kind, whole, m[0])
        return result[: part.size]

    return shorter


def _compare(party: Evaluator, groups: list[Group], x: Share) -> Share:
    """ReLU of every element of x, chunk by chunk."""
    flat = np.ascontiguousarray(x).ravel()
    results = []
    for group, window in zip(groups, chunks(flat.size), strict=True):
        protocols = []
        for lane, part in zip(group, window, strict=True):
            assert isinstance(lane[0], Comparison)
            protocols.append(_relu_protocol(party.rank, lane[0], flat[part]))
        results += party.lockstep(group, protocols)
    return _joined(results, x.shape)


def _elementwise(
    party: Evaluator, groups: list[Group], x: Share, protocol: Callable[[Share, list[Fields]], Rounds]
) -> Share:
    """A protocol applied to every chunk of x."""
    flat = np.ascontiguousarray(x).ravel()
    results = []
    for group, window in zip(groups, chunks(flat.size), strict=True):
        results += party.lockstep(group, [partial(protocol, flat[part]) for part in window])
    return _joined(results, x.shape)


def _joined(parts: list[Share], shape: Shape) -> Share:
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)
