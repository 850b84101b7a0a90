"""The material of quadratic activations from oblivious transfer, in at most five flights.

1. Party 1 asks by its bits of the mask r and by its part of the top bit m, party 0 by its part and by
   its private coefficients.
2. Shares of the bits of r.
3. Shares of u m, u = r >> f being known by now; party 1 asks by the bits of its share of u.
4. Shares of u^2.
5. Shares of the coefficients' products with all of them.

Without bits to drop u is a random word, and the flights of r and m fall away.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tradeoff.engines.two_party.activations import Quadratic
from tradeoff.engines.two_party.arithmetic import Elementwise
from tradeoff.engines.two_party.correlations import Fields
from tradeoff.engines.two_party.ot.extension import request_bytes
from tradeoff.engines.two_party.ot.making import NOTHING, Draw, Flight, Making, MaskBits, times_bit
from tradeoff.engines.two_party.ot.products import CrossProduct
from tradeoff.engines.two_party.ot.transfers import Bits, Bytes, Chosen, Offered, Reader, Transfers, flat
from tradeoff.engines.two_party.sharing import Share


@dataclass(frozen=True)
class QuadraticMaker:
    """Makes a :class:`Quadratic`.

    The transfers in which party 1 chooses are, in order, bits of r and top bits, where bits are dropped;
    those of party 0 top bits and coefficients.
    """

    kind: Quadratic

    @property
    def count(self) -> int:
        return prod(self.kind.shape)

    @property
    def mask(self) -> MaskBits:
        """Of the words whose bits are dropped."""
        return MaskBits(self.kind.ring, self.count if self.kind.shift else 0)

    @property
    def square(self) -> CrossProduct:
        shape = (self.count,)
        return CrossProduct(self.kind.ring, Elementwise(), shape, shape, self.kind.ring.bits)

    @cached_property
    def multiplied(self) -> dict[str, tuple[str, ...]]:
        """What each private coefficient multiplies."""
        if not self.kind.private:
            return {}
        if self.kind.shift:
            return {"quadratic": ("u", "uu", "m", "um"), "linear": ("u", "m")}
        return {"quadratic": ("u", "uu"), "linear": ("u",)}

    def coefficients(self, name: str) -> CrossProduct:
        """The products of one of them."""
        left = (len(self.multiplied[name]), *self.kind.shape)
        return CrossProduct(self.kind.ring, Elementwise(), left, left[2:], self.kind.operand_bits)

    @property
    def flights(self) -> tuple[Flight, ...]:
        products = [self.coefficients(name) for name in self.multiplied]
        tops = self.mask.count
        asked = request_bytes(tops + sum(product.transfers for product in products))
        elements = tops * self.kind.ring.nbytes
        return (
            (asked, request_bytes(self.mask.transfers + tops)),
            (self.mask.transfers * self.kind.ring.nbytes, 0),
            (elements, elements + request_bytes(self.square.transfers)),
            (self.square.payload, 0),
            (0, sum(product.payload for product in products)),
        )

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        kind, ring, rank, mask = self.kind, self.kind.ring, transfers.rank, self.mask
        words = draw.elements(ring, (self.count,))
        bits = mask.bits(words[: mask.count])
        top = bits.reshape(-1, ring.bits)[:, -1]
        if rank == 0:
            operands = {name: self.coefficients(name).choices(draw.statics[name]) for name in self.multiplied}
            chosen, message = transfers.choose([top, *operands.values()])
        else:
            chosen, message = transfers.choose([bits, top])
        offered = transfers.offer((yield message))
        shares = yield from self._bits(rank, words[: mask.count], chosen, offered)
        values = {"r": words, "u": words}
        if kind.shift:
            rho = mask.shifted(shares, kind.shift)
            values = {"r": mask.shifted(shares, 0), "u": rho, "m": shares[:, -1].copy()}
        values |= yield from self._squares(transfers, chosen, offered, top, values["u"])
        fields = {name: value.reshape(kind.shape) for name, value in values.items()}
        return fields | (yield from self._multiples(rank, chosen, offered, fields, draw.statics))

    def _bits(
        self, rank: int, words: Share, chosen: Chosen, offered: Offered
    ) -> Generator[Bytes, Bytes, Share]:
        """Shares of the bits of r."""
        if rank == 0:
            shares, payload = self.mask.offer(words, offered, 0)
            yield flat([payload])
        else:
            reply = Reader((yield NOTHING))
            payload = reply.array((self.mask.transfers,), self.kind.ring.dtype)
            shares = self.mask.receive(words, chosen, 0, payload)
        return shares

    def _squares(self, transfers: Transfers, chosen: Chosen, offered: Offered, top: Bits, u: Share) -> Making:
        """u^2, and u m where there is a top bit."""
        ring, rank, square, tops = self.kind.ring, transfers.rank, self.square, self.mask.count
        at = [slice(start, start + tops) for start in (0, self.mask.transfers)]  # party 0's, party 1's
        local, delta = times_bit(u[:tops, None], top)
        given, payload = offered.elements(at[1 - rank], delta, ring)
        if rank == 1:
            asked, message = transfers.choose([square.choices(u)])
            reply = Reader((yield flat([message, payload])))
        else:
            reply = Reader((yield flat([payload])))
            answer = transfers.offer(reply.bytes(request_bytes(square.transfers)))
        taken = chosen.elements(at[rank], reply.array((tops, 1), ring.dtype), ring)
        if rank == 0:
            mixed, payload = square.offer(answer, 0, u + u)
            yield flat([payload])
        else:
            reply = Reader((yield NOTHING))
            mixed = square.receive(asked, 0, reply.array(square.payload_shape, ring.dtype))
        result = {"uu": u * u + mixed}
        return result | {"um": (local + given + taken)[:, 0]} if tops else result

    def _multiples(
        self, rank: int, chosen: Chosen, offered: Offered, fields: Fields, statics: Fields
    ) -> Making:
        """Products with the coefficients, of which party 0 computes those with its own shares alone."""
        ring, start = self.kind.ring, self.mask.count
        result: dict[str, Share] = {}
        messages = []
        reply = Reader((yield NOTHING)) if rank == 0 else None
        for name, factors in self.multiplied.items():
            product = self.coefficients(name)
            own = np.stack([fields[factor] for factor in factors])
            if reply is not None:
                payload = reply.array(product.payload_shape, ring.dtype)
                share = own * statics[name] + product.receive(chosen, start, payload)
            else:
                share, payload = product.offer(offered, start, own)
                messages.append(payload)
            result |= {f"{name}_{factor}": part for factor, part in zip(factors, share, strict=True)}
            start += product.transfers
        if rank == 1:
            yield flat(messages)
        return result
