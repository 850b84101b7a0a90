"""Squares, products and truncations from oblivious transfer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tradeoff.engines.two_party.arithmetic import Elementwise, Square, StaticTriple, Triple
from tradeoff.engines.two_party.ot.extension import request_bytes
from tradeoff.engines.two_party.ot.making import NOTHING, Draw, Flight, Making, MaskBits
from tradeoff.engines.two_party.ot.products import CrossProduct
from tradeoff.engines.two_party.ot.transfers import Reader, Transfers, flat
from tradeoff.engines.two_party.sharing import Share
from tradeoff.engines.two_party.truncation import Truncation


@dataclass(frozen=True)
class SquareMaker:
    """a^2 = a_0^2 + 2 a_0 a_1 + a_1^2: party 1 chooses by the bits of a_1."""

    kind: Square

    @property
    def product(self) -> CrossProduct:
        shape = (self.kind.count,)
        return CrossProduct(self.kind.ring, Elementwise(), shape, shape, self.kind.ring.bits)

    @property
    def flights(self) -> tuple[Flight, ...]:
        return tuple((down, up) for up, down in _flights(self.product))

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        a = draw.elements(self.kind.ring, (self.kind.count,))
        if transfers.rank == 0:
            mixed = yield from _give(transfers, self.product, a + a)
        else:
            mixed = yield from _ask(transfers, self.product, a)
        return {"a": a, "aa": a * a + mixed["product"]}


@dataclass(frozen=True)
class TripleMaker:
    """a b = a_0 b_0 + a_0 b_1 + a_1 b_0 + a_1 b_1: both choose by the bits of their b."""

    kind: Triple

    @property
    def product(self) -> CrossProduct:
        kind = self.kind
        return CrossProduct(kind.ring, kind.map, kind.left, kind.right, kind.ring.bits)

    @property
    def flights(self) -> tuple[Flight, ...]:
        return (request_bytes(self.product.transfers),) * 2, (self.product.payload,) * 2

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        kind, product = self.kind, self.product
        a, b = draw.elements(kind.ring, kind.left), draw.elements(kind.ring, kind.right)
        chosen, message = transfers.choose([product.choices(b)])
        request = yield message
        given, payload = product.offer(transfers.offer(request), 0, a)
        reply = yield flat([payload])
        taken = product.receive(chosen, 0, Reader(reply).array(product.payload_shape, kind.ring.dtype))
        return {"a": a, "b": b, "c": kind.map(a, b) + given + taken}


@dataclass(frozen=True)
class StaticTripleMaker:
    """a W for party 1's random a and party 0's operand W as it is: party 0 chooses by its bits."""

    kind: StaticTriple

    @property
    def product(self) -> CrossProduct:
        kind = self.kind
        return CrossProduct(kind.ring, kind.map, kind.left, kind.right, kind.operand_bits)

    @property
    def flights(self) -> tuple[Flight, ...]:
        return _flights(self.product)

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        if transfers.rank == 0:
            c = yield from _ask(transfers, self.product, draw.statics["weight"])
            return {"c": c["product"]}
        a = draw.elements(self.kind.ring, self.kind.left)
        c = yield from _give(transfers, self.product, a)
        return {"a": a, "c": c["product"]}


@dataclass(frozen=True)
class TruncationMaker:
    """r, r >> shift and the top bit of r from shares of the bits of r."""

    kind: Truncation

    @property
    def mask(self) -> MaskBits:
        return MaskBits(self.kind.ring, self.kind.count)

    @property
    def flights(self) -> tuple[Flight, ...]:
        return self.mask.flights

    def make(self, transfers: Transfers, draw: Draw) -> Making:
        mask, ring = self.mask, self.kind.ring
        words = draw.elements(ring, (mask.count,))
        if transfers.rank == 0:
            request = yield NOTHING
            shares, payload = mask.offer(words, transfers.offer(request), 0)
            yield flat([payload])
        else:
            chosen, message = transfers.choose([mask.bits(words)])
            yield message
            reply = Reader((yield NOTHING))
            shares = mask.receive(words, chosen, 0, reply.array((mask.transfers,), ring.dtype))
        rho, top = mask.shifted(shares, self.kind.shift), shares[:, -1].copy()
        return {"r": mask.shifted(shares, 0), "rho": rho, "m": top}


def _flights(product: CrossProduct) -> tuple[Flight, ...]:
    """Bytes of the holder of the right operand, who asks, and of the holder of the left one, part by part."""
    _, each, met = product.payload_shape
    sizes = [high - low for low, high in product.parts]
    return tuple(
        flight
        for size in sizes
        for flight in ((request_bytes(size * each), 0), (0, size * each * met * product.ring.nbytes))
    )


def _ask(transfers: Transfers, product: CrossProduct, right: Share) -> Making:
    """The share of left * right at the holder of ``right``; the peer runs :func:`_give`."""
    _, each, met = product.payload_shape
    choices = product.choices(right)
    rows = []
    for low, high in product.parts:
        chosen, message = transfers.choose([choices[low * each : high * each]])
        yield message
        reply = Reader((yield NOTHING))
        payload = reply.array((high - low, each, met), product.ring.dtype)
        rows.append(product.receive_rows(chosen, 0, payload))
    return {"product": product.fold(np.concatenate(rows))}


def _give(transfers: Transfers, product: CrossProduct, left: Share) -> Making:
    """The share at the holder of ``left``."""
    rows = []
    for part in product.parts:
        request = yield NOTHING
        share, payload = product.offer_rows(transfers.offer(request), 0, left, part)
        yield flat([payload])
        rows.append(share)
    return {"product": product.fold(np.concatenate(rows))}
