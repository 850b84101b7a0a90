"""One computing party: executes a program's steps on its shares."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tradeoff.engines.transport import Clock, Endpoint
from tradeoff.engines.transport.prg import SEED_BYTES, BlockLedger, Prg, agree
from tradeoff.engines.two_party.correlations import Fields
from tradeoff.engines.two_party.offline import BATCH, DEALER, Source
from tradeoff.engines.two_party.ot import ObliviousSource
from tradeoff.engines.two_party.program import Program
from tradeoff.engines.two_party.protocol import Group, Rounds, lockstep
from tradeoff.engines.two_party.sharing import Share, share_of_owner
from tradeoff.engines.two_party.steps import Input, Reveal, Step

SERVER, CLIENT = 0, 1
SETUP = "setup"
_SETUP_TAG = 0xFFFF_FF00


@dataclass(frozen=True)
class StaticOperand:
    """A private operand W of party 0, which keeps one mask B for the session, as one party sees it.

    Args:
        opened: D = W - B, known to both.
        mask: B at party 0, which draws it alone; None at party 1.
    """

    opened: Share
    mask: Share | None

    @cached_property
    def weight(self) -> Share:
        """W, at party 0."""
        assert self.mask is not None
        return self.opened + self.mask


class Evaluator:
    """Executes programs at one of the two computing parties.

    Args:
        net: this party's end of the links; its id is 0 (model owner) or 1 (data owner).
        program: with weights at party 0, the public view at party 1.
        batch: images an inference.
        source: of correlated randomness.
    """

    def __init__(
        self,
        net: Endpoint,
        program: Program,
        batch: int,
        source: Source | ObliviousSource,
        *,
        ledger: BlockLedger | None = None,
    ) -> None:
        self.net = net
        self.rank = net.me
        self.program = program
        self.ring = program.ring
        self.batch = batch
        self.clock = Clock()
        self._source = source
        self._peer = 1 - net.me
        self._tag = 0
        self._ledger = ledger
        self._operands: dict[tuple[str, str], StaticOperand] = {}
        self._common: Prg | None = None

    def send(self, message: Share) -> None:
        """Queue a message of the running step for the peer."""
        self.net.send(self._peer, message, tag=self._tag)

    def receive(self, like: Share) -> Share:
        """The peer's message of the same type and shape."""
        return np.asarray(self.net.recv(self._peer, tag=self._tag, expect=(like.dtype, like.shape)))

    def lockstep(self, group: Group, protocols: Sequence[Callable[[list[Fields]], Rounds]]) -> list[Share]:
        """Run protocols side by side, each with the material of its lane."""
        running = [
            protocol([self._source.take(self._tag, correlation) for correlation in lane])
            for protocol, lane in zip(protocols, group, strict=True)
        ]
        return lockstep(self, group, running, self.net.round)

    def operand(self, step: Step, name: str) -> StaticOperand:
        """A masked static operand of a step."""
        return self._operands[step.name, name]

    def prepare(self) -> None:
        """Agree on a common generator and open the masked operands of party 0: one round a session.

        Without a dealer the base transfers come first, and no operand is opened.
        """
        with self.net.scope(SETUP), self.clock.measure(SETUP):
            own = secrets.token_bytes(SEED_BYTES)
            self._source.prepare()
            self.net.send(self._peer, own, tag=_SETUP_TAG)
            theirs = bytes(self.net.recv(self._peer, tag=_SETUP_TAG, expect=(bytes, (SEED_BYTES,))))
            self._common = Prg(agree(*((own, theirs) if self.rank == 0 else (theirs, own))), self._ledger)
            for index, step in enumerate(self.program.steps):
                values = step.static_values() if self.rank == 0 and step.static_shapes else {}
                for name, shape in step.static_shapes.items():
                    self._operands[step.name, name] = self._open(index, step, name, shape, values.get(name))
            self.net.round()

    def _open(
        self, index: int, step: Step, name: str, shape: tuple[int, ...], value: Share | None
    ) -> StaticOperand:
        """Party 0 masks its operand and sends the difference, unless transfers will hide it as it is."""
        if isinstance(self._source, ObliviousSource):
            return self._keep(index, step, name, shape, value)
        if value is None:
            opened = np.asarray(self.net.recv(SERVER, tag=_SETUP_TAG, expect=(self.ring.dtype, shape)))
            return StaticOperand(step.spread({name: opened})[name], None)
        mask = self._source.static(index, name, shape, self.ring)
        opened = value - mask
        self.net.send(CLIENT, opened, tag=_SETUP_TAG)
        return StaticOperand(step.spread({name: opened})[name], step.spread({name: mask})[name])

    def _keep(
        self, index: int, step: Step, name: str, shape: tuple[int, ...], value: Share | None
    ) -> StaticOperand:
        """The operand as its own mask: the opened difference is zero, and nothing is sent."""
        opened = step.spread({name: np.zeros(shape, self.ring.dtype)})[name]
        if value is None:
            return StaticOperand(opened, None)
        operand = step.spread({name: value})
        assert isinstance(self._source, ObliviousSource)
        self._source.keep(index, operand)
        return StaticOperand(opened, operand[name])

    def infer(self, x: NDArray[Any] | None) -> NDArray[np.float64] | None:
        """One inference: party 1 passes inputs (batch, *input_shape); who is to have the result gets it."""
        inference = self._source.begin()
        shares: dict[str, Share] = {}
        last_use = {name: step.name for step in self.program.steps for name in step.inputs}
        result = None
        for index, step in enumerate(self.program.steps):
            self._tag = index
            with self.net.scope(step.name), self.clock.measure(step.name):
                inputs = [shares[name] for name in step.inputs]
                if isinstance(step, Input):
                    shares[step.name] = self._share_input(inference, step, x)
                elif isinstance(step, Reveal):
                    result = self._reveal(step, inputs[0])
                else:
                    shares[step.name] = step.run(self, *inputs)
            for name in set(step.inputs):
                if last_use[name] == step.name:
                    del shares[name]
        return result

    def _share_input(self, inference: int, step: Step, x: NDArray[Any] | None) -> Share:
        assert self._common is not None
        stream = self._common.stream(bytes(16), inference, self._tag, 0, "input")
        mask = stream.words((self.batch, *step.shape), self.ring.dtype)
        if self.rank == SERVER:
            return mask
        assert x is not None
        return share_of_owner(self.ring.encode(x, step.frac, name="input"), mask)

    def _reveal(self, step: Step, share: Share) -> NDArray[np.float64] | None:
        receivers = {"client": (CLIENT,), "server": (SERVER,), "both": (SERVER, CLIENT)}
        wanted = receivers[self.program.options.reveal_to]
        share = np.ascontiguousarray(share)
        if self._peer in wanted:
            self.send(share)
        result = None
        if self.rank in wanted:
            result = self.ring.decode(share + self.receive(share), step.frac)
        self.net.round()
        return result

    def fetch(self) -> None:
        """Get the offline material of one more inference before it is needed."""
        self._source.fetch(step.groups(self.batch) for step in self.program.steps)

    def finish(self) -> None:
        """Release the dealer."""
        self._source.end()


def announce_batch(net: Endpoint, batch: int, *, dealer: bool) -> None:
    """The data owner's only public word: how many images an inference has."""
    message = np.array([batch], "<u8")
    net.send(0, message, tag=BATCH, offline=True)
    if dealer:
        net.send(DEALER, message, tag=BATCH, offline=True)


def learn_batch(net: Endpoint, max_batch: int = 1 << 16) -> int:
    """The batch size, at the model owner.

    Raises:
        ValueError: it is out of range.
    """
    batch = int(net.recv(1, tag=BATCH, expect=("<u8", (1,)), offline=True)[0])
    if not 1 <= batch <= max_batch:
        raise ValueError(f"a batch of {batch} images is not between 1 and {max_batch}")
    return batch
