"""Comparison with zero and ReLU, by opening under a mask whose bits the dealer shared.

Open c = x + r; then x = c - r and, with L-bit words,

    msb(x) = c_{L-1} ^ r_{L-1} ^ borrow,    borrow = [c mod 2^(L-1) < r mod 2^(L-1)].

The borrow is a generate/propagate prefix over L leaves that are local functions of the public c and the
shared bits of r, evaluated by a tree of radix 4 (or 2) whose nodes open their inputs under masks (see
:mod:`tradeoff.engines.two_party.bits`). With b = 1 ^ msb(x) and a random shared bit s, open t = b ^ s; then
b = t + (1 - 2t) s and ReLU(x) = x b = t x + (1 - 2t)(c s - r s) is local, because the dealer shared s and r
s. A ReLU that follows a product also drops its fractional bits in the same rounds (``shift``), with shares of
rho = r >> f, m = msb(r), rho s and m s, as in :mod:`tradeoff.engines.two_party.truncation`.

Radix 4, L = 64: 8 + 18.25 + 0.125 bytes and 5 rounds a ReLU; radix 2: 8 + 23.5 + 0.125 bytes and 8 rounds.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.two_party import bits, elementwise
from tradeoff.engines.two_party.correlations import Correlation, Field, Fields, join
from tradeoff.engines.two_party.protocol import Rounds
from tradeoff.engines.two_party.sharing import Ring, Share


@dataclass(frozen=True)
class Comparison(Correlation):
    """Material of a ReLU of ``count`` elements, a multiple of 64.

    Args:
        radix: 4 or 2, of the tree.
        shift: fractional bits that the ReLU drops; 0 for a plain ReLU.
    """

    ring: Ring
    count: int
    radix: int = 4
    shift: int = 0

    @cached_property
    def tree(self) -> bits.ComparisonTree:
        return bits.ComparisonTree(self.ring.bits, self.radix)

    @cached_property
    def random(self) -> tuple[Field, ...]:
        words = self.tree.level_words(self.count)
        masks = (
            Field(f"masks{i}", (level.inputs, words[i]), packed=True)
            for i, level in enumerate(self.tree.levels)
        )
        return (Field("r", (self.count,)), Field("coin", (self.count // 64,), packed=True), *masks)

    @cached_property
    def derived(self) -> tuple[Field, ...]:
        names = ("bits", "rho", "m", "s", "rho_s", "m_s") if self.shift else ("bits", "s", "r_s")
        words = self.tree.level_words(self.count)
        products = (
            Field(f"products{i}", (level.products, words[i]), packed=True)
            for i, level in enumerate(self.tree.levels)
        )
        return (*(Field(name, (self.count,)) for name in names), *products)

    @cached_property
    def openings(self) -> tuple[int, ...]:
        return (self.count * self.ring.nbytes, *self.tree.opened_bytes(self.count), self.count // 8)

    def correct(self, zero: Fields, one: Fields, static: Fields) -> NDArray[np.uint64]:
        r: Share = zero["r"] + one["r"]
        coin: Share = zero["coin"] ^ one["coin"]
        if self.shift:
            rows = elementwise.truncated_relu_corrections(
                r,
                coin,
                zero["bits"],
                zero["rho"],
                zero["m"],
                zero["s"],
                zero["rho_s"],
                zero["m_s"],
                self.shift,
            )
        else:
            rows = elementwise.relu_corrections(r, coin, zero["bits"], zero["s"], zero["r_s"])
        levels = [
            level.corrections(zero[f"masks{i}"], one[f"masks{i}"], zero[f"products{i}"])
            for i, level in enumerate(self.tree.levels)
        ]
        return join(self, [*rows, *levels])


def nonnegative(rank: int, tree: bits.ComparisonTree, c: Share, m: Fields) -> Rounds:
    """t = [x >= 0] ^ s, opened and packed, from the opened c = x + r."""
    g: Share
    p: Share | None
    g, p = bits.leaves(c, m["bits"], rank)
    for i, level in enumerate(tree.levels):
        masks = m[f"masks{i}"]
        assert p is not None  # only the last level has none
        masked, linear = level.mask(g, p, masks)
        opened = masked ^ (yield masked)
        g, p = level.evaluate(opened, linear, masks, m[f"products{i}"], rank)
    t = bits.nonnegative_bits(c, m["bits"], g, rank) ^ m["coin"]
    return t ^ (yield t)


def relu(rank: int, kind: Comparison, x: Share, m: Fields) -> Rounds:
    """ReLU(x) of flat x, ``kind.shift`` fractional bits dropped; exact apart from the truncation's unit."""
    c = x + m["r"]
    if not kind.shift:
        c = c + (yield c)
        t = yield from nonnegative(rank, kind.tree, c, m)
        return elementwise.relu(c, x, t, m["s"], m["r_s"])
    half = kind.ring.scalar(1 << (kind.ring.bits - 2))
    c = c + (yield c)
    t = yield from nonnegative(rank, kind.tree, c, m)
    return elementwise.truncated_relu(
        c + half, t, m["rho"], m["m"], m["s"], m["rho_s"], m["m_s"], kind.shift, rank
    )


def at_least_zero(rank: int, kind: Comparison, x: Share, m: Fields) -> Rounds:
    """The bit [x >= 0] as an additive share and ReLU(x), stacked in one array of shape (2, count)."""
    c = x + m["r"]
    c = c + (yield c)
    t = yield from nonnegative(rank, kind.tree, c, m)
    bit = bits.unpack(t, kind.count).astype(x.dtype)
    share = (kind.ring.scalar(1) - bit - bit) * m["s"]
    if rank == 0:
        share += bit
    return np.stack([share, elementwise.relu(c, x, t, m["s"], m["r_s"])])
