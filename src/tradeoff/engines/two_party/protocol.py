"""How protocols are written and driven.

A protocol is a generator: it yields the message that this party opens in a round and is resumed with the
peer's::

    def square(rank, x, m):
        e = x - m["a"]
        e += yield e
        ...

Both parties run the same code, and the two messages of a round cross on the wire, so a round costs one
one-way delay. Where only one party speaks (``Correlation.speakers``), the other yields an empty stand-in of
the message's type and shape (:func:`silence`).

:func:`lockstep` drives several protocols at once: their messages of a round travel together, which is how
large tensors are cut into chunks (the next chunk computes while the last one's message travels) and how a
polynomial rides in the rounds of a comparison.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol as Interface

import numpy as np

from tradeoff.core.errors import EngineError
from tradeoff.engines.two_party.correlations import Correlation
from tradeoff.engines.two_party.sharing import Share

Rounds = Generator[Share, Share, Share]
"""A running protocol: yields own messages, receives the peer's, returns this party's share of the result."""

Lane = tuple[Correlation, ...]
"""Correlations that one protocol consumes, in order."""

Group = tuple[Lane, ...]
"""Lanes that run in lockstep."""

CHUNK = 1 << 17
"""Elements of one chunk: its arrays stay in the second-level cache."""

IN_FLIGHT = 1 << (21 - 17)
"""Chunks that run in lockstep; 2^21 elements share their rounds."""


class Channel(Interface):
    """The link to the other computing party."""

    @property
    def rank(self) -> int: ...

    def send(self, message: Share) -> None: ...

    def receive(self, like: Share) -> Share:
        """The peer's message, which must have the type and shape of ``like``."""
        ...


@dataclass(frozen=True)
class Traffic:
    """What one party sends and receives, in payload bytes, and the rounds it takes; ``offline`` comes in."""

    rounds: int = 0
    sent: int = 0
    received: int = 0
    offline: int = 0
    offline_sent: int = 0
    offline_rounds: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def traffic(groups: Sequence[Group], party: int) -> Traffic:
    """What groups of lanes cost a party; the same description drives dealer and protocols."""
    total = Traffic()
    for group in groups:
        lanes = [[size for correlation in lane for size in correlation.openings] for lane in group]
        sent, received = (
            sum(sum(c.openings) for lane in group for c in lane if speaker in c.speakers)
            for speaker in (party, 1 - party)
        )
        offline = sum(correlation.correction_bytes for lane in group for correlation in lane)
        total += Traffic(max(map(len, lanes), default=0), sent, received, offline)
    return total


def lockstep(
    channel: Channel, group: Group, protocols: Sequence[Rounds], mark: Callable[[], None] = lambda: None
) -> list[Share]:
    """Run protocols side by side, one round of all of them at a time; returns their results.

    Args:
        mark: called once a round.

    Each message is checked against what its lane declares, so that the predicted cost cannot drift from the
    code.
    """
    rank = channel.rank
    expected = [iter([(size, c.speakers) for c in lane for size in c.openings]) for lane in group]
    results: dict[int, Share] = {}
    waiting: dict[int, tuple[Share, bool]] = {}  # own message, and whether the peer sends one

    def advance(index: int, reply: Share | None) -> None:
        try:
            message = protocols[index].send(reply) if reply is not None else next(protocols[index])
        except StopIteration as stop:
            results[index] = stop.value
            waiting.pop(index, None)
            return
        size, speakers = next(expected[index], (None, ()))
        if message.nbytes != size:
            raise EngineError(f"a message of {message.nbytes} bytes is not what its protocol declares")
        if rank in speakers:
            channel.send(message)
        waiting[index] = message, 1 - rank in speakers

    for index in range(len(protocols)):
        advance(index, None)
    while waiting:
        mark()
        for index, (message, answered) in list(waiting.items()):
            advance(index, channel.receive(message) if answered else message)
    return [results[index] for index in range(len(protocols))]


def silence(like: Share) -> Share:
    """What a party that only listens yields in place of a message."""
    return np.broadcast_to(like.dtype.type(0), like.shape)


def chunks(count: int) -> list[list[slice]]:
    """Slices of a flat tensor, in windows of chunks that are in flight together."""
    slices = [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    return [slices[i : i + IN_FLIGHT] for i in range(0, len(slices), IN_FLIGHT)]
