"""The material of comparisons and ReLUs from oblivious transfer, in three flights.

1. Party 1 asks by its bits of the mask r; both ask by their part of the coin s and by the masks of the tree.
2. Shares of the bits of r, and of the products of masks.
3. Shares of s and of r s (with a truncation of rho s and m s), the factor r being known by now.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tradeoff.engines.two_party.bits import unpack
from tradeoff.engines.two_party.comparison import Comparison
from tradeoff.engines.two_party.correlations import Field, Fields
from tradeoff.engines.two_party.ot.extension import TABLE_WIDTH, request_bytes
from tradeoff.engines.two_party.ot.making import Draw, Flight, Making, MaskBits, times_bit
from tradeoff.engines.two_party.ot.transfers import Bits, Chosen, Offered, Reader, Transfers, flat
from tradeoff.engines.two_party.ot.tree import TreeTransfers
from tradeoff.engines.two_party.sharing import Share


@dataclass(frozen=True)
class ComparisonMaker:
    """Makes a :class:`Comparison`.

    The 1-of-2 transfers in which party 1 chooses are, in order, bits of r, coin, tree; those of party 0 coin
    and tree.
    """

    kind: Comparison

    @property
    def mask(self) -> MaskBits:
        return MaskBits(self.kind.ring, self.kind.count)

    @property
    def tree(self) -> TreeTransfers:
        return TreeTransfers(self.kind.tree, self.kind.count)

    @property
    def factors(self) -> tuple[str, ...]:
        """What is multiplied with the coin."""
        return ("rho", "m") if self.kind.shift else ("r",)

    def coins(self, chooser: int) -> slice:
        """Where the coin's transfers are among those of a chooser."""
        start = self.mask.transfers * chooser
        return slice(start, start + self.kind.count)

    @property
    def requests(self) -> tuple[int, int]:
        """Bytes by which each party asks for 1-of-2 transfers."""
        zero, one = (request_bytes(self.coins(chooser).stop + self.tree.pairs) for chooser in (0, 1))
        return zero, one

    @property
    def flights(self) -> tuple[Flight, ...]:
        tree, elements = self.tree, self.kind.count * self.kind.ring.nbytes
        zero, one = self.requests
        bits = self.mask.transfers * self.kind.ring.nbytes
        return (
            (zero, one + request_bytes(tree.tables, TABLE_WIDTH)),
            (bits + tree.pair_bytes + tree.table_bytes, tree.pair_bytes),
            ((1 + len(self.factors)) * elements, len(self.factors) * elements),
        )

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        kind, ring, rank, tree, mask = self.kind, self.kind.ring, transfers.rank, self.tree, self.mask
        own = draw.fields(ring, Field("bits", (kind.count,)), *(f for f in kind.random if f.name != "r"))
        coin = unpack(own["coin"], kind.count)
        bits = [mask.bits(own["bits"])] if rank == 1 else []
        chosen, message = transfers.choose([*bits, coin, *tree.pair_choices(own)])
        if rank == 1 and tree.tables:
            tables, asked = transfers.choose_tables(tree.table_choices(own))
            message = flat([message, asked])
        request = Reader((yield message))
        offered = transfers.offer(request.bytes(self.requests[1 - rank]))
        given, answers = tree.offer_pairs(offered, self.coins(1 - rank).stop, own)
        products: dict[str, Share] = {}
        if rank == 0:
            shares, payload = mask.offer(own["bits"], offered, 0)
            answers.insert(0, payload)
            if tree.tables:
                products = draw.fields(ring, *(f for f in kind.derived if self._from_tables(f)))
                asked = request.bytes(request_bytes(tree.tables, TABLE_WIDTH))
                answers += tree.offer_tables(transfers.offer_tables(asked), own, products)
        reply = Reader((yield flat(answers)))
        if rank == 1:
            shares = mask.receive(own["bits"], chosen, 0, reply.array((mask.transfers,), ring.dtype))
        taken = tree.receive_pairs(chosen, self.coins(rank).stop, reply)
        if rank == 1 and tree.tables:
            products = tree.open_tables(tables, reply)
        fields = own | products | tree.pair_products(own, given, taken) | self._sums(shares)
        return fields | (yield from self._coin_products(rank, chosen, offered, coin, fields))

    def _from_tables(self, field: Field) -> bool:
        return field.name in {f"products{index}" for index, _, _ in self.tree.levels(4)}

    def _sums(self, shares: Share) -> dict[str, Share]:
        """r, and what a truncation needs of it."""
        sums = {"r": self.mask.shifted(shares, 0)}
        if self.kind.shift:
            sums |= {"rho": self.mask.shifted(shares, self.kind.shift), "m": shares[:, -1].copy()}
        return sums

    def _coin_products(
        self, rank: int, chosen: Chosen, offered: Offered, coin: Bits, fields: Fields
    ) -> Making:
        """s = s_0 + s_1 - 2 s_0 s_1 rides in the transfers by which party 1 chooses."""
        ring, count = self.kind.ring, self.kind.count
        bit = coin.astype(ring.dtype)
        local, delta = times_bit(np.stack([fields[name] for name in self.factors], axis=1), coin)
        if rank == 0:
            delta = np.concatenate([-(bit + bit)[:, None], delta], axis=1)
        given, payload = offered.elements(self.coins(1 - rank), delta, ring)
        reply = Reader((yield flat([payload])))
        columns = len(self.factors) + (rank == 1)
        taken = chosen.elements(self.coins(rank), reply.array((count, columns), ring.dtype), ring)
        both, one_way = (taken, given) if rank == 0 else (given, taken)
        total = local + both + one_way[:, 1:]
        products = {f"{name}_s": total[:, i].copy() for i, name in enumerate(self.factors)}
        return {"s": bit + one_way[:, 0], **products}
