"""The dealer's correlations, made by the two parties from oblivious transfers.

What a correlation holds is the same as with a dealer, so the online protocols do not notice. Each is made by a
generator that both parties run: it yields what this party sends in a flight and is resumed with the peer's
message of that flight. :func:`flights` says how many bytes each one has; the predicted cost and the check of
every message come from there.

Bits of a mask. Parties draw words b_0, b_1; the mask's bits are b_0 ^ b_1, and since

    b_0 ^ b_1 = b_0 + b_1 - 2 b_0 b_1

one transfer a bit gives their arithmetic shares, of which r, r >> f and the top bit of r are sums: no comparison
is needed to truncate.

Products of the comparison tree's masks. Nodes of radix 2: two transfers, one each way, with two bits of
payload. Nodes of radix 4: three 1-of-16 transfers: party 1 chooses by four of its mask bits, and party 0 offers
all products of the four, under a share of its own.

Products with a bit (r s in a comparison): two transfers, one each way, the payload r_p (1 - 2 s_p).
Products of ring elements, and of private weights, which party 0 holds in the clear: :mod:`.products`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from tradeoff.core.errors import EngineError
from tradeoff.engines.two_party.activations import Quadratic
from tradeoff.engines.two_party.arithmetic import Elementwise, Square, StaticTriple, Triple
from tradeoff.engines.two_party.bits import Level, Words, unpack
from tradeoff.engines.two_party.comparison import Comparison
from tradeoff.engines.two_party.correlations import Correlation, Field, Fields, split
from tradeoff.engines.two_party.ot.extension import TABLE_BITS, TABLE_WIDTH, request_bytes
from tradeoff.engines.two_party.ot.products import CrossProduct
from tradeoff.engines.two_party.ot.transfers import (
    Bits,
    Bytes,
    Chosen,
    Offered,
    Reader,
    Transfers,
    flat,
)
from tradeoff.engines.two_party.prg import Stream
from tradeoff.engines.two_party.sharing import Ring, Share
from tradeoff.engines.two_party.truncation import Truncation

Making = Generator[Bytes, Bytes, Fields]
"""Yields own messages, receives the peer's, returns this party's share of the correlation."""

Flight = tuple[int, int]
"""Bytes that party 0 and party 1 send at once."""

_NOTHING = np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Draw:
    """A party's own randomness, and its static operands in the clear."""

    stream: Stream
    statics: Fields

    def fields(self, ring: Ring, *fields: Field) -> dict[str, Share]:
        """Uniform arrays, aligned as a dealer's."""
        return split(fields, self.stream.words(sum(field.nbytes(ring) for field in fields) // 8), ring)

    def elements(self, ring: Ring, shape: tuple[int, ...]) -> Share:
        return self.fields(ring, Field("", shape))[""]


def make(transfers: Transfers, kind: Correlation, draw: Draw) -> Making:
    """The making of a correlation at one party."""
    makers: dict[type[Correlation], Callable[..., Making]] = {
        Square: _square,
        Triple: _triple,
        StaticTriple: _static_triple,
        Truncation: _truncation,
        Comparison: _comparison,
        Quadratic: _quadratic,
    }
    return makers[type(kind)](transfers, kind, draw)


@cache
def flights(kind: Correlation) -> tuple[Flight, ...]:
    """Bytes of every flight in the making of a correlation; a flight of no bytes does not take place."""
    counts: dict[type[Correlation], Callable[..., tuple[Flight, ...]]] = {
        Square: lambda kind: _one_way(_square_product(kind)),
        Triple: lambda kind: _both_ways(_triple_product(kind)),
        StaticTriple: lambda kind: tuple((a, b) for b, a in _one_way(_static_product(kind))),
        Truncation: lambda kind: _bits_flights(kind.ring, kind.count),
        Comparison: _comparison_flights,
        Quadratic: _quadratic_flights,
    }
    return counts[type(kind)](kind)


def uses_tables(kind: Correlation) -> bool:
    """Whether its making needs the 1-of-16 extension."""
    return isinstance(kind, Comparison) and any(level.radix == 4 for level in kind.tree.levels)


# Products of ring elements


def _square_product(kind: Square) -> CrossProduct:
    shape = (kind.count,)
    return CrossProduct(kind.ring, Elementwise(), shape, shape, kind.ring.bits)


def _triple_product(kind: Triple) -> CrossProduct:
    return CrossProduct(kind.ring, kind.map, kind.left, kind.right, kind.ring.bits)


def _static_product(kind: StaticTriple) -> CrossProduct:
    return CrossProduct(kind.ring, kind.map, kind.left, kind.right, kind.operand_bits)


def _one_way(product: CrossProduct) -> tuple[Flight, ...]:
    """Party 1 chooses, party 0 offers."""
    return (0, product.request), (product.payload, 0)


def _both_ways(product: CrossProduct) -> tuple[Flight, ...]:
    return (product.request,) * 2, (product.payload,) * 2


def _ask(transfers: Transfers, product: CrossProduct, right: Share) -> Making:
    """The share of left * right at the holder of ``right``, in two flights; the peer runs :func:`_give`."""
    chosen, message = transfers.choose([product.choices(right)])
    yield message
    reply = yield _NOTHING
    payload = Reader(reply).array((product.payload // product.ring.nbytes,), product.ring.dtype)
    return {"product": product.receive(chosen, 0, payload)}


def _give(transfers: Transfers, product: CrossProduct, left: Share) -> Making:
    """The share at the holder of ``left``."""
    request = yield _NOTHING
    share, payload = product.offer(transfers.offer(request), 0, left)
    yield flat([payload])
    return {"product": share}


def _square(transfers: Transfers, kind: Square, draw: Draw) -> Making:
    """a^2 = a_0^2 + 2 a_0 a_1 + a_1^2: party 1 chooses by the bits of a_1."""
    a = draw.elements(kind.ring, (kind.count,))
    aa = yield from _square_of(transfers, _square_product(kind), a)
    return {"a": a, "aa": aa["product"]}


def _square_of(transfers: Transfers, product: CrossProduct, a: Share) -> Making:
    how, operand = (_give, a + a) if transfers.rank == 0 else (_ask, a)
    mixed = yield from how(transfers, product, operand.reshape(product.left))
    return {"product": a * a + mixed["product"].reshape(a.shape)}


def _triple(transfers: Transfers, kind: Triple, draw: Draw) -> Making:
    """a b = a_0 b_0 + a_0 b_1 + a_1 b_0 + a_1 b_1: both choose by the bits of their b."""
    product = _triple_product(kind)
    a, b = draw.elements(kind.ring, kind.left), draw.elements(kind.ring, kind.right)
    chosen, message = transfers.choose([product.choices(b)])
    request = yield message
    share, payload = product.offer(transfers.offer(request), 0, a)
    reply = yield flat([payload])
    corrections = Reader(reply).array((product.payload // kind.ring.nbytes,), kind.ring.dtype)
    return {"a": a, "b": b, "c": kind.map(a, b) + share + product.receive(chosen, 0, corrections)}


def _static_triple(transfers: Transfers, kind: StaticTriple, draw: Draw) -> Making:
    """a W for party 1's random a and party 0's operand W itself: nobody needs a mask for it."""
    product = _static_product(kind)
    if transfers.rank == 0:
        c = yield from _ask(transfers, product, draw.statics["weight"])
        return {"c": c["product"]}
    a = draw.elements(kind.ring, kind.left)
    c = yield from _give(transfers, product, a)
    return {"a": a, "c": c["product"]}


# Bits of masks


def _bits_flights(ring: Ring, count: int) -> tuple[Flight, ...]:
    return (0, request_bytes(count * ring.bits)), (count * ring.bits * ring.nbytes, 0)


@dataclass(frozen=True)
class _MaskBits:
    """Words of which each party holds a xor-share, ``own``, on the way to arithmetic shares of their bits."""

    ring: Ring
    own: Share

    @property
    def bits(self) -> Bits:
        shifts = np.arange(self.ring.bits, dtype=self.ring.dtype)
        return (self.own[:, None] >> shifts & self.ring.scalar(1)).astype(bool).ravel()

    @property
    def payload(self) -> tuple[int, int]:
        """Shape of what party 0 sends."""
        return self.own.size * self.ring.bits, 1

    def offer(self, offered: Offered, start: int) -> tuple[Share, Share]:
        """Party 0's shares (count, bits), and what it sends."""
        bits = self.bits.astype(self.ring.dtype)
        share, payload = offered.elements(slice(start, start + bits.size), -(bits + bits)[:, None], self.ring)
        return (bits + share[:, 0]).reshape(-1, self.ring.bits), payload

    def receive(self, chosen: Chosen, start: int, payload: Share) -> Share:
        """Party 1's shares (count, bits)."""
        bits = self.bits
        share = chosen.elements(slice(start, start + bits.size), payload, self.ring)
        return (bits + share[:, 0]).reshape(-1, self.ring.bits)


def _shifted(ring: Ring, shares: Share, shift: int) -> Share:
    """Shares of r >> shift from those of the bits of r."""
    weights = np.arange(ring.bits - shift, dtype=ring.dtype)
    total: Share = (shares[:, shift:] << weights).sum(axis=1, dtype=ring.dtype)
    return total


def _truncation(transfers: Transfers, kind: Truncation, draw: Draw) -> Making:
    mask = _MaskBits(kind.ring, draw.elements(kind.ring, (kind.count,)))
    shares = yield from _mask_bits(transfers, mask)
    return {
        "r": _shifted(kind.ring, shares, 0),
        "rho": _shifted(kind.ring, shares, kind.shift),
        "m": shares[:, -1].copy(),
    }


def _mask_bits(transfers: Transfers, mask: _MaskBits) -> Generator[Bytes, Bytes, Share]:
    """Arithmetic shares (count, bits) in two flights, if nothing else travels with them."""
    if transfers.rank == 0:
        request = yield _NOTHING
        shares, payload = mask.offer(transfers.offer(request), 0)
        yield flat([payload])
        return shares
    chosen, message = transfers.choose([mask.bits])
    yield message
    reply = yield _NOTHING
    return mask.receive(chosen, 0, Reader(reply).array(mask.payload, mask.ring.dtype))


# Products with a shared bit


def _bit_offer(
    own: Bits, values: Sequence[Share], dtype: np.dtype[np.unsignedinteger]
) -> tuple[Share, Share]:
    """What a party adds to its share of value * bit, and the difference that the peer's bit selects.

    v_p (s_0 ^ s_1) = v_p s_p + s_{1-p} v_p (1 - 2 s_p).
    """
    stacked, bit = np.stack(values, axis=1), own.astype(dtype)[:, None]
    return stacked * bit, stacked * (1 - bit - bit)


# Comparisons


@cache
def tables_of(level: Level) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Tables of a node of radix 4: the four inputs that choose, and the rows of the products it holds."""
    sets = ((0, 1, 2, 5), (0, 1, 3, 4)) if level.last else ((0, 1, 2, 6), (0, 1, 2, 5), (0, 1, 3, 4))
    tables, done = [], set()
    for inputs in sets:
        rows = [
            row
            for row, product in enumerate(level.product_sets)
            if set(product) <= set(inputs) and row not in done
        ]
        done.update(rows)
        tables.append((inputs, tuple(rows)))
    return tuple(tables)


@dataclass(frozen=True)
class _Tree:
    """Where the transfers of a comparison tree's levels stand in the messages."""

    kind: Comparison

    def nodes(self, radix: int) -> Iterator[tuple[int, Level, int]]:
        """(index, level, words of nodes) of all levels of a radix."""
        words = self.kind.tree.level_words(self.kind.count)
        for index, level in enumerate(self.kind.tree.levels):
            if level.radix == radix:
                yield index, level, words[index]

    @property
    def pairs(self) -> int:
        """Nodes of radix 2."""
        return sum(64 * words for _, _, words in self.nodes(2))

    @property
    def pair_bytes(self) -> int:
        """Payload of their transfers, one way."""
        return sum(8 * words * level.products for _, level, words in self.nodes(2))

    @property
    def tables(self) -> int:
        """1-of-16 transfers."""
        return sum(64 * words * len(tables_of(level)) for _, level, words in self.nodes(4))

    @property
    def table_bytes(self) -> int:
        """Their entries."""
        return sum((8 << TABLE_BITS) * words * level.products for _, level, words in self.nodes(4))

    def pair_choices(self, masks: Fields) -> list[Bits]:
        return [unpack(masks[f"masks{index}"][0], 64 * words) for index, _, words in self.nodes(2)]

    def table_choices(self, masks: Fields) -> Words:
        chosen = [
            masks[f"masks{index}"][list(inputs)]
            for index, level, _ in self.nodes(4)
            for inputs, _ in tables_of(level)
        ]
        return np.concatenate(chosen, axis=1)

    def offer_pairs(
        self, offered: Offered, start: int, masks: Fields
    ) -> tuple[dict[int, Words], list[Words]]:
        """Shares of (peer's mask 0) * (own masks 1, ...) by level, and what to send."""
        shares, messages = {}, []
        for index, level, words in self.nodes(2):
            at = slice(start, start + 64 * words)
            shares[index], message = offered.planes(at, masks[f"masks{index}"][1 : 1 + level.products])
            messages.append(message)
            start = at.stop
        return shares, messages

    def receive_pairs(self, chosen: Chosen, start: int, reader: Reader) -> dict[int, Words]:
        """Shares of (own mask 0) * (peer's masks 1, ...)."""
        shares = {}
        for index, level, words in self.nodes(2):
            at = slice(start, start + 64 * words)
            shares[index] = chosen.planes(at, reader.array((level.products, words), np.dtype("<u8")))
            start = at.stop
        return shares

    def entries(self, masks: Fields, products: Fields) -> Iterator[Words]:
        """Party 0's tables in order, each (16, products, words): every product for every choice of party 1."""
        for index, level, words in self.nodes(4):
            own, shares = masks[f"masks{index}"], products[f"products{index}"]
            for inputs, rows in tables_of(level):
                table = np.empty((1 << TABLE_BITS, len(rows), words), np.uint64)
                for value, entry in enumerate(table):
                    opened = {
                        i: own[i] ^ (~np.uint64(0) if value >> bit & 1 else np.uint64(0))
                        for bit, i in enumerate(inputs)
                    }
                    for out, row in zip(entry, rows, strict=True):
                        first, *others = (opened[i] for i in level.product_sets[row])
                        out[...] = first
                        for other in others:
                            out &= other
                        out ^= shares[row]
                yield table


def _comparison_flights(kind: Comparison) -> tuple[Flight, ...]:
    ring, n, tree = kind.ring, kind.count, _Tree(kind)
    values = 2 if kind.shift else 1
    asked = request_bytes(n * ring.bits + n + tree.pairs) + request_bytes(tree.tables, TABLE_WIDTH)
    bits = n * ring.bits * ring.nbytes
    return (
        (request_bytes(n + tree.pairs), asked),
        (bits + tree.pair_bytes + tree.table_bytes, tree.pair_bytes),
        ((values + 1) * n * ring.nbytes, values * n * ring.nbytes),
    )


def _comparison(transfers: Transfers, kind: Comparison, draw: Draw) -> Making:
    """Three flights: requests; bits of r and products of masks; products with the coin s."""
    ring, n, rank, tree = kind.ring, kind.count, transfers.rank, _Tree(kind)
    random = [Field("bits", (n,))] + [field for field in kind.random if field.name != "r"]
    own = draw.fields(ring, *random)
    mask, coin = _MaskBits(ring, own["bits"]), unpack(own["coin"], n)
    fields = {name: array for name, array in own.items()}

    # 1. Party 1 chooses by its bits of r; both by their coins and the first masks of nodes of radix 2.
    mine = [mask.bits] if rank == 1 else []
    chosen, message = transfers.choose([*mine, coin, *tree.pair_choices(own)])
    first = mask.bits.size  # the transfers of the coin come after these, where party 1 chooses
    own_start, peer_start = (first, 0) if rank == 1 else (0, first)
    tables = None
    if tree.tables and rank == 1:
        tables, table_message = transfers.choose_tables(tree.table_choices(own))
        message = flat([message, table_message])
    request = Reader((yield message))

    # 2. Bits of r, and products of masks.
    asked = n + tree.pairs + (first if rank == 0 else 0)
    offered = transfers.offer(request.bytes(request_bytes(asked)))
    given, answer = tree.offer_pairs(offered, peer_start + n, own)
    if rank == 0:
        shares, payload = mask.offer(offered, 0)
        encrypted = []
        if tree.tables:
            offered_tables = transfers.offer_tables(request.bytes(request_bytes(tree.tables, TABLE_WIDTH)))
            products = draw.fields(ring, *(f for f in kind.derived if f.name.startswith("products")))
            fields |= products
            at = 0
            for table in tree.entries(own, products):
                encrypted.append(offered_tables.encrypt(slice(at, at + table.shape[2]), table))
                at += table.shape[2]
        yield_ = flat([payload, *answer, *encrypted])
    else:
        yield_ = flat(answer)
    reply = Reader((yield yield_))
    if rank == 1:
        shares = mask.receive(chosen, 0, reply.array(mask.payload, ring.dtype))
    taken = tree.receive_pairs(chosen, own_start + n, reply)
    for index, level, _ in tree.nodes(2):
        masks = own[f"masks{index}"]
        local = masks[0] & masks[1 : 1 + level.products]
        fields[f"products{index}"] = local ^ given[index] ^ taken[index]
    if tables is not None:
        at = 0
        for index, level, words in tree.nodes(4):
            opened = np.empty((level.products, words), np.uint64)
            for _, rows in tables_of(level):
                shape = (1 << TABLE_BITS, len(rows), words)
                opened[list(rows)] = tables.open(slice(at, at + words), reply.array(shape, np.dtype("<u8")))
                at += words
            fields[f"products{index}"] = opened
    fields["r"] = _shifted(ring, shares, 0)

    # 3. Arithmetic shares of the coin, and products with it.
    names = ("rho", "m") if kind.shift else ("r",)
    if kind.shift:
        fields |= {"rho": _shifted(ring, shares, kind.shift), "m": shares[:, -1].copy()}
    local, delta = _bit_offer(coin, [fields[name] for name in names], ring.dtype)
    bit = coin.astype(ring.dtype)[:, None]
    if rank == 0:  # with the coin's own product in front
        delta = np.concatenate([-(bit + bit), delta], axis=1)
    share, payload = offered.elements(slice(peer_start, peer_start + n), delta, ring)
    reply = Reader((yield flat([payload])))
    columns = len(names) + (rank == 1)
    got = chosen.elements(slice(own_start, own_start + n), reply.array((n, columns), ring.dtype), ring)
    coins, products_given, products_taken = (
        (share[:, 0], share[:, 1:], got) if rank == 0 else (got[:, 0], share, got[:, 1:])
    )
    total = local + products_given + products_taken
    fields["s"] = bit[:, 0] + coins
    for column, name in enumerate(names):
        fields[f"{name}_s"] = np.ascontiguousarray(total[:, column])
    return fields


# Quadratics


def _coefficient_products(kind: Quadratic) -> tuple[CrossProduct, ...]:
    """Products of the private coefficients with u, u^2, m and u m, and with u and m."""
    if not kind.private:
        return ()
    images, positions = kind.shape
    counts = (4, 2) if kind.shift else (2, 1)
    bits = kind.operand_bits
    return tuple(
        CrossProduct(kind.ring, Elementwise(), (count, images, positions), (positions,), bits)
        for count in counts
    )


def _quadratic_flights(kind: Quadratic) -> tuple[Flight, ...]:
    ring, n = kind.ring, prod(kind.shape)
    products = _coefficient_products(kind)
    square = CrossProduct(ring, Elementwise(), (n,), (n,), ring.bits)
    drop = bool(kind.shift)
    mine = request_bytes(n * drop + sum(product.transfers for product in products))
    theirs = request_bytes(n * (ring.bits + 1)) if drop else 0
    return (
        (mine, theirs),
        (n * ring.bits * ring.nbytes * drop, 0),
        (n * ring.nbytes * drop, square.request + n * ring.nbytes * drop),
        (square.payload, 0),
        (0, sum(product.payload for product in products)),
    )


def _quadratic(transfers: Transfers, kind: Quadratic, draw: Draw) -> Making:
    """Five flights: requests; bits of r; u m, and requests for u^2; u^2; products with the coefficients."""
    ring, n, rank = kind.ring, prod(kind.shape), transfers.rank
    products = _coefficient_products(kind)
    word = draw.elements(ring, (n,))
    mask = _MaskBits(ring, word)
    top = mask.bits.reshape(n, -1)[:, -1]
    tops = [top] if kind.shift else []

    # 1. Both choose by their top bits; party 0 by its coefficients, party 1 by its bits of r.
    names = ("quadratic", "linear")
    if rank == 0:
        bits = [p.choices(draw.statics[name]) for p, name in zip(products, names, strict=False)]
    else:
        bits = [mask.bits] if kind.shift else []
    # party 1's bits come first, then the top bits; party 0's top bits first, then coefficients
    lists = [*tops, *bits] if rank == 0 else [*bits, *tops]
    chosen, message = transfers.choose(lists) if lists else (None, _NOTHING)
    request = yield message
    offered = transfers.offer(request) if request.size else None

    # 2. Bits of r.
    u, m = word, np.zeros(0, ring.dtype)
    if kind.shift:
        assert chosen is not None
        assert offered is not None
        if rank == 0:
            shares, payload = mask.offer(offered, 0)
            yield flat([payload])
        else:
            reply = yield _NOTHING
            shares = mask.receive(chosen, 0, Reader(reply).array(mask.payload, ring.dtype))
        r, u, m = _shifted(ring, shares, 0), _shifted(ring, shares, kind.shift), shares[:, -1].copy()
    else:
        r = word
        yield _NOTHING

    # 3. u m; party 1 asks for the square by the bits of its u.
    square = CrossProduct(ring, Elementwise(), (n,), (n,), ring.bits)
    square_chosen, parts = None, []
    if rank == 1:
        square_chosen, asked = transfers.choose([square.choices(u)])
        parts.append(asked)
    um = np.zeros(0, ring.dtype)
    if kind.shift:
        assert offered is not None
        local, delta = _bit_offer(top, [u], ring.dtype)
        at = n * ring.bits if rank == 0 else 0
        share, payload = offered.elements(slice(at, at + n), delta, ring)
        um = (local + share)[:, 0]
        parts.append(payload)
    reply = Reader((yield flat(parts)))
    square_offered = transfers.offer(reply.bytes(square.request)) if rank == 0 else None
    if kind.shift:
        assert chosen is not None
        at = n * ring.bits if rank == 1 else 0
        um = um + chosen.elements(slice(at, at + n), reply.array((n, 1), ring.dtype), ring)[:, 0]

    # 4. u^2.
    if square_offered is not None:
        mixed, payload = square.offer(square_offered, 0, u + u)
        yield flat([payload])
    else:
        assert square_chosen is not None
        reply = Reader((yield _NOTHING))
        mixed = square.receive(square_chosen, 0, reply.array((square.payload // ring.nbytes,), ring.dtype))
    values = {"u": u, "uu": u * u + mixed}
    if kind.shift:
        values |= {"m": m, "um": um}
    values = {name: value.reshape(kind.shape) for name, value in values.items()}

    # 5. Products with the coefficients: party 0's own part is local.
    operands = [list(values), [name for name in ("u", "m") if name in values]]
    at, parts, shares_of = (n if kind.shift and rank == 0 else 0), [], {}
    start = n if kind.shift else 0  # in party 0's transfers
    if rank == 1:
        for product, prefix, mine in zip(products, names, operands, strict=False):
            assert offered is not None
            share, payload = product.offer(offered, start, np.stack([values[name] for name in mine]))
            shares_of |= {f"{prefix}_{name}": part for name, part in zip(mine, share, strict=True)}
            parts.append(payload)
            start += product.transfers
        yield flat(parts)
    else:
        reply = Reader((yield _NOTHING))
        for product, prefix, mine in zip(products, names, operands, strict=False):
            assert chosen is not None
            flat_payload = reply.array((product.payload // ring.nbytes,), ring.dtype)
            share = product.receive(chosen, start, flat_payload)
            coefficient = draw.statics[prefix]
            for name, part in zip(mine, share, strict=True):
                shares_of[f"{prefix}_{name}"] = part + coefficient * values[name]
            start += product.transfers
    return {"r": r.reshape(kind.shape), **values, **shares_of}


def complete(kind: Correlation, rank: int, fields: Fields) -> Fields:
    """Check that a making gave every array of a correlation.

    Raises:
        EngineError: a field is absent or has another shape.
    """
    for field in kind.random_of(rank) + kind.derived:
        array = fields.get(field.name)
        if array is None or array.shape != field.shape or array.dtype != field.dtype(kind.ring):
            raise EngineError(f"{type(kind).__name__} was made without a proper {field.name}")
    return fields
