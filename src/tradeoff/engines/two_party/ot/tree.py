"""Products of the comparison tree's masks from oblivious transfer.

A node of radix 2 takes two 1-of-2 transfers: each party chooses by its share of the mask that all products
have in common, and offers its shares of the others, a bit of payload each. A node of radix 4 takes three
1-of-16 transfers (two at the last level): party 1 chooses by its shares of four masks, and for each of the
16 choices party 0 offers the products of these masks, under a share of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from tradeoff.engines.two_party.bits import ComparisonTree, Level, Words, unpack
from tradeoff.engines.two_party.correlations import Fields
from tradeoff.engines.two_party.ot.extension import TABLE_BITS
from tradeoff.engines.two_party.ot.transfers import (
    Bits,
    Chosen,
    ChosenTables,
    Offered,
    OfferedTables,
    Reader,
)
from tradeoff.engines.two_party.sharing import WORD

_ONES = ~np.uint64(0)


@dataclass(frozen=True)
class TreeTransfers:
    """The transfers for all levels of a tree on ``count`` elements, and where they stand in the messages."""

    tree: ComparisonTree
    count: int

    def levels(self, radix: int) -> Iterator[tuple[int, Level, int]]:
        """(index, level, words of nodes) of the levels of a radix."""
        words = self.tree.level_words(self.count)
        for index, level in enumerate(self.tree.levels):
            if level.radix == radix:
                yield index, level, words[index]

    # Nodes of radix 2

    @property
    def pairs(self) -> int:
        """1-of-2 transfers each way."""
        return sum(64 * words for _, _, words in self.levels(2))

    @property
    def pair_bytes(self) -> int:
        """Their payload, one way."""
        return sum(8 * words * level.products for _, level, words in self.levels(2))

    def pair_choices(self, masks: Fields) -> list[Bits]:
        """What a party chooses by."""
        return [unpack(masks[f"masks{index}"][0], 64 * words) for index, _, words in self.levels(2)]

    def offer_pairs(
        self, offered: Offered, start: int, masks: Fields
    ) -> tuple[dict[int, Words], list[Words]]:
        """By level, shares of the peer's first mask times own others; and what to send."""
        shares, messages = {}, []
        for index, level, words in self.levels(2):
            at = slice(start, start + 64 * words)
            shares[index], message = offered.planes(at, masks[f"masks{index}"][1 : 1 + level.products])
            messages.append(message)
            start = at.stop
        return shares, messages

    def receive_pairs(self, chosen: Chosen, start: int, reader: Reader) -> dict[int, Words]:
        """By level, shares of the own first mask times the peer's others."""
        shares = {}
        for index, level, words in self.levels(2):
            at = slice(start, start + 64 * words)
            shares[index] = chosen.planes(at, reader.array((level.products, words), WORD))
            start = at.stop
        return shares

    def pair_products(
        self, masks: Fields, given: dict[int, Words], taken: dict[int, Words]
    ) -> dict[str, Words]:
        """A party's shares of the products of masks."""
        products = {}
        for index, level, _ in self.levels(2):
            own = masks[f"masks{index}"]
            products[f"products{index}"] = own[0] & own[1 : 1 + level.products] ^ given[index] ^ taken[index]
        return products

    # Nodes of radix 4

    @property
    def tables(self) -> int:
        """1-of-16 transfers."""
        return sum(64 * words * len(tables_of(level)) for _, level, words in self.levels(4))

    @property
    def table_bytes(self) -> int:
        """Their entries."""
        return sum((8 << TABLE_BITS) * words * level.products for _, level, words in self.levels(4))

    def table_choices(self, masks: Fields) -> Words:
        """What party 1 chooses by: (4, words)."""
        chosen = [
            masks[f"masks{index}"][list(inputs)]
            for index, level, _ in self.levels(4)
            for inputs, _ in tables_of(level)
        ]
        return np.concatenate(chosen, axis=1)

    def offer_tables(self, offered: OfferedTables, masks: Fields, products: Fields) -> list[Words]:
        """Party 0's encrypted tables, (16, products, words) each, for its shares of masks and products."""
        messages, at = [], 0
        for index, level, words in self.levels(4):
            for inputs, rows in tables_of(level):
                entries = _entries(level, inputs, rows, masks[f"masks{index}"], products[f"products{index}"])
                messages.append(offered.encrypt(slice(at, at + words), entries))
                at += words
        return messages

    def open_tables(self, chosen: ChosenTables, reader: Reader) -> dict[str, Words]:
        """Party 1's shares of the products of masks."""
        opened, at = {}, 0
        for index, level, words in self.levels(4):
            products = np.empty((level.products, words), np.uint64)
            for _, rows in tables_of(level):
                entries = reader.array((1 << TABLE_BITS, len(rows), words), WORD)
                products[list(rows)] = chosen.open(slice(at, at + words), entries)
                at += words
            opened[f"products{index}"] = products
        return opened


@cache
def tables_of(level: Level) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Tables of a node of radix 4: four inputs that choose, and the rows of the products that it holds."""
    sets = ((0, 1, 2, 5), (0, 1, 3, 4)) if level.last else ((0, 1, 2, 6), (0, 1, 2, 5), (0, 1, 3, 4))
    tables: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    left = dict(enumerate(level.product_sets))
    for inputs in sets:
        rows = tuple(row for row, product in left.items() if set(product) <= set(inputs))
        tables.append((inputs, rows))
        for row in rows:
            del left[row]
    return tuple(tables)


def _entries(
    level: Level, inputs: tuple[int, ...], rows: tuple[int, ...], masks: Words, products: Words
) -> Words:
    """For every choice of party 1's masks the products, xored with party 0's shares of them."""
    entries = np.empty((1 << TABLE_BITS, len(rows), masks.shape[1]), np.uint64)
    for value, entry in enumerate(entries):
        whole = {i: masks[i] ^ (_ONES if value >> bit & 1 else 0) for bit, i in enumerate(inputs)}
        for out, row in zip(entry, rows, strict=True):
            first, *others = level.product_sets[row]
            out[...] = whole[first]
            for other in others:
                out &= whole[other]
            out ^= products[row]
    return entries
