"""Fixed-point numbers in the rings of integers mod 2^64 and mod 2^32, rounding rules and bit packing.

A real x is held as the ring element round(x 2^f) mod 2^L; ring elements are unsigned NumPy arrays, negative
numbers in two's complement. Values must stay below 2^(L-2) in magnitude, so that a sum of two of them and the
offset of a truncation cannot wrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core.errors import TradeoffError

Ring = NDArray[Any]  # uint64 or uint32
Words = NDArray[np.uint64]


class FixedPointOverflow(TradeoffError, OverflowError):
    """A value is too large for the fixed-point format.

    Args:
        name: the tensor.
        maximum: its largest absolute value.
        limit: what the format holds.
    """

    def __init__(self, name: str, maximum: float, limit: float) -> None:
        super().__init__(
            f"{name} reaches {maximum:.6g}, but fixed point holds less than {limit:.6g}; "
            "use fewer fractional bits, a larger ring, or scale the values"
        )
        self.name = name
        self.maximum = maximum
        self.limit = limit


@dataclass(frozen=True)
class FixedPoint:
    """A fixed-point format.

    Args:
        ring_bits: L, 64 or 32.
        fraction_bits: f; 16 fits the ring of 64 bits, 8 that of 32.

    Raises:
        ValueError: for another ring, or a fraction that leaves no room for a product.

    Example:
        >>> FixedPoint().decode(FixedPoint().encode([-1.5, 0.25])).tolist()
        [-1.5, 0.25]
    """

    ring_bits: int = 64
    fraction_bits: int = 16

    def __post_init__(self) -> None:
        if self.ring_bits not in (32, 64):
            raise ValueError(f"ring_bits must be 64 or 32, not {self.ring_bits}")
        if not 0 < 2 * self.fraction_bits < self.ring_bits - 2:
            raise ValueError(
                f"fraction_bits must lie between 1 and {(self.ring_bits - 3) // 2}, not {self.fraction_bits}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of ring elements."""
        return np.dtype(f"uint{self.ring_bits}")

    @property
    def signed_dtype(self) -> np.dtype[Any]:
        """Type of the same bits read as two's complement."""
        return np.dtype(f"int{self.ring_bits}")

    @property
    def bound(self) -> int:
        """Integers in the ring stay below this in magnitude: 2^(L-2)."""
        return 1 << (self.ring_bits - 2)

    def limit(self, fraction_bits: int | None = None) -> float:
        """Largest real magnitude (exclusive) at that many fractional bits, f by default."""
        return float(np.ldexp(float(self.bound), -self._fraction(fraction_bits)))

    def encode(self, x: Any, name: str = "value", *, fraction_bits: int | None = None) -> Ring:
        """round(x 2^f) mod 2^L, halves to even.

        Args:
            x: real numbers.
            name: used in errors.
            fraction_bits: in place of f, for example 2f for a bias that is added to a product.

        Raises:
            ValueError: a value is NaN or infinite.
            FixedPointOverflow: a value is too large.
        """
        values = np.asarray(x, dtype=np.float64)
        check_finite(values, name)
        with np.errstate(over="ignore"):
            scaled = np.rint(np.ldexp(values, self._fraction(fraction_bits)))
        if np.abs(scaled).max(initial=0.0) >= self.bound:
            raise FixedPointOverflow(name, float(np.abs(values).max()), self.limit(fraction_bits))
        return np.asarray(scaled.astype(self.signed_dtype)).view(self.dtype)

    def decode(self, elements: Ring, *, fraction_bits: int | None = None) -> NDArray[np.float64]:
        """The real numbers of ring elements with that many fractional bits, f by default.

        Raises:
            TypeError: the elements are of another ring.
        """
        return np.ldexp(self.signed(elements).astype(np.float64), -self._fraction(fraction_bits))

    def _fraction(self, fraction_bits: int | None) -> int:
        return self.fraction_bits if fraction_bits is None else fraction_bits

    def signed(self, elements: Ring) -> NDArray[Any]:
        """Ring elements as signed integers, -2^(L-1) to 2^(L-1) - 1 (a view)."""
        elements = np.asarray(elements)
        if elements.dtype != self.dtype:
            raise TypeError(f"ring elements are {self.dtype}, not {elements.dtype}")
        return elements.view(self.signed_dtype)

    def truncate(self, elements: Ring, bits: int | None = None) -> Ring:
        """floor(x / 2^bits) of signed elements (arithmetic shift); ``bits`` defaults to f."""
        shift = self._fraction(bits)
        return np.asarray(self.signed(elements) >> self.signed_dtype.type(shift)).view(self.dtype)

    def truncate_stochastic(self, elements: Ring, coin: Ring, bits: int | None = None) -> Ring:
        """floor((x + coin) / 2^bits) for a coin uniform in [0, 2^bits): x / 2^bits in expectation.

        The function that truncation with a dealer computes: the floor or one more, one more with probability
        equal to the dropped fraction. Only the low bits of ``coin`` count.

        Args:
            elements: signed magnitude below 2^(L-2).
            coin: of the same type and shape.
            bits: defaults to f.
        """
        shift = self._fraction(bits)
        low = np.asarray(coin, dtype=self.dtype) & self.dtype.type((1 << shift) - 1)
        return self.truncate(np.asarray(elements) + low, shift)


def check_finite(values: NDArray[Any], name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: naming the tensor.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")


def pack_bits(bits: NDArray[Any]) -> Words:
    """Pack booleans, flattened, 64 in a word: bit i of word j is element 64 j + i; the end is padded by 0."""
    flat = np.asarray(bits, dtype=np.bool_).reshape(-1)
    packed = np.packbits(flat, bitorder="little")
    padded = np.zeros(8 * ((flat.size + 63) // 64), dtype=np.uint8)
    padded[: packed.size] = packed
    return padded.view("<u8").astype(np.uint64, copy=False)


def unpack_bits(words: Words, count: int) -> NDArray[np.bool_]:
    """The first ``count`` booleans of words from :func:`pack_bits`.

    Raises:
        ValueError: the words hold fewer.
    """
    words = np.ascontiguousarray(words, dtype="<u8")
    if not 0 <= count <= 64 * words.size:
        raise ValueError(f"{words.size} words hold {64 * words.size} bits, not {count}")
    return np.unpackbits(words.reshape(-1).view(np.uint8), bitorder="little", count=count).astype(np.bool_)
