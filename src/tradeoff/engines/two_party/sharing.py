"""The ring, fixed point, and additive shares.

A value x of the ring Z_{2^L} is held as two shares x = x_0 + x_1 mod 2^L; party 0 holds x_0, party 1 holds
x_1. A bit is held as b = b_0 xor b_1, 64 bits a word, little-endian. Public constants are added by party 0
alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.nn.fixed_point import FixedPointOverflow, check_finite

Share = NDArray[Any]
"""One party's share: unsigned integers of the ring's width, any shape."""

WORD = np.dtype("<u8")
"""Packed bits travel in little-endian words of 64."""


@dataclass(frozen=True)
class Ring:
    """Z_{2^bits} with fixed-point numbers of ``frac_bits`` fractional bits.

    A value x is valid before a truncation or fused comparison while |x| < 2^(bits-2) as an integer.
    """

    bits: int = 64
    frac_bits: int = 16

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise ValueError(f"the ring has 32 or 64 bits, not {self.bits}")
        if not 1 <= self.frac_bits <= self.bits // 3:
            raise ValueError(f"frac_bits must lie in 1..{self.bits // 3} for a {self.bits}-bit ring")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Unsigned integers whose wrap-around is the ring's."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def nbytes(self) -> int:
        """Bytes of one element."""
        return self.bits // 8

    def scalar(self, value: int) -> Any:
        """A public Python integer as an element."""
        return self.dtype.type(value % (1 << self.bits))

    def elements(self, integers: NDArray[Any]) -> Share:
        """Signed integers as elements."""
        return np.ascontiguousarray(integers, dtype=np.int64).astype(self.dtype)

    def integers(self, elements: Share) -> NDArray[np.int64]:
        """Elements as signed integers in [-2^(bits-1), 2^(bits-1))."""
        return np.ascontiguousarray(elements).view(f"<i{self.nbytes}").astype(np.int64)

    def encode(self, x: NDArray[Any], frac_bits: int | None = None, *, name: str = "tensor") -> Share:
        """Real numbers as elements with ``frac_bits`` fractional bits.

        Raises:
            FixedPointOverflow: when an encoded magnitude reaches 2^(bits-2).
            ValueError: for NaN or infinity.
        """
        frac = self.frac_bits if frac_bits is None else frac_bits
        values = np.asarray(x, np.float64)
        check_finite(values, name)
        scaled = np.rint(np.ldexp(values, frac))
        bound = 2.0 ** (self.bits - 2)
        if np.abs(scaled).max(initial=0.0) >= bound:
            raise FixedPointOverflow(name, float(np.abs(values).max()), bound / 2.0**frac)
        return self.elements(scaled)

    def decode(self, elements: Share, frac_bits: int | None = None) -> NDArray[np.float64]:
        """Elements as real numbers."""
        frac = self.frac_bits if frac_bits is None else frac_bits
        return np.ldexp(self.integers(elements).astype(np.float64), -frac)


def padded(count: int) -> int:
    """Elements rounded up to whole words at every level of the comparison tree."""
    return -(-count // 64) * 64


def share_of_owner(x: Share, mask: Share) -> Share:
    """The owner's share of its x; the peer's is the mask, from the common generator: 0 bytes."""
    return x - mask
