"""Comparison on xor-shared bits packed 64 a word: leaves, tree levels, and the dealer's part of them.

A tensor of n elements over Z_{2^L} is a stream of bits: bit i of element e is bit e L + i. Streams are arrays
of uint64, little-endian; n is padded to a multiple of 64, so that every level of the tree is whole words.
Arrays of uint32 elements (L = 32) are viewed as uint64, two elements a word.

One comparison, for the share [x] of each party (c = x + r was opened; the dealer shared the bits of r)::

    tree = ComparisonTree(64, radix=4)
    g, p = leaves(c, r_bits, party)
    for level, (masks, products) in zip(tree.levels, dealt):
        masked, linear = level.mask(g, p, masks)
        opened = masked ^ (what the other party sent for its masked)
        g, p = level.evaluate(opened, linear, masks, products, party)
    nonnegative = nonnegative_bits(c, r_bits, g, party)

and the dealer, for each level: ``products1 = level.corrections(masks0, masks1, products0)``.

The native kernels and :class:`Level`'s NumPy methods compute the same; the latter are their oracle and
fallback. Equations: borrow of c - r as a generate/propagate prefix (Kogge and Stone 1973); nodes of four
leaves open their inputs under masks of which the dealer shared every product that occurs (Beaver's trick for
products of several factors).
"""

import itertools
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.core import native

Words = NDArray[np.uint64]
"""A stream of packed bits, or several of one length as rows of a matrix."""

GROUP = 64
"""Tensors are padded to a multiple of so many elements."""

# A node of radix 4 has the inputs (p3, p2, p1, g2, g1, g0, p0), leaf 3 the most significant, and
#   g = g3 ^ p3 g2 ^ p3 p2 g1 ^ p3 p2 p1 g0      p = p3 p2 p1 p0;
# a node of radix 2 has (p1, g0, p0) and g = g1 ^ p1 g0, p = p1 p0. The last level needs no p, hence no p0.
_GENERATE = {4: ((0, 3), (0, 1, 4), (0, 1, 2, 5)), 2: ((0, 1),)}
_PROPAGATE = {4: (0, 1, 2, 6), 2: (0, 2)}
# Which leaf's p (first) and g (second) each input is.
_INPUT_P = {4: {0: 3, 1: 2, 2: 1, 6: 0}, 2: {0: 1, 2: 0}}
_INPUT_G = {4: {3: 2, 4: 1, 5: 0}, 2: {1: 0}}


def padded_length(elements: int) -> int:
    """The number of elements after padding to whole words at every level of a tree."""
    return -(-elements // GROUP) * GROUP


def pack(bits: NDArray[Any]) -> Words:
    """Pack an array of booleans (flattened) 64 a word, little-endian, zeros at the end."""
    packed = np.packbits(np.asarray(bits, dtype=bool).ravel(), bitorder="little")
    words = np.zeros(-(-packed.size // 8), np.uint64)
    words.view(np.uint8)[: packed.size] = packed
    return words


def unpack(words: Words, count: int) -> NDArray[np.bool_]:
    """The first ``count`` bits of a stream as booleans."""
    if not 0 <= count <= 64 * words.size:
        raise ValueError(f"{words.size} words hold no {count} bits")
    view = np.ascontiguousarray(words, np.uint64).view(np.uint8)
    return np.unpackbits(view, count=count, bitorder="little").astype(bool)


def compact(words: Words, step: int, offset: int) -> Words:
    """Every ``step``-th bit of a stream from ``offset``; step is 2 or 4 and divides the number of words."""
    words = words >> np.uint64(offset)
    for _ in range(step.bit_length() - 1):
        words = _even_bits(words)
    return words


def top_bits(elements: NDArray[Any]) -> Words:
    """The most significant bit of each uint64 or uint32 element, packed."""
    kernels = _kernels()
    if kernels is not None:
        elements = np.ascontiguousarray(elements)
        out = np.empty(-(-elements.size // 64), np.uint64)
        kernels.bits_top(elements.ravel(), out, native.threads())
        return out
    return pack(elements >> elements.dtype.type(8 * elements.dtype.itemsize - 1))


def leaves(c: NDArray[Any], r_bits: NDArray[Any], party: int) -> tuple[Words, Words]:
    """The leaves g_i = ~c_i & r_i and p_i = ~(c_i ^ r_i) of [c mod 2^(L-1) < r mod 2^(L-1)].

    The leaf of the top bit is neutral: g = 0 and p = 1.

    Args:
        c: public, shape (n,), uint64 or uint32, n a multiple of 64.
        r_bits: this party's xor-share of the bits of r, of the shape and dtype of ``c``.
        party: 0 or 1; party 0 holds the public terms.

    Returns:
        Shares of the streams g and p, n L / 64 words each.
    """
    _check_party(party)
    if c.shape != r_bits.shape or c.dtype != r_bits.dtype or c.ndim != 1 or c.size % GROUP:
        raise ValueError(
            f"c and r_bits must be flat, of one dtype, with a multiple of {GROUP} elements, "
            f"not {c.shape} {c.dtype} and {r_bits.shape} {r_bits.dtype}"
        )
    top = _top_mask(c.dtype)
    c, r = _stream(c), _stream(r_bits)
    kernels = _kernels()
    if kernels is not None:
        g, p = np.empty_like(c), np.empty_like(c)
        kernels.bits_leaves(c, r, int(top), party, g, p, native.threads())
        return g, p
    g = ~(c | top) & r
    p = (~(c ^ r) | top) if party == 0 else (r & ~top)
    return g, p


def nonnegative_bits(c: NDArray[Any], r_bits: NDArray[Any], borrow: Words, party: int) -> Words:
    """This party's packed share of the bit [x >= 0] from the tree's result, x = c - r.

    Args:
        c, r_bits: as for :func:`leaves`.
        borrow: the share of [c mod 2^(L-1) < r mod 2^(L-1)]: what the last level gave for g.
    """
    _check_party(party)
    bits = top_bits(r_bits) ^ borrow
    return bits ^ ~top_bits(c) if party == 0 else bits


@dataclass(frozen=True)
class Level:
    """One level of a comparison tree: nodes of ``radix`` leaves or subtrees each.

    ``inputs`` bits a node are opened under masks; ``product_sets`` names, by input indices, the products of
    masks that the dealer shares.
    """

    radix: int
    last: bool

    @cached_property
    def terms(self) -> tuple[tuple[int, ...], ...]:
        """The products of inputs that a node needs: those of g, then (unless last) that of p."""
        return _GENERATE[self.radix] if self.last else (*_GENERATE[self.radix], _PROPAGATE[self.radix])

    @cached_property
    def inputs(self) -> int:
        """How many bits a node opens: 7, or 6 at the last level (radix 4); 3 or 2 (radix 2)."""
        return 1 + max(max(term) for term in self.terms)

    @cached_property
    def product_sets(self) -> tuple[tuple[int, ...], ...]:
        """Sets of masks whose products the dealer shares: 22, last level 15 (radix 4); 2 or 1 (radix 2)."""
        subsets = (
            subset
            for term in self.terms
            for size in range(2, len(term) + 1)
            for subset in itertools.combinations(term, size)
        )
        return tuple(dict.fromkeys(subsets))

    @property
    def products(self) -> int:
        """How many products of masks a node uses."""
        return len(self.product_sets)

    def mask(self, g: Words, p: Words, masks: Words) -> tuple[Words, Words]:
        """Gather the nodes' inputs from the level below and mask them.

        Args:
            g, p: streams of the level below, radix m words each.
            masks: this party's shares of the masks, shape (inputs, m).

        Returns:
            what to send, shape (inputs, m), contiguous; and the unmasked term that enters g linearly, shape
            (m,).
        """
        m = self._check(masks, self.inputs, "masks")
        if g.shape != (self.radix * m,) or p.shape != g.shape:
            raise ValueError(f"g and p must have {self.radix * m} words, not {g.shape} and {p.shape}")
        kernels = _kernels()
        if kernels is not None:
            masked, linear = np.empty_like(masks), np.empty(m, np.uint64)
            kernels.bits_mask(self.radix, self.last, g, p, masks, masked, linear, native.threads())
            return masked, linear
        masked = masks.copy()
        for stream, sources in ((p, _INPUT_P[self.radix]), (g, _INPUT_G[self.radix])):
            for row, leaf in sources.items():
                if row < self.inputs:
                    masked[row] ^= compact(stream, self.radix, leaf)
        return masked, compact(g, self.radix, self.radix - 1)

    def evaluate(
        self, opened: Words, linear: Words, masks: Words, products: Words, party: int
    ) -> tuple[Words, Words | None]:
        """The nodes' outputs (g, p) as shares of m words each; p is None at the last level.

        A product over the inputs T is the xor over non-empty S in T of (product of D_i, i in T \\ S) & A_S,
        and at party 0 of the product of all D_i: D is what was opened, A_S the share of a product of masks.

        Args:
            opened: both parties' masked inputs xored, shape (inputs, m).
            linear: from :meth:`mask`.
            masks: the same masks, shape (inputs, m).
            products: this party's shares of the products of masks, shape (products, m).
            party: 0 or 1.
        """
        _check_party(party)
        m = self._check(masks, self.inputs, "masks")
        if (
            self._check(opened, self.inputs, "opened") != m
            or self._check(products, self.products, "products") != m
        ):
            raise ValueError("opened, masks and products must have rows of one length")
        if linear.shape != (m,):
            raise ValueError(f"linear must have {m} words, not {linear.shape}")
        kernels = _kernels()
        if kernels is not None:
            g = np.empty(m, np.uint64)
            p = None if self.last else np.empty(m, np.uint64)
            kernels.bits_evaluate(
                self.radix, self.last, opened, linear, masks, products, party, g, p, native.threads()
            )
            return g, p
        shares: dict[tuple[int, ...], Words] = {(i,): masks[i] for i in range(self.inputs)}
        shares |= {subset: products[k] for k, subset in enumerate(self.product_sets)}
        results = [_product_share(term, opened, shares, party) for term in self.terms]
        generate = reduce(np.bitwise_xor, results[: len(_GENERATE[self.radix])], linear)
        return generate, None if self.last else results[-1]

    def mask_products(self, masks: Words) -> Words:
        """The products of clear masks, shape (inputs, m) to (products, m). For the dealer."""
        m = self._check(masks, self.inputs, "masks")
        return self.corrections(masks, np.zeros_like(masks), np.zeros((self.products, m), np.uint64))

    def corrections(self, masks0: Words, masks1: Words, products0: Words) -> Words:
        """What the dealer sends to party 1: its shares of the products of masks.

        Args:
            masks0, masks1: the parties' shares of the masks, shape (inputs, m).
            products0: party 0's shares of the products, shape (products, m).

        Returns:
            shape (products, m), contiguous.
        """
        m = self._check(masks0, self.inputs, "masks0")
        if (
            self._check(masks1, self.inputs, "masks1") != m
            or self._check(products0, self.products, "products0") != m
        ):
            raise ValueError("masks0, masks1 and products0 must have rows of one length")
        out = np.empty_like(products0)
        kernels = _kernels()
        if kernels is not None:
            kernels.bits_corrections(self.radix, self.last, masks0, masks1, products0, out, native.threads())
            return out
        masks = masks0 ^ masks1
        for row, subset in enumerate(self.product_sets):
            out[row] = products0[row] ^ reduce(np.bitwise_and, (masks[i] for i in subset))
        return out

    def _check(self, rows: Words, count: int, name: str) -> int:
        """The length of the rows of a matrix of ``count`` of them."""
        if rows.dtype != np.uint64 or rows.ndim != 2 or rows.shape[0] != count or not rows.flags.c_contiguous:
            raise ValueError(
                f"{name} must be a contiguous uint64 matrix of {count} rows, not {rows.dtype} {rows.shape}"
            )
        return int(rows.shape[1])


@dataclass(frozen=True)
class ComparisonTree:
    """The levels that reduce L leaves an element to one bit.

    Radix 4 with L = 64 has three levels (16, 4 and 1 nodes an element), with L = 32 two and a last one of
    radix 2.
    """

    bits: int = 64
    radix: int = 4

    def __post_init__(self) -> None:
        if self.bits not in (32, 64) or self.radix not in (2, 4):
            raise ValueError(
                f"a comparison tree has 32 or 64 bits and radix 2 or 4, not {self.bits} and {self.radix}"
            )

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """From the leaves up."""
        levels, left = [], self.bits
        while left > 1:
            radix = min(self.radix, left)
            left //= radix
            levels.append(Level(radix, last=left == 1))
        return tuple(levels)

    def level_words(self, elements: int) -> tuple[int, ...]:
        """The row length m of each level's matrices for so many elements (padded here)."""
        words, lengths = padded_length(elements) * self.bits // 64, []
        for level in self.levels:
            words //= level.radix
            lengths.append(words)
        return tuple(lengths)

    def opened_bytes(self, elements: int) -> tuple[int, ...]:
        """Bytes that each party sends at each level; together 18.25 an element at L = 64 and radix 4."""
        return tuple(
            8 * level.inputs * m for level, m in zip(self.levels, self.level_words(elements), strict=True)
        )

    def correction_bytes(self, elements: int) -> tuple[int, ...]:
        """Bytes from the dealer to party 1 at each level; in all 56.875 an element at L = 64 and radix 4."""
        return tuple(
            8 * level.products * m for level, m in zip(self.levels, self.level_words(elements), strict=True)
        )


def _product_share(
    term: tuple[int, ...], opened: Words, shares: dict[tuple[int, ...], Words], party: int
) -> Words:
    """The share of the product of the inputs of ``term``."""
    ones = np.full(opened.shape[1], ~np.uint64(0))

    def opened_product(indices: Any) -> Words:
        return reduce(np.bitwise_and, (opened[i] for i in indices), ones)

    total = opened_product(term) if party == 0 else np.zeros_like(ones)
    for size in range(1, len(term) + 1):
        for subset in itertools.combinations(term, size):
            total = total ^ (opened_product(i for i in term if i not in subset) & shares[subset])
    return total


def _even_bits(words: Words) -> Words:
    """The even bits of a stream: two words to one."""
    words = words & np.uint64(0x5555_5555_5555_5555)
    for shift, keep in (
        (1, 0x3333_3333_3333_3333),
        (2, 0x0F0F_0F0F_0F0F_0F0F),
        (4, 0x00FF_00FF_00FF_00FF),
        (8, 0x0000_FFFF_0000_FFFF),
        (16, 0x0000_0000_FFFF_FFFF),
    ):
        words = (words | (words >> np.uint64(shift))) & np.uint64(keep)
    return words[0::2] | (words[1::2] << np.uint64(32))


def _stream(elements: NDArray[Any]) -> Words:
    return np.ascontiguousarray(elements).view(np.uint64)


def _top_mask(dtype: np.dtype[Any]) -> np.uint64:
    if dtype == np.uint64:
        return np.uint64(1 << 63)
    if dtype == np.uint32:
        return np.uint64((1 << 63) | (1 << 31))
    raise TypeError(f"a ring tensor has dtype uint64 or uint32, not {dtype}")


def _check_party(party: int) -> None:
    if party not in (0, 1):
        raise ValueError(f"the party is 0 or 1, not {party}")


def _kernels() -> Any:
    """The native module if it holds the bit kernels."""
    module = native.extension()
    return module if hasattr(module, "bits_mask") else None
