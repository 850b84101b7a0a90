"""Dropping fractional bits after a product.

With the dealer: shares of uniform r, rho = r >> f and m = msb(r). Let x' = x + 2^(L-2), so that 0 <= x' <
2^(L-1). Open c = x' + r; the sum wraps exactly if m = 1 and msb(c) = 0, so

    x >> f = (c >> f) - rho + 2^(L-f) * m * (1 - msb(c)) - 2^(L-2-f),

0 or +1 unit above the floor, +1 with probability equal to the dropped fraction; never a gross error for
-2^(L-2) <= x < 2^(L-2). It realizes stochastic rounding with a public coin: c mod 2^f decides, independently
of x.

Locally (P. Mohassel, Y. Zhang, "SecureML", IEEE S&P 2017): each party shifts its own share. No communication,
but a gross error of about 2^(L-f) with probability |x| / 2^L for each element, so it is here for comparison
only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.two_party import elementwise
from tradeoff.engines.two_party.correlations import Correlation, Field, Fields, join
from tradeoff.engines.two_party.protocol import Rounds
from tradeoff.engines.two_party.sharing import Ring, Share


@dataclass(frozen=True)
class Truncation(Correlation):
    """(r, r >> shift, msb(r)) for ``count`` elements."""

    ring: Ring
    count: int
    shift: int

    @property
    def random(self) -> tuple[Field, ...]:
        return (Field("r", (self.count,)),)

    @property
    def derived(self) -> tuple[Field, ...]:
        return (Field("rho", (self.count,)), Field("m", (self.count,)))

    @property
    def openings(self) -> tuple[int, ...]:
        return (self.count * self.ring.nbytes,)

    def correct(self, zero: Fields, one: Fields, static: Fields) -> NDArray[np.uint64]:
        rows = elementwise.truncation_corrections(zero["r"] + one["r"], zero["rho"], zero["m"], self.shift)
        return join(self, list(rows))


def truncate(rank: int, ring: Ring, shift: int, x: Share, m: Fields) -> Rounds:
    """x >> shift of flat x, stochastically rounded: 1 round, one element each."""
    c = x + m["r"]
    if rank == 0:
        c += ring.scalar(1 << (ring.bits - 2))
    c = c + (yield c)
    return elementwise.truncation(c, m["rho"], m["m"], shift, rank)


def truncate_locally(rank: int, ring: Ring, shift: int, x: Share) -> Share:
    """x >> shift without communication, wrong by about 2^(L-shift) with probability |x| / 2^L an element."""
    own: Share = x if rank == 0 else -x
    own = own >> ring.scalar(shift)
    return own if rank == 0 else -own
