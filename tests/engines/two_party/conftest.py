"""Two parties and a dealer in a few lines: protocols are generators, so messages can be swapped by hand."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from numpy.typing import NDArray

from tradeoff.engines.transport.prg import Prg
from tradeoff.engines.two_party.correlations import Fields, deal, expand_one, expand_zero
from tradeoff.engines.two_party.protocol import Lane, Rounds
from tradeoff.engines.two_party.sharing import Ring


@dataclass
class Run:
    """What came of a protocol: both shares, and every message by round as (party 0's, party 1's)."""

    shares: tuple[Any, Any] = (None, None)
    messages: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)

    @property
    def value(self) -> Any:
        return self.shares[0] + self.shares[1]


def split(ring: Ring, elements: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Uniform additive shares."""
    mask = (
        Prg(secrets.token_bytes(16))
        .stream(bytes(16), 0, 0, 0, "shares")
        .words(elements.shape, elements.dtype)
    )
    return mask, elements - mask


def run_protocol(
    lane: Lane,
    protocol: Callable[[int, list[Fields]], Rounds],
    static: Mapping[str, NDArray[Any]] | None = None,
) -> Run:
    """Deal a lane and run ``protocol(rank, materials)`` at both parties, checking the declared messages."""
    zero, one = Prg(secrets.token_bytes(16)), Prg(secrets.token_bytes(16))
    materials: tuple[list[Fields], list[Fields]] = ([], [])
    for chunk, correlation in enumerate(lane):
        name = (bytes(16), 0, 0, chunk, "test")
        corrections = deal(correlation, zero.stream(*name), one.stream(*name), static or {})
        assert corrections.nbytes == correlation.correction_bytes
        materials[0].append(expand_zero(correlation, zero.stream(*name)))
        materials[1].append(expand_one(correlation, one.stream(*name), corrections))
    running = [protocol(rank, materials[rank]) for rank in (0, 1)]
    run = Run()
    replies: tuple[Any, Any] = (None, None)
    while True:
        steps = [_step(party, reply) for party, reply in zip(running, replies, strict=True)]
        if steps[0][0] or steps[1][0]:
            assert all(finished for finished, _ in steps), "the parties ended in different rounds"
            run.shares = (steps[0][1], steps[1][1])
            break
        assert steps[0][1].nbytes == steps[1][1].nbytes
        run.messages.append((steps[0][1].copy(), steps[1][1].copy()))
        replies = (steps[1][1], steps[0][1])
    declared = [size for correlation in lane for size in correlation.openings]
    assert [messages[0].nbytes for messages in run.messages] == declared
    for (zero, _), speakers in zip(run.messages, [c.speakers for c in lane for _ in c.openings], strict=True):
        assert 0 in speakers or not zero.any(), "a party that only listens has nothing to say"
    return run


def _step(party: Rounds, reply: Any) -> tuple[bool, Any]:
    """(finished, result or message)."""
    try:
        return False, next(party) if reply is None else party.send(reply)
    except StopIteration as stop:
        return True, stop.value


@pytest.fixture(scope="session")
def two_parties() -> Callable[..., Run]:
    return run_protocol


@pytest.fixture(scope="session")
def share() -> Callable[..., tuple[NDArray[Any], NDArray[Any]]]:
    return split
