"""Protocols on shared values, as one server runs them.

A shared tensor is an array (copies, ...): this server's shares of x and, where computations are verified
(``Options.authenticated``), of alpha x with a key alpha that nobody knows. All linear operations act on both;
a product multiplies both by the other operand, so an error in either breaks the relation, which
:meth:`Server.verify` finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.field import HALF, PRIME, Elements
from tradeoff.engines.shamir.materials import MaskedSign, Reduction, StrictSign, Truncation

if TYPE_CHECKING:
    from tradeoff.engines.shamir.server import Server

_OFFSET = 1 << 59
_INVERSE_OF_2 = field.element(field.inverse(2))


def multiply(server: Server, x: Elements, y: Elements) -> Elements:
    """x * y element by element: 1 round, one element opened a product and copy.

    Both degrees of the parties' shares add up to 2t; with a random r shared by degrees t and 2t, they open
    e = x y - r and hold x y = e + r by degree t (I. Damgard, J. Nielsen, CRYPTO 2007).
    """
    server.take(Reduction(server.options, x[0].size))
    return server.reduce(field.multiply(x, y[:1]), "a product")


def truncate(server: Server, x: Elements, shift: int) -> Elements:
    """x >> shift of flat x, -2^58 < x < 2^58: floor or one more, one more with probability equal to the
    dropped fraction: 1 round, one element.

    c = x + 2^59 + r is opened, r uniform. As an integer x + 2^59 = c + w p - r, where the sum wrapped, w = 1,
    exactly if r >= 2^60 and c < 2^60.
    """
    kind = Truncation(server.options, x.shape[1], shift)
    given = server.take(kind)
    opened = field.add(server.plus(x, field.element(_OFFSET)), given["r"])
    c = server.open(opened[:1], "a truncation")[0]
    known, changed = _shifted(c, shift)
    wrapped = field.subtract(field.multiply(given["top"], changed), given["shifted"])
    return server.plus(wrapped, field.subtract(known, field.element(_OFFSET >> shift)))


def nonnegative(server: Server, x: Elements) -> Elements:
    """[x >= 0] of flat x, -2^m <= x < 2^m with m = ``bound_bits``."""
    if server.options.nonlinear == "strict":
        return _strict_sign(server, x)
    return _masked_sign(server, x)


def relu(server: Server, x: Elements) -> Elements:
    """max(x, 0) of flat x."""
    return multiply(server, x, nonnegative(server, x))


def _strict_sign(server: Server, x: Elements) -> Elements:
    """As :func:`truncate` by m bits, but exact: the borrow of the low bits is computed.

    With A = c + w p the bits of A are public up to w, so each A_i b_i with a bit b_i of r is local, given the
    products of the b_i and the top bit of r: so are generate g_i = b_i (1 - A_i) and propagate p_i = [A_i =
    b_i]. The borrow is a tree of (g, p) = (g_high + p_high g_low, p_high p_low): 1 + ceil(log2 m) rounds.
    """
    kind = StrictSign(server.options, x.shape[1])
    given = server.take(kind)
    opened = field.add(server.plus(x, field.element(1 << kind.leaves)), given["r"])
    c = server.open(opened[:1], "a comparison")[0]
    known, changed = _shifted(c, kind.leaves)
    borrow = _borrow(server, kind, *_leaves(server, c, kind.leaves, given))
    bit = field.subtract(field.multiply(given["top"], changed), field.add(given["shifted"], borrow))
    return server.plus(bit, known)


def _leaves(
    server: Server, c: Elements, leaves: int, given: dict[str, Elements]
) -> tuple[Elements, Elements]:
    """Generate and propagate of every bit, (copies, leaves, count) each."""
    places = np.arange(leaves, dtype=np.uint64)[:, None]
    one = np.uint64(1)
    plain = (c >> places) & one
    wrapped = ((c + np.uint64(PRIME)) >> places) & one
    small = c < np.uint64(HALF)
    up, down = small & (wrapped > plain), small & (wrapped < plain)
    bits, zero = given["bits"], np.uint64(0)
    top = given["top"][:, None]
    both = np.where(plain == one, bits, zero)  # A_i b_i
    both = field.add(both, np.where(up, given["top_bits"], zero))
    both = field.subtract(both, np.where(down, given["top_bits"], zero))
    unknown = field.subtract(np.where(up, top, zero), np.where(down, top, zero))  # A_i less its public part
    generate = field.subtract(bits, both)
    propagate = field.subtract(field.add(both, both), field.add(unknown, bits))
    return generate, server.plus(propagate, one - plain)


def _borrow(server: Server, kind: StrictSign, g: Elements, p: Elements) -> Elements:
    """The root's g of a tree over axis 1, the lowest bit first."""
    for pairs, _ in kind.levels:
        low, high = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        factor = p[:, high]
        left = np.concatenate([factor, factor[:, 1:]], axis=1)
        right = np.concatenate([g[:1, low], p[:1, low][:, 1:]], axis=1)
        product = server.reduce(field.multiply(left, right), "a comparison's tree")
        merged = field.add(g[:, high], product[:, :pairs])
        lowest = np.zeros_like(p[:, :1])  # the propagate of the lowest node is never asked for
        g = np.concatenate([merged, g[:, 2 * pairs :]], axis=1)
        p = np.concatenate([lowest, product[:, pairs:], p[:, 2 * pairs :]], axis=1)
    return g[:, 0]


def _masked_sign(server: Server, x: Elements) -> Elements:
    """y = s (2 (R x + q) + 1) is opened, with a random sign s, R of log-uniform size and 0 <= q < R: its sign
    is that of x up to s, its size is that of x up to R, so it shows about how large x is.

    1 round (2 where computations are verified), one element.
    """
    kind = MaskedSign(server.options, x.shape[1])
    given = server.take(kind)
    product = field.multiply(x, given["factor"][:1])
    if server.options.authenticated:
        masked = field.add(server.reduce(product, "a masked value"), given["offset"])
        y = server.open(masked[:1], "a masked value")[0]
    else:
        masked = field.add(product, given["offset"])
        y = server.open(field.add(masked, server.zeros(masked.shape)), "a masked value", product=True)[0]
    signs = np.where(y < np.uint64(HALF), given["sign"], field.negate(given["sign"]))
    return field.multiply(server.plus(signs, np.uint64(1)), _INVERSE_OF_2)


def _shifted(c: Elements, shift: int) -> tuple[Elements, Elements]:
    """c >> shift, and what is added to it if the sum wrapped: 0 where it cannot have."""
    known = c >> np.uint64(shift)
    changed = ((c + np.uint64(PRIME)) >> np.uint64(shift)) - known
    return known, np.where(c < np.uint64(HALF), changed, np.uint64(0))
