"""Products of shared values by Beaver's method.

D. Beaver, "Efficient multiparty protocols using circuit randomization", CRYPTO 1991. For a bilinear map * and
a triple (A, B, C = A*B) of shared uniform A, B: open E = X - A and D = W - B, then

    X*W = C + E*B + A*D + E*D,

the last term at party 0 alone. A convolution triple is a *convolution* triple: the input is opened once,
never its unfolded copy. A static operand W keeps one mask B for the whole session, opened once; A is fresh on
every call.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

import numpy as np

from tradeoff.engines.two_party import ring as kernels
from tradeoff.engines.two_party.correlations import Correlation, Field, Fields
from tradeoff.engines.two_party.protocol import Rounds, silence
from tradeoff.engines.two_party.sharing import Ring, Share


@dataclass(frozen=True)
class MatrixProduct:
    """(M, K) x (N, K) -> (M, N): a linear layer's product with its weight as torch stores it."""

    def __call__(self, x: Share, w: Share) -> Share:
        return kernels.matmul(x, np.ascontiguousarray(w.T))

    def fused(self, x: Share, w: Share, y: Share, v: Share) -> Share:
        """x*w + y*v as one product over the joined inner dimension."""
        return self(np.concatenate([x, y], axis=1), np.concatenate([w, v], axis=1))

    def shape(self, x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
        return (x[0], w[0])


@dataclass(frozen=True)
class Convolution:
    """(batch, C_in, ...) * (C_out, C_in / groups, ...) -> (batch, C_out, ...) in one or two dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __call__(self, x: Share, w: Share) -> Share:
        return kernels.conv(x, w, self.stride, self.padding, self.dilation, self.groups)

    def fused(self, x: Share, w: Share, y: Share, v: Share) -> Share:
        """x*w + y*v, as one convolution over the joined input channels where there is one group."""
        if self.groups > 1:
            return self(x, w) + self(y, v)
        return self(np.concatenate([x, y], axis=1), np.concatenate([w, v], axis=1))

    def shape(self, x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
        sizes = zip(x[2:], w[2:], self.stride, self.padding, self.dilation, strict=True)
        return (x[0], w[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes))


@dataclass(frozen=True)
class Elementwise:
    """x * w element by element, w broadcast over the leading axes of x."""

    def __call__(self, x: Share, w: Share) -> Share:
        result: Share = x * w
        return result

    def fused(self, x: Share, w: Share, y: Share, v: Share) -> Share:
        result: Share = x * w + y * v
        return result

    def shape(self, x: tuple[int, ...], w: tuple[int, ...]) -> tuple[int, ...]:
        return x


BilinearMap = MatrixProduct | Convolution | Elementwise


@dataclass(frozen=True)
class Square(Correlation):
    """(a, a^2) for ``count`` elements."""

    ring: Ring
    count: int

    @property
    def random(self) -> tuple[Field, ...]:
        return (Field("a", (self.count,)),)

    @property
    def derived(self) -> tuple[Field, ...]:
        return (Field("aa", (self.count,)),)

    @property
    def openings(self) -> tuple[int, ...]:
        return (self.count * self.ring.nbytes,)

    def derive(self, values: Fields, static: Fields) -> dict[str, Share]:
        return {"aa": values["a"] * values["a"]}


def square(rank: int, x: Share, m: Fields) -> Rounds:
    """x^2 of flat x: 1 round, one element each. x^2 = e^2 + 2 e a + a^2 with e = x - a."""
    e = x - m["a"]
    e = e + (yield e)
    doubled = e + e
    result: Share = m["aa"] + doubled * m["a"]
    if rank == 0:
        result += e * e
    return result


@dataclass(frozen=True)
class Triple(Correlation):
    """(A, B, A*B) for a bilinear map, both operands fresh."""

    ring: Ring
    map: BilinearMap
    left: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def random(self) -> tuple[Field, ...]:
        return (Field("a", self.left), Field("b", self.right))

    @property
    def derived(self) -> tuple[Field, ...]:
        return (Field("c", self.map.shape(self.left, self.right)),)

    @property
    def openings(self) -> tuple[int, ...]:
        return ((prod(self.left) + prod(self.right)) * self.ring.nbytes,)

    def derive(self, values: Fields, static: Fields) -> dict[str, Share]:
        return {"c": self.map(values["a"], values["b"])}


def product(rank: int, map: BilinearMap, x: Share, w: Share, m: Fields) -> Rounds:
    """x*w of two shared operands: 1 round, both opened under their masks in one message."""
    masked = np.concatenate([(x - m["a"]).ravel(), (w - m["b"]).ravel()])
    masked = masked + (yield masked)
    e, d = masked[: x.size].reshape(x.shape), masked[x.size :].reshape(w.shape)
    right = m["b"] + d if rank == 0 else m["b"]
    return m["c"] + map.fused(e, right, m["a"], d)


@dataclass(frozen=True)
class StaticTriple(Correlation):
    """(A, A*B) for a bilinear map whose right operand keeps the session's mask B (``static["weight"]``).

    Args:
        operand_bits: of the operand in two's complement, where it is smaller than the ring and not masked.
    """

    ring: Ring
    map: BilinearMap
    left: tuple[int, ...]
    right: tuple[int, ...]
    operand_bits: int

    speakers: ClassVar[tuple[int, ...]] = (1,)

    @property
    def random(self) -> tuple[Field, ...]:
        return (Field("a", self.left, owner=1),)

    @property
    def derived(self) -> tuple[Field, ...]:
        return (Field("c", self.map.shape(self.left, self.right)),)

    @property
    def openings(self) -> tuple[int, ...]:
        return (prod(self.left) * self.ring.nbytes,)

    def derive(self, values: Fields, static: Fields) -> dict[str, Share]:
        return {"c": self.map(values["a"], static["weight"])}


class StaticOperand(Protocol):
    """A static operand W of party 0 as one party sees it: W at party 0, D = W - B at party 1."""

    @property
    def weight(self) -> Share: ...

    @property
    def opened(self) -> Share: ...


def static_product(rank: int, map: BilinearMap, x: Share, operand: StaticOperand, m: Fields) -> Rounds:
    """x*W of a shared x and party 0's static W: 1 round, in which party 1 alone opens its share of the input.

    Party 0 computes W*x_0 by itself. For W*x_1, party 1 sends e = x_1 - a under its own mask a, and
    W*x_1 = W*e + D*a + B*a, of which the dealer shared the last term.
    """
    if rank == 0:
        e = yield silence(x)
        return m["c"] + map(x + e, operand.weight)
    yield x - m["a"]
    return m["c"] + map(m["a"], operand.opened)
