"""Exact products in the rings of integers modulo 2^64 and 2^32: matrix product and convolution.

An array of dtype ``uint64`` is a tensor over Z_{2^64}, one of ``uint32`` over Z_{2^32}. No BLAS has an
integer product, so two implementations stand here: native kernels (:mod:`tradeoff._native`), and a fallback
that splits each operand into balanced limbs small enough for a float64 product to be exact (see
:func:`limb_matmul`).
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tradeoff.core import native

Ring = NDArray[Any]
"""An array of dtype uint64 or uint32: a tensor over Z_{2^64} or Z_{2^32}."""

_LIMB_BITS = {np.dtype(np.uint64): 22, np.dtype(np.uint32): 16}
_IM2COL_WORDS = 1 << 22


def backend() -> str:
    """What computes the products: ``native-avx512``, ``native-avx2``, ``native-portable`` or ``limbs``."""
    return "limbs" if _kernels() is None else f"native-{native.instruction_set()}"


def matmul(a: Ring, b: Ring) -> Ring:
    """Matrix product modulo 2^64 or 2^32.

    Args:
        a: shape (M, K), uint64 or uint32.
        b: shape (K, N), of the dtype of ``a``.

    Returns:
        A new contiguous array of shape (M, N).

    Raises:
        TypeError: a dtype is not uint64 or uint32, or the two differ.
        ValueError: an operand is not a matrix, or the inner dimensions differ.
    """
    _check_dtypes(a, b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul needs shapes (M, K) and (K, N), not {a.shape} and {b.shape}")
    kernels = _kernels()
    if kernels is None:
        return limb_matmul(a, b)
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    kernels.ring_matmul(np.ascontiguousarray(a), np.ascontiguousarray(b), out, native.threads())
    return out


def conv(
    x: Ring,
    weight: Ring,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Ring:
    """Convolution (as torch: cross-correlation) in one or two dimensions modulo 2^64 or 2^32.

    Args:
        x: shape (batch, C_in, W) or (batch, C_in, H, W), uint64 or uint32.
        weight: shape (C_out, C_in / groups, k) or (C_out, C_in / groups, k_h, k_w), of the dtype of ``x``.
        stride, padding, dilation: one number, or one a dimension; padding with zeros on both sides.
        groups: C_in and C_out are split into so many groups that do not mix.

    Returns:
        A new contiguous array of shape (batch, C_out, [H_out,] W_out).

    Raises:
        TypeError: a dtype is not uint64 or uint32, or the two differ.
        ValueError: shapes, stride, padding, dilation or groups do not fit together.
    """
    _check_dtypes(x, weight)
    dimensions = x.ndim - 2
    if dimensions not in (1, 2) or weight.ndim != x.ndim:
        raise ValueError(
            f"conv needs x (batch, C_in, [H,] W) and weight (C_out, C_in/groups, [k_h,] k_w), "
            f"not {x.shape} and {weight.shape}"
        )
    steps = _per_dimension("stride", stride, dimensions, 1)
    pads = _per_dimension("padding", padding, dimensions, 0)
    spread = _per_dimension("dilation", dilation, dimensions, 1)
    if groups < 1 or x.shape[1] % groups or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not divide C_in={x.shape[1]} and C_out={weight.shape[0]}")
    if weight.shape[1] != x.shape[1] // groups:
        raise ValueError(f"weight has {weight.shape[1]} input channels, needs {x.shape[1]} / {groups} groups")
    if dimensions == 1:  # a row of height 1
        out = _conv2d(x[:, :, None], weight[:, :, None], (1, *steps), (0, *pads), (1, *spread), groups)
        return out[:, :, 0]
    return _conv2d(x, weight, steps, pads, spread, groups)


def limb_matmul(a: Ring, b: Ring) -> Ring:
    """Matrix product modulo 2^64 or 2^32 by float64 products of limbs: the fallback of :func:`matmul`.

    An operand is the sum of limbs d_i 2^(w i) with |d_i| <= 2^(w-1). A float64 sum of K products of limbs is
    exact while 2 (w - 1) + log2 K <= 53, so w = 22 allows K = 2048 at a time. Of the pairs of limbs only
    those with w (i + j) below the ring's width matter: six of nine modulo 2^64, three of four modulo 2^32.
    """
    _check_dtypes(a, b)
    width, limb_bits = 8 * a.dtype.itemsize, _LIMB_BITS[a.dtype]
    block = 1 << (53 - 2 * (limb_bits - 1))
    out = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for start in range(0, a.shape[1], block):
        left = _limbs(a[:, start : start + block], limb_bits)
        right = _limbs(b[start : start + block], limb_bits)
        for i, limb_a in enumerate(left):
            for j, limb_b in enumerate(right):
                shift = limb_bits * (i + j)
                if shift < width:
                    exact = (limb_a @ limb_b).astype(np.int64).astype(a.dtype, copy=False)
                    out += exact << a.dtype.type(shift)
    return out


def _limbs(x: Ring, bits: int) -> list[NDArray[np.float64]]:
    """Balanced limbs of ``bits`` bits, the lowest first, as float64 arrays."""
    kind = x.dtype.type
    limbs = []
    for start in range(0, 8 * x.dtype.itemsize, bits):
        width = min(bits, 8 * x.dtype.itemsize - start)
        half = kind(1 << (width - 1))
        digit = (x + half) & kind((1 << width) - 1)  # the balanced digit, plus half
        limbs.append(digit.astype(np.float64) - float(half))
        x = (x + half) >> kind(width)
    return limbs


def _conv2d(
    x: Ring,
    weight: Ring,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Ring:
    size = tuple(
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    )
    if min(weight.shape[2:]) < 1 or min(size) < 1:
        raise ValueError(
            f"a kernel of {weight.shape[2:]} with dilation {dilation} does not fit an input of {x.shape[2:]} "
            f"with padding {padding}"
        )
    out = np.empty((x.shape[0], weight.shape[0], *size), x.dtype)
    kernels = _kernels()
    if kernels is None:
        _limb_conv2d(x, weight, out, stride, padding, dilation, groups)
    else:
        x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
        kernels.ring_conv2d(x, weight, out, stride, padding, dilation, groups, native.threads())
    return out


def _limb_conv2d(
    x: Ring,
    weight: Ring,
    out: Ring,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> None:
    """Convolution by unfolded columns and :func:`limb_matmul`, in chunks of images to bound memory."""
    reach = [dilation[d] * (weight.shape[2 + d] - 1) + 1 for d in range(2)]
    inputs, outputs = x.shape[1] // groups, weight.shape[0] // groups
    columns = int(np.prod(weight.shape[1:]) * np.prod(out.shape[2:]))
    step = max(1, _IM2COL_WORDS // max(1, columns))
    for start in range(0, x.shape[0], step):
        padded = np.pad(x[start : start + step], ((0, 0), (0, 0), *((p, p) for p in padding)))
        windows = sliding_window_view(padded, reach, (2, 3))[
            :, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]
        ]  # (images, C_in, H_out, W_out, k_h, k_w)
        for group in range(groups):
            part = windows[:, group * inputs : (group + 1) * inputs].transpose(1, 4, 5, 0, 2, 3)
            rows = weight[group * outputs : (group + 1) * outputs].reshape(outputs, -1)
            product = limb_matmul(rows, part.reshape(rows.shape[1], -1))
            shape = (outputs, part.shape[3], *out.shape[2:])
            out[start : start + step, group * outputs : (group + 1) * outputs] = product.reshape(
                shape
            ).swapaxes(0, 1)


def _per_dimension(name: str, value: int | tuple[int, ...], dimensions: int, least: int) -> tuple[int, ...]:
    values = (value,) * dimensions if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != dimensions or min(values) < least:
        raise ValueError(f"{name} must be {dimensions} number(s) of at least {least}, not {value}")
    return values


def _check_dtypes(a: Ring, b: Ring) -> None:
    for operand in (a, b):
        if operand.dtype not in _LIMB_BITS:
            raise TypeError(f"a ring tensor has dtype uint64 or uint32, not {operand.dtype}")
    if a.dtype != b.dtype:
        raise TypeError(f"the operands are of different rings: {a.dtype} and {b.dtype}")


def _kernels() -> Any:
    """The native module if it holds the ring kernels."""
    module = native.extension()
    return module if hasattr(module, "ring_matmul") else None
