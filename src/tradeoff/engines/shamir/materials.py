"""What protocols use up: correlated randomness, and the openings that they make with it.

Each class describes one protocol on a flat tensor: how much it takes of the dealer and of the servers' common
keys, and what it opens, round by round. The same description drives the dealer, the execution (every opening
is checked against it) and the predicted cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.field import HALF, Elements
from tradeoff.engines.shamir.options import Options
from tradeoff.engines.shamir.sharing import uniform
from tradeoff.engines.transport.prg import Stream

Shape = tuple[int, ...]
Fields = Mapping[str, Elements]
"""Shares of dealt values by name, (copies, *shape)."""

SEEDS = 2
"""Elements whose sum of 122 bits names the random coefficients of a verification."""


@dataclass(frozen=True)
class Opening:
    """One round.

    Args:
        elements: that each server shows its shares of.
        product: whether they are shares of products, of degree 2t.
    """

    elements: int
    product: bool

    def degree(self, options: Options) -> int:
        return options.product_degree if self.product else options.threshold


@dataclass(frozen=True)
class Material:
    """Base of all materials.

    Args:
        options: of the program.
        count: elements of the flat tensor.
    """

    options: Options
    count: int

    @property
    def dealt(self) -> dict[str, Shape]:
        """Values that the dealer shares, with their multiples by the key where values carry such."""
        return {}

    def deal(self, stream: Stream) -> dict[str, Elements]:
        """Those values in the clear (dealer only)."""
        return {}

    @property
    def doubles(self) -> int:
        """Random elements that are shared twice, by degrees t and 2t, or zeros of degree 2t."""
        return 0

    @property
    def openings(self) -> tuple[Opening, ...]:
        raise NotImplementedError

    @property
    def recorded(self) -> int:
        """Products for the next verification."""
        return 0

    @cached_property
    def dealt_elements(self) -> int:
        """Elements that a server gets of the dealer's values."""
        return self.options.copies * sum(prod(shape) for shape in self.dealt.values())


@dataclass(frozen=True)
class Reduction(Material):
    """Products, of degree 2t, are reduced to degree t: one element opened a product, 1 round."""

    @property
    def doubles(self) -> int:
        return self.options.copies * self.count

    @property
    def openings(self) -> tuple[Opening, ...]:
        return (Opening(self.options.copies * self.count, True),)

    @property
    def recorded(self) -> int:
        return self.count if self.options.authenticated else 0


@dataclass(frozen=True)
class Authentication(Material):
    """Values are multiplied by the key: 1 round."""

    @property
    def doubles(self) -> int:
        return self.count

    @property
    def openings(self) -> tuple[Opening, ...]:
        return (Opening(self.count, True),)

    @property
    def recorded(self) -> int:
        return self.count


@dataclass(frozen=True)
class Truncation(Material):
    """Uniform r, r >> shift and its top bit."""

    shift: int

    @property
    def dealt(self) -> dict[str, Shape]:
        return dict.fromkeys(("r", "shifted", "top"), (self.count,))

    def deal(self, stream: Stream) -> dict[str, Elements]:
        return split(uniform(stream, self.count), self.shift)

    @property
    def openings(self) -> tuple[Opening, ...]:
        return (Opening(self.count, False),)


@dataclass(frozen=True)
class StrictSign(Material):
    """Uniform r, r >> m, its top bit, its m low bits, and their products with the top bit."""

    @property
    def leaves(self) -> int:
        return self.options.bound_bits

    @property
    def dealt(self) -> dict[str, Shape]:
        rows = (self.leaves, self.count)
        return dict.fromkeys(("r", "shifted", "top"), (self.count,)) | {"bits": rows, "top_bits": rows}

    def deal(self, stream: Stream) -> dict[str, Elements]:
        r = uniform(stream, self.count)
        values = split(r, self.leaves)
        places = np.arange(self.leaves, dtype=np.uint64)[:, None]
        bits = (r >> places) & np.uint64(1)
        return {**values, "bits": bits, "top_bits": bits * values["top"]}

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(pairs of nodes, products) of each level of the tree of borrows; the lowest pair needs one only."""
        nodes, levels = self.leaves, []
        while nodes > 1:
            pairs = nodes // 2
            levels.append((pairs, 2 * pairs - 1))
            nodes -= pairs
        return tuple(levels)

    @property
    def doubles(self) -> int:
        return self.options.copies * self.recorded_products

    @property
    def recorded_products(self) -> int:
        return self.count * sum(products for _, products in self.levels)

    @property
    def openings(self) -> tuple[Opening, ...]:
        copies = self.options.copies
        tree = (Opening(copies * products * self.count, True) for _, products in self.levels)
        return (Opening(self.count, False), *tree)

    @property
    def recorded(self) -> int:
        return self.recorded_products if self.options.authenticated else 0


@dataclass(frozen=True)
class MaskedSign(Material):
    """A random sign s, and s times a factor of log-uniform size and an offset below it."""

    @property
    def spread(self) -> int:
        """kappa: the factor is up to 2^kappa."""
        return TOP_BITS - self.options.bound_bits

    @property
    def dealt(self) -> dict[str, Shape]:
        return dict.fromkeys(("sign", "factor", "offset"), (self.count,))

    def deal(self, stream: Stream) -> dict[str, Elements]:
        exponents = stream.words(self.count).astype(np.float64) * (self.spread / 2.0**64)
        factor = np.floor(np.exp2(exponents)).astype(np.int64)
        offset = (uniform(stream, self.count) % factor.astype(np.uint64)).astype(np.int64)
        sign = 1 - 2 * (stream.words(self.count) & np.uint64(1)).astype(np.int64)
        values = {"sign": sign, "factor": 2 * sign * factor, "offset": sign * (2 * offset + 1)}
        return {name: field.elements(value) for name, value in values.items()}

    @property
    def doubles(self) -> int:
        return self.options.copies * self.count

    @property
    def openings(self) -> tuple[Opening, ...]:
        if self.options.authenticated:
            return (Opening(2 * self.count, True), Opening(self.count, False))
        return (Opening(self.count, True),)

    @property
    def recorded(self) -> int:
        return self.count if self.options.authenticated else 0


@dataclass(frozen=True)
class Verification(Material):
    """The check of all products since the last one: a word that all is received, a seed, two products and one
    opening."""

    @property
    def doubles(self) -> int:
        return SEEDS + 3

    @property
    def openings(self) -> tuple[Opening, ...]:
        received, seed, product, outcome = (0, False), (SEEDS, False), (1, True), (1, False)
        return tuple(Opening(*what) for what in (received, seed, product, product, outcome))


TOP_BITS = 58
"""A masked sign opens less than 2^(TOP_BITS + 1) in magnitude, below p / 2."""


def split(r: Elements, shift: int) -> dict[str, Elements]:
    """r, r >> shift and [r >= 2^60]."""
    return {"r": r, "shifted": r >> np.uint64(shift), "top": (r >= np.uint64(HALF)).astype(np.uint64)}


def sign_material(options: Options, count: int) -> StrictSign | MaskedSign:
    """What a sign takes in the options' mode."""
    kind = StrictSign if options.nonlinear == "strict" else MaskedSign
    return kind(options, count)
