"""Polynomial activations of shared values.

A quadratic c_2 x^2 + c_1 x + c_0 costs one opening, beside the truncation that follows it, also when x still
carries the fractional bits of a product and when the coefficients are private: with the notation of
:mod:`tradeoff.engines.two_party.truncation`, the truncated value is

    y = K - u,    K = (c >> f) - 2^(L-2-f),    u = rho - w m,    w = 2^(L-f) (1 - msb(c)),

with K and w public. So y^2 = K^2 - 2 K u + u^2 with u^2 = rho^2 - 2 w rho m + w^2 m is local, given shares of
rho, m, rho^2 and rho m. A private coefficient C, of which D = C - B was opened
once, multiplies y and y^2 locally given shares of the products of B with these four. Without bits to drop, c
= x + r, K = c and u = r.

The result has 3f fractional bits, so it must stay below 2^(L-2-3f); where it may not, and for degrees above
2, powers are truncated one by one (:func:`powers`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tradeoff.engines.two_party.arithmetic import Elementwise, Square, Triple, product, square
from tradeoff.engines.two_party.correlations import Correlation, Field, Fields
from tradeoff.engines.two_party.protocol import Lane, Rounds
from tradeoff.engines.two_party.sharing import Ring, Share
from tradeoff.engines.two_party.truncation import Truncation, truncate


@dataclass(frozen=True)
class Quadratic(Correlation):
    """Material of one quadratic on ``shape`` = (images, positions).

    Args:
        shift: fractional bits to drop from x first.
        private: whether the coefficients are private; the static masks are then ``linear`` and ``quadratic``,
            one value a position.
        operand_bits: of the coefficients in two's complement, where they are smaller than the ring.
    """

    ring: Ring
    shape: tuple[int, int]
    shift: int
    private: bool
    operand_bits: int

    @property
    def random(self) -> tuple[Field, ...]:
        return (Field("r", self.shape),)

    @cached_property
    def derived(self) -> tuple[Field, ...]:
        names = ["u", "uu"]
        if self.shift:
            names += ["m", "um"]
        if self.private:
            names += [f"quadratic_{name}" for name in names]
            names += ["linear_u", "linear_m"] if self.shift else ["linear_u"]
        return tuple(Field(name, self.shape) for name in names)

    @property
    def openings(self) -> tuple[int, ...]:
        return (self.shape[0] * self.shape[1] * self.ring.nbytes,)

    def derive(self, values: Fields, static: Fields) -> dict[str, Share]:
        r = values["r"]
        u = r >> self.ring.scalar(self.shift)
        derived = {"u": u, "uu": u * u}
        if self.shift:
            m = r >> self.ring.scalar(self.ring.bits - 1)
            derived |= {"m": m, "um": u * m}
        if self.private:
            derived |= {f"quadratic_{name}": value * static["quadratic"] for name, value in derived.items()}
            derived |= {
                f"linear_{name}": derived[name] * static["linear"] for name in ("u", "m") if name in derived
            }
        return derived


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of a quadratic, one value a position, as one party sees them.

    Args:
        constant: party 0's addend with all fractional bits of the result; None at party 1.
        linear, quadratic: the public value, or D = C - B for a private one.
        linear_mask, quadratic_mask: B, for private ones, at party 0.
    """

    constant: Share | None
    linear: Share
    quadratic: Share
    linear_mask: Share | None = None
    quadratic_mask: Share | None = None


def quadratic(rank: int, kind: Quadratic, coefficients: Coefficients, x: Share, m: Fields) -> Rounds:
    """c_2 y^2 + 2^f c_1 y + c_0 with y = x >> shift, x of shape (images, positions): 1 round."""
    ring, shift = kind.ring, kind.shift
    c = x + m["r"]
    if shift and rank == 0:
        c += ring.scalar(1 << (ring.bits - 2))
    c = c + (yield c)
    K, w = c, None
    if shift:
        K = (c >> ring.scalar(shift)) - ring.scalar(1 << (ring.bits - 2 - shift))
        w = ((c >> ring.scalar(ring.bits - 1)) ^ ring.scalar(1)) << ring.scalar(ring.bits - shift)

    def power(order: int, prefix: str, unit: Share | None) -> Share:
        """Share of (unit) y^order, where the dealer gave the products of the unit under ``prefix``."""
        u = m[f"{prefix}u"] if w is None else m[f"{prefix}u"] - w * m[f"{prefix}m"]
        result: Share = -u
        if order == 2:
            result = m[f"{prefix}uu"] - (K + K) * u
            if w is not None:
                result += w * (w * m[f"{prefix}m"] - m[f"{prefix}um"] - m[f"{prefix}um"])
        if unit is not None:
            result += (K * K if order == 2 else K) * unit
        return result

    one = np.ones((), x.dtype) if rank == 0 else None
    first = coefficients.linear * power(1, "", one)
    if kind.private:
        first += power(1, "linear_", coefficients.linear_mask)
    total: Share = (first << ring.scalar(ring.frac_bits)) + coefficients.quadratic * power(2, "", one)
    if kind.private:
        total += power(2, "quadratic_", coefficients.quadratic_mask)
    if coefficients.constant is not None:
        total += coefficients.constant
    return total


def powers_lane(ring: Ring, count: int, shift: int, degree: int) -> Lane:
    """Correlations that :func:`powers` consumes."""
    lane: list[Correlation] = [Truncation(ring, count, shift)] if shift else []
    for order in range(2, degree + 1):
        even = order % 2 == 0
        lane.append(Square(ring, count) if even else Triple(ring, Elementwise(), (count,), (count,)))
        lane.append(Truncation(ring, count, ring.frac_bits))
    return tuple(lane)


def powers(rank: int, ring: Ring, shift: int, degree: int, x: Share, materials: Iterator[Fields]) -> Rounds:
    """y, y^2, ... y^degree of y = x >> shift, each with f fractional bits, stacked as (degree, count)."""
    f = ring.frac_bits
    results = [(yield from truncate(rank, ring, shift, x, next(materials))) if shift else x]
    for order in range(2, degree + 1):
        half = results[order // 2 - 1]
        if order % 2 == 0:
            raw = yield from square(rank, half, next(materials))
        else:
            raw = yield from product(
                rank, Elementwise(), half, results[order - order // 2 - 1], next(materials)
            )
        results.append((yield from truncate(rank, ring, f, raw, next(materials))))
    return np.stack(results)
