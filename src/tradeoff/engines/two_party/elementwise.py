"""The last, local steps of truncation and ReLU on shares, and the dealer's corrections for them.

L is the width of the ring (64 or 32, from the dtype), ``shift`` the number f of dropped bits. Arrays are
flat, of one dtype (uint64 or uint32) and length n; bits are packed 64 a word
(:mod:`~tradeoff.engines.two_party.bits`). The dealer gives shares of r, rho = r >> f, m = [top bit of r], a
random bit s, and products of these; c is the opened, masked value. Every function returns this party's share,
or for the dealer what party 1 needs so that the shares add up.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core import native
from tradeoff.engines.two_party.bits import Words, unpack

Ring = NDArray[Any]
"""A flat array of dtype uint64 or uint32."""


def truncation(c: Ring, rho: Ring, m: Ring, shift: int, party: int) -> Ring:
    """Share of x >> f, error 0 or +1 unit, from c = x + 2^(L-2) + r opened, -2^(L-2) <= x < 2^(L-2).

    (c >> f) - rho + w 2^(L-f) - 2^(L-2-f), where w = m (1 - top bit of c) says that the sum wrapped around.
    """
    _check_party(party)
    kind, width = _check(shift, c, rho, m)
    kernels = _kernels()
    if kernels is not None:
        out = np.empty_like(c)
        kernels.step_truncation(*_flat(c, rho, m), shift, party, out, native.threads())
        return out
    share: Ring = (kind(1) - (c >> kind(width - 1))) * (m << kind(width - shift)) - rho
    return share + _opened_part(c, shift) if party == 0 else share


def relu(c: Ring, x: Ring, t: Words, s: Ring, r_s: Ring) -> Ring:
    """Share of x [x >= 0] = t x + (1 - 2t) (c s - r s), where c = x + r and t = [x >= 0] xor s were opened.

    Args:
        c: opened.
        x: this party's share.
        t: opened bits, packed.
        s, r_s: this party's shares of s and r s.
    """
    kind, _ = _check(None, c, x, s, r_s)
    _check_bits(t, c)
    kernels = _kernels()
    if kernels is not None:
        out = np.empty_like(c)
        kernels.step_relu(*_flat(c, x), t, *_flat(s, r_s), out, native.threads())
        return out
    product = c * s - r_s
    bit = unpack(t, c.size).astype(kind)
    result: Ring = bit * x + (kind(1) - bit - bit) * product
    return result


def truncated_relu(
    c: Ring, t: Words, rho: Ring, m: Ring, s: Ring, rho_s: Ring, m_s: Ring, shift: int, party: int
) -> Ring:
    """Share of (x >> f) [x >= 0], error 0 or +1 unit, from c = x + 2^(L-2) + r and t = [x >= 0] xor s opened.

    With y = truncation of x: t y + (1 - 2t) (y s), where
    y s = ((c >> f) - 2^(L-2-f)) s - rho s + 2^(L-f) (1 - top bit of c) m s.
    """
    _check_party(party)
    kind, width = _check(shift, c, rho, m, s, rho_s, m_s)
    _check_bits(t, c)
    kernels = _kernels()
    if kernels is not None:
        out = np.empty_like(c)
        kernels.step_truncated_relu(
            *_flat(c), t, *_flat(rho, m, s, rho_s, m_s), shift, party, out, native.threads()
        )
        return out
    value = truncation(c, rho, m, shift, party)
    product = _opened_part(c, shift) * s - rho_s
    product += (kind(1) - (c >> kind(width - 1))) * (m_s << kind(width - shift))
    bit = unpack(t, c.size).astype(kind)
    result: Ring = bit * value + (kind(1) - bit - bit) * product
    return result


def truncation_corrections(r: Ring, rho0: Ring, m0: Ring, shift: int) -> Ring:
    """Party 1's shares of (rho, m), shape (2, n), from the clear r and party 0's shares."""
    kind, width = _check(shift, r, rho0, m0)
    kernels = _kernels()
    if kernels is not None:
        out = np.empty((2, r.size), r.dtype)
        kernels.deal_truncation(*_flat(r, rho0, m0), shift, out, native.threads())
        return out
    return np.stack([(r >> kind(shift)) - rho0, (r >> kind(width - 1)) - m0])


def relu_corrections(r: Ring, s: Words, bits0: Ring, s0: Ring, r_s0: Ring) -> Ring:
    """Party 1's shares of (bits of r, s, r s), shape (3, n).

    Args:
        r: clear mask.
        s: clear random bits, packed.
        bits0: party 0's xor-share of the bits of r.
        s0, r_s0: party 0's shares of s and r s.
    """
    kind, _ = _check(None, r, bits0, s0, r_s0)
    _check_bits(s, r)
    kernels = _kernels()
    if kernels is not None:
        out = np.empty((3, r.size), r.dtype)
        kernels.deal_relu(*_flat(r), s, *_flat(bits0, s0, r_s0), out, native.threads())
        return out
    bit = unpack(s, r.size).astype(kind)
    return np.stack([r ^ bits0, bit - s0, r * bit - r_s0])


def truncated_relu_corrections(
    r: Ring, s: Words, bits0: Ring, rho0: Ring, m0: Ring, s0: Ring, rho_s0: Ring, m_s0: Ring, shift: int
) -> Ring:
    """Party 1's shares of (bits of r, rho, m, s, rho s, m s), shape (6, n), as the functions above."""
    kind, width = _check(shift, r, bits0, rho0, m0, s0, rho_s0, m_s0)
    _check_bits(s, r)
    kernels = _kernels()
    if kernels is not None:
        out = np.empty((6, r.size), r.dtype)
        kernels.deal_truncated_relu(
            *_flat(r), s, *_flat(bits0, rho0, m0, s0, rho_s0, m_s0), shift, out, native.threads()
        )
        return out
    bit = unpack(s, r.size).astype(kind)
    rho, m = r >> kind(shift), r >> kind(width - 1)
    return np.stack([r ^ bits0, rho - rho0, m - m0, bit - s0, rho * bit - rho_s0, m * bit - m_s0])


def _opened_part(c: Ring, shift: int) -> Ring:
    """(c >> f) - 2^(L-2-f): the public part of a truncated value."""
    kind, width = c.dtype.type, 8 * c.dtype.itemsize
    result: Ring = (c >> kind(shift)) - kind(1 << (width - 2 - shift))
    return result


def _check_party(party: int) -> None:
    if party not in (0, 1):
        raise ValueError(f"the party is 0 or 1, not {party}")


def _check(shift: int | None, *arrays: Ring) -> tuple[Any, int]:
    """The scalar type and the width L of flat arrays of one ring and length."""
    first = arrays[0]
    if first.dtype not in (np.uint64, np.uint32):
        raise TypeError(f"a ring tensor has dtype uint64 or uint32, not {first.dtype}")
    for array in arrays:
        if array.ndim != 1 or array.shape != first.shape or array.dtype != first.dtype:
            raise ValueError(
                f"arrays must be flat, of one length and dtype: {array.shape} {array.dtype} "
                f"beside {first.shape} {first.dtype}"
            )
    width = 8 * first.dtype.itemsize
    if shift is not None and not 1 <= shift <= width - 2:
        raise ValueError(f"shift must be between 1 and {width - 2}, not {shift}")
    return first.dtype.type, width


def _check_bits(bits: Words, elements: Ring) -> None:
    if bits.dtype != np.uint64 or bits.ndim != 1 or 64 * bits.size < elements.size:
        raise ValueError(
            f"{elements.size} elements need as many bits packed in uint64, not {bits.shape} {bits.dtype}"
        )


def _flat(*arrays: Ring) -> tuple[Ring, ...]:
    return tuple(np.ascontiguousarray(array) for array in arrays)


def _kernels() -> Any:
    """The native module if it holds these steps."""
    module = native.extension()
    return module if hasattr(module, "step_relu") else None
