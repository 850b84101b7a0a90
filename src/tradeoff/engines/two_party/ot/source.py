"""The source of correlated randomness of a session without a dealer: the two parties make it themselves."""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from tradeoff.core.errors import ProtocolError
from tradeoff.engines.transport import Endpoint
from tradeoff.engines.transport.prg import SEED_BYTES, BlockLedger, Prg
from tradeoff.engines.two_party.correlations import Correlation, Fields
from tradeoff.engines.two_party.offline import correlations, session_bytes
from tradeoff.engines.two_party.ot.base import POINT_BYTES, BaseReceiver, BaseSender
from tradeoff.engines.two_party.ot.extension import TABLE_WIDTH, WIDTH, Chooser, Offerer, RowHash
from tradeoff.engines.two_party.ot.making import NOTHING, Draw
from tradeoff.engines.two_party.ot.material import check, flights, maker, uses_tables
from tradeoff.engines.two_party.ot.transfers import Bits, Bytes, Transfers
from tradeoff.engines.two_party.program import Program
from tradeoff.engines.two_party.protocol import Group, Traffic
from tradeoff.engines.two_party.sharing import Share

_SETUP_TAG = 0xFFFF_FF02
_BINDING_BYTES = 16


class ObliviousSource:
    """One party's correlated randomness, made with the peer by oblivious transfer.

    It has the methods of :class:`~tradeoff.engines.two_party.offline.Source`. Material is made when an
    operator asks for it, or before by :meth:`fetch`; it depends on no input. Party 0's static operands need
    no mask: transfers hide them.

    Args:
        net: the links; ids 0 and 1.
        program: to find out what must be set up.
    """

    def __init__(self, net: Endpoint, program: Program, ledger: BlockLedger | None = None) -> None:
        self.rank = net.me
        self._net = net
        self._session = session_bytes(net.session)
        self._program = program
        self._ledger = ledger
        self._prg = Prg(secrets.token_bytes(SEED_BYTES), ledger)
        self._statics: dict[int, dict[str, Share]] = {}
        self._transfers: Transfers | None = None
        self._inference = -1
        self._ahead = 0
        self._chunk: dict[tuple[int, int], int] = {}
        self._fetched: deque[Fields] = deque()

    def prepare(self) -> None:
        """Base transfers: two flights a session.

        Raises:
            ProtocolError: the peer is in another session or program, or sends a point that is none of the
            group.
        """
        tables = needs_tables(self._program)
        bound = hashlib.blake2b(
            self._session + self._program.digest.encode(),
            digest_size=_BINDING_BYTES,
            person=b"tradeoff-ot-bind",
        ).digest()
        sender = BaseSender(bound)
        hello = self._exchange(bound + sender.message, _BINDING_BYTES + POINT_BYTES)
        if hello[:_BINDING_BYTES] != bound:
            raise ProtocolError("the peer makes its transfers for another session or program")
        # Who offers in an extension receives in its base transfers. Tables are party 0's to offer.
        offered = WIDTH + TABLE_WIDTH * (tables and self.rank == 0)
        asked = WIDTH + TABLE_WIDTH * (tables and self.rank == 1)
        secret = np.unpackbits(np.frombuffer(secrets.token_bytes(offered // 8), np.uint8)).astype(bool)
        receiver = BaseReceiver(bound, secret, hello[_BINDING_BYTES:])
        pairs = sender.keys(self._exchange(receiver.answer, asked * POINT_BYTES), asked)
        # Counters tell the two directions apart: both hash under one key.
        own_first, peer_first = (chooser << 62 for chooser in (self.rank, 1 - self.rank))
        self._transfers = Transfers(
            self.rank,
            RowHash(self._session),
            Chooser(pairs[:WIDTH], self._session, "pairs", self._ledger, first=own_first),
            Offerer(
                secret[:WIDTH],
                receiver.keys[:WIDTH],
                self._session,
                "pairs",
                self._ledger,
                first=peer_first,
            ),
            self._tables(pairs[WIDTH:], secret[WIDTH:], receiver.keys[WIDTH:]) if tables else None,
        )

    def _tables(
        self, pairs: Sequence[tuple[bytes, bytes]], secret: Bits, keys: Sequence[bytes]
    ) -> Chooser | Offerer:
        if self.rank == 1:
            return Chooser(pairs, self._session, "tables", self._ledger)
        return Offerer(secret, keys, self._session, "tables", self._ledger)

    def keep(self, operator: int, operands: Fields) -> None:
        """Party 0's static operands of an operator, by which it will choose."""
        self._statics.setdefault(operator, {}).update(operands)

    def begin(self) -> int:
        """Start the next inference and return its number."""
        self._inference += 1
        self._ahead = max(0, self._ahead - 1)
        self._chunk = {name: n for name, n in self._chunk.items() if name[0] >= self._inference}
        return self._inference

    def take(self, operator: int, correlation: Correlation) -> Fields:
        """The next correlation of an operator; no call returns the same one again."""
        if self._fetched:
            return self._fetched.popleft()
        return self._make(self._inference, operator, correlation)

    def fetch(self, groups: Iterable[Sequence[Group]]) -> None:
        """Make the material of one more inference now."""
        self._ahead += 1
        for operator, correlation in correlations(groups):
            self._fetched.append(self._make(self._inference + self._ahead, operator, correlation))

    def end(self) -> None:
        """Nothing more is needed."""

    def _make(self, inference: int, operator: int, correlation: Correlation) -> Fields:
        assert self._transfers is not None
        chunk = self._chunk.get((inference, operator), 0)
        self._chunk[inference, operator] = chunk + 1
        stream = self._prg.stream(self._session, inference, operator, chunk, type(correlation).__name__)
        draw = Draw(stream, self._statics.get(operator, {}))
        making = maker(correlation).make(self._transfers, draw)
        message = next(making)
        for flight in flights(correlation):
            reply = self._fly(operator, message, flight)
            try:
                message = making.send(reply)
            except StopIteration as stop:
                return check(correlation, self.rank, stop.value)
        raise AssertionError("a making goes on after its last flight")

    def _fly(self, operator: int, message: Bytes, flight: tuple[int, int]) -> Bytes:
        """One flight: both messages cross; nothing happens where nobody has something to say."""
        own, expected = flight[self.rank], flight[1 - self.rank]
        if message.nbytes != own:
            raise AssertionError(f"a message of {message.nbytes} bytes was declared with {own}")
        if not (own or expected):
            return message
        peer = 1 - self.rank
        if own:
            self._net.send(peer, message, tag=operator, offline=True)
        if expected:
            expect = (np.dtype(np.uint8), (expected,))
            message = np.asarray(self._net.recv(peer, tag=operator, expect=expect, offline=True))
        else:
            message = NOTHING
        self._net.round(offline=True)
        return message

    def _exchange(self, message: bytes, expected: int) -> bytes:
        reply = self._net.exchange(
            1 - self.rank, message, tag=_SETUP_TAG, expect=(bytes, (expected,)), offline=True
        )
        self._net.round(offline=True)
        return bytes(reply)


def needs_tables(program: Program) -> bool:
    """Whether anything of a program is made from 1-of-16 transfers."""
    return any(uses_tables(kind) for _, kind in correlations([step.groups(1) for step in program.steps]))


def setup_traffic(program: Program, party: int) -> Traffic:
    """What the base transfers of a session cost a party."""
    tables = TABLE_WIDTH * needs_tables(program)
    both = [_BINDING_BYTES + POINT_BYTES * (1 + WIDTH + tables * (rank == 0)) for rank in (0, 1)]
    return Traffic(offline=both[1 - party], offline_sent=both[party], offline_rounds=2)


def offline_traffic(groups: Sequence[Group], party: int) -> Traffic:
    """What the making of an operator's material costs a party."""
    total = Traffic()
    for _, kind in correlations([groups]):
        for flight in flights(kind):
            total += Traffic(
                offline=flight[1 - party], offline_sent=flight[party], offline_rounds=int(any(flight))
            )
    return total
