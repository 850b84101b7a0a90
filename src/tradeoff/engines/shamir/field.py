"""The field of integers modulo the Mersenne prime p = 2^61 - 1, exactly.

An array of dtype ``uint64`` with values in [0, p) is a tensor over the field. Since 2^61 = 1 in it, a product
of 122 bits is reduced by adding its high and low 61 bits. Two implementations of every product stand here:
native kernels (:mod:`tradeoff._native`), and NumPy: products of halves for elements, products of float64
limbs for matrices (:func:`limb_matmul`). Their results are identical.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tradeoff.core import native
from tradeoff.nn.fixed_point import FixedPointOverflow, check_finite

Elements = NDArray[np.uint64]
"""Field elements: uint64 in [0, p)."""

BITS = 61
PRIME = (1 << BITS) - 1
NBYTES = 8
HALF = 1 << (BITS - 1)
"""Elements from here on stand for negative numbers."""

_P = np.uint64(PRIME)
_LIMB = 21
_BLOCK = 1 << (53 - 2 * _LIMB)
_COLUMN_WORDS = 1 << 21


def element(value: int) -> Any:
    """A Python integer as an element."""
    return np.uint64(value % PRIME)


def inverse(value: int) -> int:
    """1 / value.

    Raises:
        ZeroDivisionError: the value is 0.
    """
    if value % PRIME == 0:
        raise ZeroDivisionError("0 has no inverse in the field")
    return pow(value, PRIME - 2, PRIME)


def add(a: Any, b: Any) -> Elements:
    """a + b, broadcast."""
    return _lowered(np.add(a, b, dtype=np.uint64))


def subtract(a: Any, b: Any) -> Elements:
    """a - b, broadcast."""
    difference = np.subtract(a, b, dtype=np.uint64)
    result: Elements = np.minimum(difference, np.add(difference, _P))
    return result


def negate(a: Elements) -> Elements:
    """-a."""
    return subtract(np.uint64(0), a)


def multiply(a: Any, b: Any) -> Elements:
    """a * b element by element, broadcast."""
    kernels = _kernels()
    if kernels is None:
        return split_multiply(a, b)
    a, b = np.broadcast_arrays(a, b)
    out = np.empty(a.shape, np.uint64)
    left, right = (np.ascontiguousarray(x, np.uint64).reshape(-1) for x in (a, b))
    kernels.field_multiply(left, right, out.reshape(-1), native.threads())
    return out


def split_multiply(a: Any, b: Any) -> Elements:
    """a * b by halves of 32 bits: the fallback of :func:`multiply`."""
    a, b = np.asarray(a, np.uint64), np.asarray(b, np.uint64)
    low, half = np.uint64(0xFFFF_FFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    lows, middle, highs = a0 * b0, a0 * b1 + a1 * b0, a1 * b1
    total = (lows & _P) + (lows >> np.uint64(BITS))
    total = total + (middle >> np.uint64(29)) + ((middle & np.uint64((1 << 29) - 1)) << half)
    return reduce(reduce(total) + (highs << np.uint64(3)))


def reduce(x: Any) -> Elements:
    """Any 64-bit words as elements."""
    return _lowered((x & _P) + (x >> np.uint64(BITS)))


def total(x: Elements, axis: int = 0) -> Elements:
    """The sum along an axis of up to 2^31 elements."""
    low = np.sum(x & np.uint64(0xFFFF_FFFF), axis=axis, dtype=np.uint64)
    high = reduce(np.sum(x >> np.uint64(32), axis=axis, dtype=np.uint64))
    return add(reduce(low), rotate(high, 32))


def rotate(x: Elements, bits: int) -> Elements:
    """x * 2^bits: a rotation of 61 bits."""
    bits %= BITS
    if bits == 0:
        return np.asarray(x)
    moved = ((x << np.uint64(bits)) & _P) | (x >> np.uint64(BITS - bits))
    return _lowered(moved)


def matmul(a: Elements, b: Elements) -> Elements:
    """Matrix product.

    Args:
        a: shape (M, K).
        b: shape (K, N).

    Raises:
        ValueError: an operand is not a matrix of uint64, or the inner dimensions differ.
    """
    _check(a, b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul needs shapes (M, K) and (K, N), not {a.shape} and {b.shape}")
    kernels = _kernels()
    if kernels is None:
        return limb_matmul(a, b)
    out = np.empty((a.shape[0], b.shape[1]), np.uint64)
    kernels.field_matmul(np.ascontiguousarray(a), np.ascontiguousarray(b), out, native.threads())
    return out


def limb_matmul(a: Elements, b: Elements) -> Elements:
    """Matrix product by nine float64 products of 21-bit limbs: the fallback of :func:`matmul`.

    A sum of K products of limbs stays below K 2^42, so it is exact in float64 while K <= 2048; longer inner
    dimensions go block by block.
    """
    out = np.zeros((a.shape[0], b.shape[1]), np.uint64)
    for start in range(0, a.shape[1], _BLOCK):
        left, right = _limbs(a[:, start : start + _BLOCK]), _limbs(b[start : start + _BLOCK])
        for i, limb_a in enumerate(left):
            for j, limb_b in enumerate(right):
                out = add(out, rotate((limb_a @ limb_b).astype(np.uint64), _LIMB * (i + j)))
    return out


def conv(
    x: Elements,
    weight: Elements,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Elements:
    """Convolution (as torch: cross-correlation) in one or two dimensions.

    Args:
        x: shape (batch, C_in, [H,] W).
        weight: shape (C_out, C_in / groups, [k_h,] k_w).
        stride, padding, dilation: one number a dimension.
        groups: C_in and C_out are split into so many groups that do not mix.

    Returns:
        shape (batch, C_out, [H_out,] W_out).

    Raises:
        ValueError: shapes or settings do not fit together.
    """
    _check(x, weight)
    dimensions = x.ndim - 2
    if dimensions not in (1, 2) or weight.ndim != x.ndim:
        raise ValueError(f"conv needs one or two spatial dimensions, not {x.shape} and {weight.shape}")
    if groups < 1 or weight.shape[0] % groups or weight.shape[1] * groups != x.shape[1]:
        raise ValueError(f"{groups} groups do not fit inputs {x.shape} and weight {weight.shape}")
    if dimensions == 1:  # a row of height 1
        settings = ((1, *stride), (0, *padding), (1, *dilation))
        return conv(x[:, :, None], weight[:, :, None], *settings, groups)[:, :, 0]
    size = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    if min(weight.shape[2:]) < 1 or min(size) < 1:
        raise ValueError(f"a kernel of {weight.shape[2:]} does not fit an input of {x.shape[2:]}")
    kernels = _kernels()
    if kernels is None:
        return _limb_conv2d(x, weight, size, stride, padding, dilation, groups)
    out = np.empty((x.shape[0], weight.shape[0], *size), np.uint64)
    kernels.field_conv2d(
        np.ascontiguousarray(x),
        np.ascontiguousarray(weight),
        out,
        stride,
        padding,
        dilation,
        groups,
        native.threads(),
    )
    return out


def encode(x: Any, frac_bits: int, bits: int, *, name: str = "tensor") -> Elements:
    """Real numbers as elements with ``frac_bits`` fractional bits.

    Args:
        bits: magnitudes stay below 2^bits as integers.

    Raises:
        FixedPointOverflow: a magnitude does not.
        ValueError: NaN or infinity.
    """
    values = np.asarray(x, np.float64)
    check_finite(values, name)
    scaled = np.rint(np.ldexp(values, frac_bits))
    if np.abs(scaled).max(initial=0.0) >= 2.0**bits:
        raise FixedPointOverflow(name, float(np.abs(values).max()), 2.0 ** (bits - frac_bits))
    return elements(scaled)


def elements(integers: Any) -> Elements:
    """Signed integers of magnitude below p / 2 as elements."""
    signed = np.asarray(integers).astype(np.int64)
    return np.where(signed < 0, signed + PRIME, signed).astype(np.uint64)


def integers(x: Elements) -> NDArray[np.int64]:
    """Elements as signed integers, (p - 1) / 2 at most in magnitude."""
    signed = np.asarray(x).astype(np.int64)
    return np.where(signed >= HALF, signed - PRIME, signed)


def decode(x: Elements, frac_bits: int) -> NDArray[np.float64]:
    """Elements as real numbers."""
    return np.ldexp(integers(x).astype(np.float64), -frac_bits)


def backend() -> str:
    """What computes the products: ``native`` or ``numpy``."""
    return "numpy" if _kernels() is None else "native"


def _lowered(x: Any) -> Elements:
    """Numbers below 2p as elements: the difference wraps around where it would be negative."""
    result: Elements = np.minimum(x, np.subtract(x, _P))
    return result


def _limbs(x: Elements) -> list[NDArray[np.float64]]:
    mask = np.uint64((1 << _LIMB) - 1)
    return [((x >> np.uint64(shift)) & mask).astype(np.float64) for shift in range(0, BITS, _LIMB)]


def _limb_conv2d(
    x: Elements,
    weight: Elements,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Elements:
    """Convolution by unfolded columns, in chunks of images to bound memory."""
    out = np.empty((x.shape[0], weight.shape[0], *size), np.uint64)
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True))
    inputs, outputs = x.shape[1] // groups, weight.shape[0] // groups
    step = max(1, _COLUMN_WORDS // max(1, int(np.prod(weight.shape[1:]) * np.prod(size))))
    for start in range(0, x.shape[0], step):
        padded = np.pad(x[start : start + step], ((0, 0), (0, 0), *((p, p) for p in padding)))
        windows = sliding_window_view(padded, reach, (2, 3))[
            :, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]
        ]  # (images, C_in, H_out, W_out, k_h, k_w)
        for group in range(groups):
            part = windows[:, group * inputs : (group + 1) * inputs].transpose(1, 4, 5, 0, 2, 3)
            rows = weight[group * outputs : (group + 1) * outputs].reshape(outputs, -1)
            product = limb_matmul(rows, part.reshape(rows.shape[1], -1)).reshape(outputs, -1, *size)
            out[start : start + step, group * outputs : (group + 1) * outputs] = product.swapaxes(0, 1)
    return out


def _check(*arrays: Elements) -> None:
    for array in arrays:
        if array.dtype != np.uint64:
            raise ValueError(f"field elements are uint64, not {array.dtype}")


def _kernels() -> Any:
    """The native module if it holds the field's kernels."""
    module = native.extension()
    return module if hasattr(module, "field_matmul") else None
