"""Where a party's correlated randomness comes from: a live dealer, a file made before, or (tests only)
itself.

A source hands out shares in the order of the program, each once, and shares of the static masks. Party 0's
shares all grow from its seed; party 1 also needs the dealer's corrections, which a *feed* delivers.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.transport import Endpoint
from tradeoff.engines.transport.prg import SEED_BYTES, BlockLedger, Prg, Stream
from tradeoff.engines.two_party.correlations import Correlation, Fields, deal, expand_one, expand_zero
from tradeoff.engines.two_party.program import Program
from tradeoff.engines.two_party.protocol import Group
from tradeoff.engines.two_party.sharing import Ring, Share
from tradeoff.engines.two_party.steps import Step

DEALER = 2
"""The dealer's id among the parties; the model owner is 0, the data owner 1."""

GO, MORE, END, SEED, BATCH = (0xFFFF_FFF0 + i for i in range(5))
"""Tags: next inference, room for more corrections, the end; a seed; the batch size."""

CREDIT = 32 << 20
WINDOW = 4 * CREDIT
"""Bytes of corrections on their way at most; party 1 says so whenever it took CREDIT more of them."""

Corrections = NDArray[np.uint64]


def session_bytes(session: int) -> bytes:
    """The name of a session in the names of streams."""
    return session.to_bytes(16, "little")


class Feed(Protocol):
    """Delivers party 1's corrections in program order."""

    def begin(self, inference: int) -> None: ...

    def corrections(
        self, inference: int, operator: int, chunk: int, correlation: Correlation
    ) -> Corrections: ...

    def end(self) -> None: ...


class Source:
    """One party's correlated randomness.

    Args:
        rank: 0 or 1.
        seed: of this party, from the dealer.
        session: 16 bytes that name the session (or the pool).
        feed: of the corrections, at party 1.
        first: number of the first inference.
    """

    def __init__(
        self,
        rank: int,
        seed: bytes,
        session: bytes,
        feed: Feed | None,
        *,
        first: int = 0,
        ledger: BlockLedger | None = None,
    ) -> None:
        self.rank = rank
        self._prg = Prg(seed, ledger)
        self._session = session
        self._feed = feed
        self._inference = first - 1
        self._chunk: dict[int, int] = {}

    def prepare(self) -> None:
        """Nothing is set up with the peer."""

    def begin(self) -> int:
        """Start the next inference and return its number; material of earlier ones is out of reach."""
        self._inference += 1
        self._chunk = {}
        if self._feed is not None:
            self._feed.begin(self._inference)
        return self._inference

    def take(self, operator: int, correlation: Correlation) -> Fields:
        """The next correlation of an operator; no call returns the same one again."""
        chunk = self._chunk.get(operator, 0)
        self._chunk[operator] = chunk + 1
        stream = self._stream(self._inference, operator, chunk, correlation)
        if self.rank == 0:
            return expand_zero(correlation, stream)
        assert self._feed is not None
        return expand_one(
            correlation, stream, self._feed.corrections(self._inference, operator, chunk, correlation)
        )

    def _stream(self, inference: int, operator: int, chunk: int, correlation: Correlation) -> Stream:
        return self._prg.stream(self._session, inference, operator, chunk, type(correlation).__name__)

    def static(self, operator: int, name: str, shape: tuple[int, ...], ring: Ring) -> Share:
        """The mask of a static operand of party 0, who draws it alone, once a session."""
        return static_mask(self._prg, self._session, operator, name, shape, ring)

    def fetch(self, groups: Iterable[Sequence[Group]]) -> None:
        """Take the dealer's corrections for one more inference now."""
        if isinstance(self._feed, DealerFeed):
            self._feed.fetch(groups)

    def end(self) -> None:
        """Nothing more is needed."""
        if self._feed is not None:
            self._feed.end()


def static_mask(
    prg: Prg, session: bytes, operator: int, name: str, shape: tuple[int, ...], ring: Ring
) -> Share:
    """A static mask from party 0's generator."""
    return (
        prg.stream(session, None, operator, 0, f"static {name}").words(prod(shape), ring.dtype).reshape(shape)
    )


class Generator:
    """The dealer's computation: it holds both seeds, sees no input and no opened value.

    Args:
        program: public view.
        batch: images an inference.
        seeds: of party 0 and party 1.
        session: 16 bytes.
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        seeds: tuple[bytes, bytes],
        session: bytes,
        *,
        ledgers: tuple[BlockLedger | None, BlockLedger | None] = (None, None),
    ) -> None:
        self._steps = program.steps
        self._groups = [step.groups(batch) for step in self._steps]
        self._session = session
        self._prgs = tuple(Prg(seed, ledger) for seed, ledger in zip(seeds, ledgers, strict=True))
        self._static = [self._static_masks(index, step) for index, step in enumerate(self._steps)]

    def _static_masks(self, index: int, step: Step) -> Fields:
        masks: dict[str, Share] = {}
        for name, shape in step.static_shapes.items():
            masks[name] = static_mask(self._prgs[0], self._session, index, name, shape, step.ring)
        return step.spread(masks)

    def corrections(self, inference: int) -> Iterator[tuple[int, Corrections]]:
        """(operator, corrections) of one inference in program order."""
        chunks = [0] * len(self._groups)
        for operator, correlation in correlations(self._groups):
            name = (self._session, inference, operator, chunks[operator], type(correlation).__name__)
            chunks[operator] += 1
            zero, one = (prg.stream(*name) for prg in self._prgs)
            yield operator, deal(correlation, zero, one, self._static[operator])


def correlations(steps: Iterable[Sequence[Group]]) -> Iterator[tuple[int, Correlation]]:
    """(operator, correlation) of an inference in program order."""
    for operator, groups in enumerate(steps):
        for group in groups:
            for lane in group:
                for correlation in lane:
                    yield operator, correlation


class DealerFeed:
    """Corrections from the dealer's process, which is asked with empty messages only."""

    def __init__(self, net: Endpoint) -> None:
        self._net = net
        self._asked = 0
        self._uncounted = 0
        self._fetched: deque[Corrections] = deque()

    def ask(self) -> None:
        """Let the dealer start on one more inference."""
        self._asked += 1
        self._say(GO)

    def fetch(self, groups: Iterable[Sequence[Group]]) -> None:
        """Ask for the next inference and take all of its corrections into memory."""
        self.ask()
        for operator, correlation in correlations(groups):
            self._fetched.append(self._receive(operator, correlation))

    def begin(self, inference: int) -> None:
        if self._asked <= inference:
            self.ask()

    def corrections(self, inference: int, operator: int, chunk: int, correlation: Correlation) -> Corrections:
        return self._fetched.popleft() if self._fetched else self._receive(operator, correlation)

    def _receive(self, operator: int, correlation: Correlation) -> Corrections:
        expect = ("<u8", (correlation.correction_bytes // 8,))
        received = np.asarray(self._net.recv(DEALER, tag=operator, expect=expect, offline=True))
        self._uncounted += correlation.correction_bytes
        while self._uncounted >= CREDIT:
            self._uncounted -= CREDIT
            self._say(MORE)
        return received

    def end(self) -> None:
        self._say(END)

    def _say(self, tag: int) -> None:
        self._net.send(DEALER, np.empty(0, np.uint8), tag=tag, offline=True)


class OwnFeed:
    """Corrections that party 1 makes itself, which is NOT secure: it knows both seeds. For tests."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._corrections: Iterator[tuple[int, Corrections]] = iter(())

    def begin(self, inference: int) -> None:
        self._corrections = self._generator.corrections(inference)

    def corrections(self, inference: int, operator: int, chunk: int, correlation: Correlation) -> Corrections:
        made_for, corrections = next(self._corrections)
        assert made_for == operator
        return corrections

    def end(self) -> None:
        return


def dealt_source(net: Endpoint, ledger: BlockLedger | None = None) -> Source:
    """The source of a party whose dealer is party 2 of the session."""
    seed = bytes(net.recv(DEALER, tag=SEED, expect=(bytes, (SEED_BYTES,)), offline=True))
    feed = DealerFeed(net) if net.me == 1 else None
    return Source(net.me, seed, session_bytes(net.session), feed, ledger=ledger)


def insecure_source(net: Endpoint, program: Program, batch: int, ledger: BlockLedger | None = None) -> Source:
    """The source of a session without a dealer in which party 1 deals to itself. NOT secure; for tests."""
    session = session_bytes(net.session)
    if net.me == 0:
        seed = bytes(net.recv(1, tag=SEED, expect=(bytes, (SEED_BYTES,)), offline=True))
        return Source(0, seed, session, None, ledger=ledger)
    seeds = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES)
    net.send(0, seeds[0], tag=SEED, offline=True)
    return Source(1, seeds[1], session, OwnFeed(Generator(program, batch, seeds, session)), ledger=ledger)


def run_dealer(
    net: Endpoint, program: Program, *, idle_timeout: float = 3600.0, max_batch: int = 1 << 16
) -> int:
    """The dealer's part of a session: hand out seeds, then corrections as party 1 asks for them.

    Returns:
        how many inferences it dealt.
    """
    seeds = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES)
    for party, seed in enumerate(seeds):
        net.send(party, seed, tag=SEED, offline=True)
    batch = int(net.recv(1, tag=BATCH, expect=("<u8", (1,)), offline=True)[0])
    if not 1 <= batch <= max_batch:
        raise ValueError(f"a batch of {batch} images is not between 1 and {max_batch}")
    generator = Generator(program, batch, seeds, session_bytes(net.session))
    asked = dealt = 0
    room = WINDOW

    def listen() -> bool:
        nonlocal asked, room
        tag, value = net.recv_any(1, offline=True, timeout=idle_timeout)
        if np.size(value) or tag not in (GO, MORE, END):
            raise ValueError("a party sent the dealer more than flow control")
        asked += tag == GO
        room += CREDIT if tag == MORE else 0
        return tag != END

    while True:
        while asked == dealt:
            if not listen():
                return dealt
        for operator, corrections in generator.corrections(dealt):
            while room < corrections.nbytes and room <= WINDOW - CREDIT:
                if not listen():
                    return dealt
            net.send(1, corrections, tag=operator, offline=True)
            room -= corrections.nbytes
        dealt += 1
