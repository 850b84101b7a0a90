"""Correlated randomness: common keys of sets of servers, and values that a dealer shares.

The dealer shares values by degree t. The first t servers' shares are uniform, so they draw them from seeds
that they have in common with the dealer; it sends the others theirs. Random sharings need no message at all:
every set of n - t servers has a key in common, and each member adds up, over its sets, a pseudorandom value
times the set's polynomial (R. Cramer, I. Damgard, Y. Ishai, TCC 2005). Where there are too many sets, they
come from the dealer too.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from math import prod

import numpy as np

from tradeoff.engines.shamir import field
from tradeoff.engines.shamir.errors import OfflineExhausted
from tradeoff.engines.shamir.field import PRIME, Elements
from tradeoff.engines.shamir.materials import Material
from tradeoff.engines.shamir.options import Options
from tradeoff.engines.shamir.peers import PATIENCE, Peers
from tradeoff.engines.shamir.program import SETUP_INDEX, Program
from tradeoff.engines.shamir.sharing import combine, fresh_stream, lagrange, set_weights, uniform
from tradeoff.engines.transport import Endpoint
from tradeoff.engines.transport.prg import SEED_BYTES, BlockLedger, Prg, Stream

GO, END, SEED, BATCH = (0xFFFF_FFF0 + i for i in range(4))
"""Tags: deal for the next inference, the end; keys; the batch size."""

_BLOCK = 1 << 15


class Source:
    """One server's correlated randomness. Every call gives material that no other call gives.

    Args:
        peers: this server's links; the dealer's keys are received at once.

    Attributes:
        key: this server's share of the verification key alpha (0 if there is none).
        consumed: elements by kind: ``dealt`` and ``doubles``.
    """

    def __init__(self, peers: Peers, ledger: BlockLedger | None = None) -> None:
        self._peers = peers
        self._options = peers.options
        self._me = peers.net.me
        members, weights = set_weights(self._options.scheme, self._me)
        keys = len(members) if self._options.scheme.from_keys else 0
        length = (1 + keys) * SEED_BYTES + field.NBYTES
        received = peers.recv(
            self._options.dealer, (bytes, (length,)), tag=SEED, offline=True, timeout=PATIENCE
        )
        data = bytes(received) if received is not None else b""
        seeds = [data[start : start + SEED_BYTES] for start in range(0, length - field.NBYTES, SEED_BYTES)]
        self.key = np.frombuffer(data[-field.NBYTES :], "<u8")[0]
        self._own = Prg(seeds[0], ledger)
        self._common = [Prg(seed, ledger) for seed in seeds[1:]]
        self._weights = _double_weights(self._options, self._me, weights)
        self._session = session_bytes(peers.net.session)
        self._inference = 0
        self._tag = SETUP_INDEX
        self._chunk: dict[tuple[int, str], int] = {}
        self._given: list[tuple[Elements, Elements]] = []
        self.consumed = {"dealt": 0, "doubles": 0}

    def start(self) -> None:
        """Begin the next inference; what was left of the last one is out of reach."""
        self._inference += 1
        self._tag = SETUP_INDEX
        self._chunk = {}
        self._given = []

    def take(self, tag: int, material: Material) -> dict[str, Elements]:
        """Dealt shares by name, (copies, *shape)."""
        self._tag = tag
        options = self._options
        degree = options.scheme.t
        shares = self._dealt(tag, type(material).__name__, material.dealt_elements, degree)
        if not options.scheme.from_keys and material.doubles:
            random = self._dealt(tag, "random", material.doubles, degree)
            self._given.append((random, self._dealt(tag, "zeros", material.doubles, 2 * degree)))
        self.consumed["dealt"] += material.dealt_elements
        fields, start = {}, 0
        for name, shape in material.dealt.items():
            count = options.copies * prod(shape)
            fields[name] = shares[start : start + count].reshape(options.copies, *shape)
            start += count
        return fields

    def doubles(self, shape: tuple[int, ...]) -> tuple[Elements, Elements]:
        """Shares of random elements, of degree t, and of as many zeros, of degree 2t.

        Their sum is a sharing of the same random elements of degree 2t.

        Raises:
            OfflineExhausted: the dealer gave fewer.
        """
        count = prod(shape)
        self.consumed["doubles"] += count
        if not self._options.scheme.from_keys:
            return self._from_dealer(count, shape)
        streams = [self._stream(prg, self._tag, "double") for prg in self._common]
        self._chunk[self._tag, "double"] = self._chunk.get((self._tag, "double"), 0) + 1
        out = np.empty((2, count), np.uint64)
        rows = 1 + self._options.threshold
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            drawn = np.concatenate([uniform(stream, (rows, size)) for stream in streams])
            out[:, start : start + size] = field.matmul(self._weights, drawn)
        return out[0].reshape(shape), out[1].reshape(shape)

    def _from_dealer(self, count: int, shape: tuple[int, ...]) -> tuple[Elements, Elements]:
        random, zeros = self._given.pop(0) if self._given else (np.empty(0, np.uint64),) * 2
        if random.size < count:
            raise OfflineExhausted(f"{count} random sharings were asked for, {random.size} are left")
        if random.size > count:
            self._given.insert(0, (random[count:], zeros[count:]))
        return random[:count].reshape(shape), zeros[:count].reshape(shape)

    def _dealt(self, tag: int, kind: str, count: int, degree: int) -> Elements:
        """Shares of flat values: from the seed, or from the dealer."""
        if not count:
            return np.empty(0, np.uint64)
        if self._me < degree:
            stream = self._stream(self._own, tag, kind)
            self._chunk[tag, kind] = self._chunk.get((tag, kind), 0) + 1
            return uniform(stream, count)
        received = self._peers.recv(
            self._options.dealer, ("<u8", (count,)), tag=tag, offline=True, timeout=PATIENCE
        )
        return np.asarray(received, np.uint64)

    def _stream(self, prg: Prg, tag: int, kind: str) -> Stream:
        return prg.stream(self._session, self._inference, tag, self._chunk.get((tag, kind), 0), kind)


class Dealer:
    """The dealer's computation: it sees no input, no weight and no opened value.

    Args:
        net: the dealer's end of the links; keys are sent at once.
        program: the public view.
    """

    def __init__(self, net: Endpoint, program: Program) -> None:
        self.peers = Peers(net, program.options)
        self._program = program
        self._options = options = program.options
        self._session = session_bytes(net.session)
        self._alpha = uniform(fresh_stream(), 1) if options.authenticated else np.zeros(1, np.uint64)
        shares = options.scheme.share(self._alpha)
        seeds = [secrets.token_bytes(SEED_BYTES) for _ in options.scheme.servers]
        keys = [secrets.token_bytes(SEED_BYTES) for _ in options.scheme.sets if options.scheme.from_keys]
        for server in options.scheme.servers:
            members = set_weights(options.scheme, server)[0] if keys else ()
            own = b"".join([seeds[server], *(keys[index] for index in members)])
            message = own + shares[server].astype("<u8").tobytes()
            self.peers.send(server, message, tag=SEED, offline=True)
        self._seeds = [Prg(seed) for seed in seeds]

    def setup(self) -> None:
        """Deal what the servers need before the first inference."""
        self._deal_all(0, SETUP_INDEX, self._program.setup_materials())

    def deal(self, inference: int, batch: int) -> None:
        """Deal for one inference, counted from 1."""
        for tag, materials in self._program.materials(batch):
            self._deal_all(inference, tag, materials)

    def _deal_all(self, inference: int, tag: int, materials: Sequence[Material]) -> None:
        chunk: dict[str, int] = {}
        for material in materials:
            for kind, values, degree in self._values(material):
                self._share(inference, tag, chunk.get(kind, 0), kind, values, degree)
                chunk[kind] = chunk.get(kind, 0) + 1

    def _values(self, material: Material) -> list[tuple[str, Elements, int]]:
        """(kind, flat values, degree) of what is shared for a material."""
        scheme, shared = self._options.scheme, []
        if material.dealt_elements:
            values = material.deal(fresh_stream())
            parts = []
            for name in material.dealt:
                parts.append(values[name].ravel())
                if self._options.authenticated:
                    parts.append(field.multiply(parts[-1], self._alpha))
            shared.append((type(material).__name__, np.concatenate(parts), scheme.t))
        if not scheme.from_keys and material.doubles:
            shared.append(("random", uniform(fresh_stream(), material.doubles), scheme.t))
            shared.append(("zeros", np.zeros(material.doubles, np.uint64), 2 * scheme.t))
        return shared

    def _share(self, inference: int, tag: int, chunk: int, kind: str, values: Elements, degree: int) -> None:
        """The first ``degree`` servers draw their shares, the others are sent those that follow from them."""
        drawing = tuple(range(degree))
        others = tuple(range(degree, self._options.servers))
        drawn = [
            uniform(self._seeds[server].stream(self._session, inference, tag, chunk, kind), values.shape)
            for server in drawing
        ]
        for server, share in zip(
            others, combine(lagrange((-1, *drawing), others), [values, *drawn]), strict=True
        ):
            self.peers.send(server, share, tag=tag, offline=True)


def run_dealer(
    net: Endpoint, program: Program, *, idle_timeout: float = PATIENCE, max_batch: int = 1 << 16
) -> int:
    """The dealer's part of a session: hand out keys, then deal as the data owner asks for inferences.

    Returns:
        how many inferences it dealt for.
    """
    dealer = Dealer(net, program)
    dealer.setup()
    batch = learn_batch(dealer.peers, max_batch)
    dealt = 0
    while True:
        tag, value = dealer.peers.recv_any(program.options.client, timeout=idle_timeout)
        if np.size(value) or tag not in (GO, END):
            raise ValueError("the data owner sent the dealer more than when to deal")
        if tag == END:
            return dealt
        dealt += 1
        dealer.deal(dealt, batch)


def announce_batch(peers: Peers, batch: int) -> None:
    """The data owner's only public word: how many images an inference has."""
    for party in (*peers.servers, peers.options.dealer):
        peers.send(party, np.array([batch], "<u8"), tag=BATCH, offline=True)


def learn_batch(peers: Peers, max_batch: int = 1 << 16) -> int:
    """The batch size, at a server or the dealer.

    Raises:
        ValueError: it is out of range.
    """
    received = peers.recv(peers.options.client, ("<u8", (1,)), tag=BATCH, offline=True, timeout=PATIENCE)
    batch = int(np.asarray(received)[0])
    if not 1 <= batch <= max_batch:
        raise ValueError(f"a batch of {batch} images is not between 1 and {max_batch}")
    return batch


def session_bytes(session: int) -> bytes:
    """The name of a session in the names of streams."""
    return session.to_bytes(16, "little")


def _double_weights(options: Options, server: int, weights: Sequence[int]) -> Elements:
    """(2, sets * (1 + t)): a set's first value goes to the random sharing, times its polynomial f; the k-th
    further one to the zeros, times f(x) x^k."""
    point = server + 1
    rows: list[list[int]] = [[], []]
    for weight in weights:
        rows[0] += [weight, *[0] * options.threshold]
        rows[1] += [0, *(weight * pow(point, k, PRIME) % PRIME for k in range(1, options.threshold + 1))]
    return np.array(rows, np.uint64)
